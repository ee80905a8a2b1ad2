"""Every check of the acceptance run can fail: each one is given a wrong value, and reports it.

Faults are injected behind the kernels' host shim, in the engine, or in the library's answers.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache as cache_of_calls
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.cuda.shim import load_shim
from ualm.bench.acceptance import launch_limits as limits
from ualm.bench.acceptance import machine, rtx_probe
from ualm.bench.acceptance.context import Ground
from ualm.bench.acceptance.findings import Findings
from ualm.bench.acceptance.kernels import cache, expected, products, sampler, stage, trials
from ualm.bench.acceptance.kernels.numbers import Numbers
from ualm.bench.acceptance.kernels.tables import DeviceTables, Tables
from ualm.bench.acceptance.loops import engines, loop, shapes
from ualm.bench.report.schema import Measurement, Subject
from ualm.bench.report.statistics import summarize
from ualm.runtime import UalmError, _native
from ualm.runtime.engines.device.device import Device

SHAPE = trials.Shape(16, 41, 64, 12)
TRIAL = trials.Trial("audio", "fixed", 3.0, 0.8, 20, 1.0, sequences=3)


def verdicts(found: Findings) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


def found_by(run: Callable[..., object], *given: Any, **named: Any) -> Findings:
    """What a stage finds."""
    found = Findings("any")
    run(*given, found, **named)
    return found


def fails(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("planted")


# ---- kernels ----


class Planted:
    """The shim, with a launch after which something is changed."""

    def __init__(self, name: str, after: Callable[[dict[str, Any]], object], **forced: Any) -> None:
        self._cuda = load_shim()
        real = getattr(self._cuda, name)

        def call(*positional: Any, **named: Any) -> Any:
            named |= forced
            launch = real(*positional, **named)
            if launch is None:  # it launched already; others return a launch to call
                return after(named)
            return lambda stream: (launch(stream), after(named))[0]

        setattr(self, name, call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cuda, name)


@cache_of_calls
def drawn_by_cpu(trial: trials.Trial) -> expected.Expected:
    return expected.Expected(expected.draw(trials.Suite("one", SHAPE, (trial,), ()), 1))


def same_as_cpu(device: Device, trial: trials.Trial) -> int:
    return sampler.same_as_cpu(DeviceTables(device, Tables(SHAPE, 1)), trial, 0, 1, drawn_by_cpu(trial))


def device_with(name: str, after: Callable[[dict[str, Any]], object] = lambda named: None, **forced: Any) -> Device:
    return Device(Planted(name, after, **forced), kind="cpu")


def at(address: int, dtype: Any, index: int) -> np.ndarray:
    """One number in the device's memory, which is host memory."""
    dtype = np.dtype(dtype)
    memory = (ctypes.c_char * dtype.itemsize).from_address(address + index * dtype.itemsize)
    return np.frombuffer(memory, dtype)


def drawn(named: dict[str, Any], sequence: int) -> int:
    """Rows that a sequence has drawn, by its progress word."""
    return int(at(named["progress"], np.uint64, sequence)[0]) & 0xFFFFFFFF


def other_row(named: dict[str, Any]) -> None:
    last = drawn(named, 2) - 1
    at(named["rows"], np.int32, (2 * trials.ROWS + last) * 8 + 7)[:] += 1


def other_embedding(named: dict[str, Any]) -> None:
    copy = 2 * 2 + 1  # of sequence 2
    at(named["embeddings"], np.int32, copy * SHAPE.hidden + SHAPE.hidden - 1)[:] ^= 1


def other_latent(named: dict[str, Any]) -> None:
    frame = max(drawn(named, 2) - 8, 0)
    at(named["latents"], np.int32, (2 * trials.ROWS + frame) * SHAPE.latent + SHAPE.latent - 1)[:] ^= 1


def word(change: Callable[[int], int]) -> Callable[[dict[str, Any]], None]:
    def plant(named: dict[str, Any]) -> None:
        place = at(named["progress"], np.uint64, 2)
        place[:] = change(int(place[0]))

    return plant


def faulty(change: Callable[[int], int]) -> Callable[[dict[str, Any]], None]:
    return word(lambda value: change(value) if value >> 40 & 0xFF else value)


@pytest.mark.parametrize(
    ("plant", "logits", "said"),
    [
        (other_row, "normal", r"row 0: drawn \[.*\], the CPU \["),
        (other_embedding, "normal", "row 0: the next embedding differs"),
        (other_latent, "normal", "row 7: the latent differs"),
        (word(lambda value: value ^ 1 << 32), "normal", r"row 0: row 0, flags 1, not 0"),
        (word(lambda value: value ^ 1 << 34), "normal", r"row 0: row 0, flags 4, not 0"),
        (word(lambda value: value + 1), "normal", r"row 0: row 1, flags 0, not 0"),
        (
            word(lambda value: value | 2 << 40 | 5 << 48),
            "normal",
            "row 0: the device found fault 2 in stream 5, the CPU",
        ),
        (word(lambda value: value & ~(0xFF << 40)), "NaN", "row 9: the CPU says .*NaN among .*, the device fault 0"),
        (faulty(lambda value: value ^ 1 << 40), "+inf", r"row 9: the CPU says .*\+inf among .*, the device fault 3"),
        (
            faulty(lambda value: value ^ 1 << 48),
            "all -inf",
            r"row 9: the CPU says .* stream (\d);.*, the device fault 3: .* stream (?!\1)",
        ),
    ],
    ids=["row", "embedding", "latent", "stop", "latent flag", "count", "fault", "no fault", "other fault", "stream"],
)
def test_what_a_kernel_draws_otherwise_is_told(plant: Callable[[dict[str, Any]], None], logits: str, said: str) -> None:
    """Faults in the last of three sequences, in the last number of a row, or in the second copy of an embedding."""
    trial = TRIAL if logits == "normal" else replace(TRIAL, logits=logits, guidance=1.0)
    assert same_as_cpu(Device(load_shim(), kind="cpu"), trial) > 20
    with pytest.raises(AssertionError, match=said):
        same_as_cpu(device_with("SampleLaunch", plant), trial)


@pytest.mark.parametrize("changed", ["seed", "segment", "temperature", "top_k", "top_p", "guidance", "max_steps"])
def test_every_option_of_a_segment_matters_to_the_comparison(changed: str) -> None:
    other: Any = {
        "seed": 77,
        "segment": 9,
        "temperature": 5.0,
        "top_k": 1,
        "top_p": 0.1,
        "guidance": 1.5,
        "max_steps": 9,
    }
    device = device_with("begin_segment", **{changed: other[changed]})
    with pytest.raises(AssertionError):
        same_as_cpu(device, TRIAL)


def test_rows_are_compared_until_each_sequence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not beyond: the CPU would draw nothing there."""
    asked: list[expected.Row] = []
    monkeypatch.setattr(sampler, "compare_row", lambda row, *given: asked.append(row))
    trial = replace(TRIAL, temperature=0.0)
    assert same_as_cpu(Device(load_shim(), kind="cpu"), trial) == len(asked)
    assert sum(row.ended for row in asked) == 3  # the limits of ROWS, ROWS - 1 and ROWS - 2 rows, or an earlier stop


def test_other_logits_than_the_cpus_are_told() -> None:
    """A numpy that draws other numbers is no fault of the kernels, and says so."""
    device = DeviceTables(Device(load_shim(), kind="cpu"), Tables(SHAPE, 1))
    with pytest.raises(AssertionError, match="not those that the CPU drew from: numpy differs"):
        sampler.same_as_cpu(device, TRIAL, 0, 1, drawn_by_cpu(TRIAL), inputs=77)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("number", ["float32", "float16", "bfloat16", "int8"])
def test_a_head_that_is_off_by_a_bit_is_told(number: str, branches: int) -> None:
    columns = SHAPE.columns("audio")
    found = products.head(Device(load_shim(), kind="cpu"), number, SHAPE, branches, 0)
    assert found == f"{branches * columns} logits are equal bit for bit"

    def flip(named: dict[str, Any]) -> None:
        at(named["logits"], np.int32, branches * columns - 1)[:] ^= 1

    for device, count in ((device_with("HeadLaunch", flip), "1"), (device_with("HeadLaunch", bias=0), r"\d+")):
        with pytest.raises(AssertionError, match=rf"^{count} logits differ, by "):
            products.head(device, number, SHAPE, branches, 0)


def test_a_product_is_added_with_one_rounding() -> None:
    """The exact sum lies just below the middle of two float32 numbers; rounded to float64 first, it is the middle."""
    a, b, c = np.array([2.0**-24 * (1 + 2**-23)]), np.array([1 - 2.0**-23]), np.float32([1 + 2**-23])
    assert (a * b + c).astype(np.float32)[0] == np.float32(1 + 2**-22)
    for sign in (1, -1):
        assert products.fused(sign * a, b, sign * c)[0] == sign * c[0]
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 500)).astype(np.float32)
    z = (random.standard_normal(500) * 10.0 ** random.integers(-9, 9, 500)).astype(np.float32)
    for found, *terms in zip(products.fused(x.astype(np.float64), y.astype(np.float64), z), x, y, z, strict=True):
        one, two, three = (Fraction(float(term)) for term in terms)
        near = [np.nextafter(found, np.float32(side)) for side in (-np.inf, np.inf)]
        distance = abs(Fraction(float(found)) - (one * two + three))
        assert all(distance <= abs(Fraction(float(each)) - (one * two + three)) for each in near)


@pytest.mark.parametrize("number", ["float32", "bfloat16"])
def test_a_sum_of_embeddings_that_is_off_is_told(number: str) -> None:
    assert "37 rows" in products.embedded_rows(Device(load_shim(), kind="cpu"), number, SHAPE, 0)

    def flip(named: dict[str, Any]) -> None:
        last = 36 * named["copies"] + named["copies"] - 1
        at(named["out"], np.int32, last * SHAPE.hidden + SHAPE.hidden - 1)[:] ^= 1

    with pytest.raises(AssertionError, match="1 copies: row 36, copy 0: the sum"):
        products.embedded_rows(device_with("embed_rows", flip), number, SHAPE, 0)
    with pytest.raises(AssertionError, match=r"copies: row \d+, copy \d: the sum"):
        products.embedded_rows(device_with("embed_rows", count=36), number, SHAPE, 0)


@pytest.mark.parametrize("number", ["float32", "float16", "bfloat16"])
def test_a_null_prefix_that_is_off_is_told(number: Any) -> None:
    assert "equal bit for bit" in cache.null_prefix(Device(load_shim(), kind="cpu"), number, 0)

    def flip(which: str, branch: int, position: int) -> Callable[[dict[str, Any]], None]:
        def plant(named: dict[str, Any]) -> None:
            address = int(at(named[which], np.int64, 2)[0])  # the last layer's branch 1
            size = 2 if number != "float32" else 4
            last = ((1 * 96 + position) * 64 + 63) * size - (1 - branch) * 2 * 96 * 64 * size
            at(address + last, np.uint8, 0)[:] ^= 1

        return plant

    for which, (branch, position) in itertools.product(("keys", "values"), ((1, 5), (1, 90), (1, 4), (1, 91), (0, 40))):
        with pytest.raises(AssertionError, match=f"layer 2, {which}: 1 numbers differ"):
            cache.null_prefix(device_with("fill_null_prefix", flip(which, branch, position)), number, 0)
    for forced in ({"first": 6}, {"last": 90}):
        with pytest.raises(AssertionError, match="layer 0, keys: 128 numbers differ"):
            cache.null_prefix(device_with("fill_null_prefix", **forced), number, 0)


def test_a_row_appended_with_another_bit_is_told() -> None:
    def flip(named: dict[str, Any]) -> None:
        at(int(at(named["values"], np.int64, 2)[0]), np.uint8, 0)[:] ^= 1

    with pytest.raises(AssertionError, match=r"new_value\.2, appended at position \d+: the cache differs"):
        cache.append_rows(device_with("write_kv_rows", flip), "float32", 0)


def test_each_kernel_that_fails_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    ground: Any = SimpleNamespace(
        device=Device(load_shim(), kind="cpu"), seed=0, dry_run=True, short=True, expected=None, progress=lambda text: 0
    )
    tried: list[tuple[int, int]] = []
    monkeypatch.setattr(
        sampler, "same_as_cpu", lambda tables, trial, at, *given: (tried.append((tables.shape.hidden, at)), 7)[1]
    )
    for room, name in ((products, "head"), (products, "embedded_rows"), (cache, "null_prefix"), (cache, "append_rows")):
        monkeypatch.setattr(room, name, lambda *given: "well")
    found = found_by(stage.check_kernels, ground)
    assert set(verdicts(found).values()) == {"pass"} and len(found.checks) == 18
    small, rehearsal = trials.SUITES["small"], trials.SUITES["rehearsal"]
    assert tried == [(24, at) for at in small.few] + [(1536, at) for at in rehearsal.few]
    assert [check.detail.split(" are")[0] for check in found.checks[:2]] == [
        f"{len(each.few)} trials, {7 * len(each.few)} rows" for each in (small, rehearsal)
    ]
    for room, name, begins in (
        (sampler, "same_as_cpu", "rows, e"),
        (products, "head", "head"),
        (products, "embedded_rows", "rows em"),
        (cache, "null_prefix", "null"),
        (cache, "append_rows", "rows a"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, fails)
            again = verdicts(found_by(stage.check_kernels, ground))
        wrong = {check for check, verdict in again.items() if verdict == "fail"}
        assert wrong == {check for check in verdicts(found) if check.startswith(begins)} and wrong


def test_a_kernel_that_is_off_fails_the_stage_against_the_file_that_comes_with_ualm() -> None:
    """End to end: one bit of one row, in one of the trials."""

    def off(named: dict[str, Any]) -> None:
        if named["sequences"] == 1 and named["text"] and drawn(named, 0) == 5:
            at(named["rows"], np.int32, 4 * 8)[:] ^= 1

    ground: Any = SimpleNamespace(
        device=device_with("SampleLaunch", off), seed=0, dry_run=True, short=True, expected=None,
        progress=lambda text: None,
    )  # fmt: skip
    found = verdicts(found_by(stage.check_kernels, ground))
    assert [name for name, verdict in found.items() if verdict == "fail"] == [
        f"rows, embeddings, latents, stops: {suite}" for suite in ("small", "rehearsal")
    ]


def test_the_trials_hold_every_edge_of_every_option() -> None:
    whole = trials.edge_trials()
    kinds = {("audio", "fixed", 3.0), ("audio", "reference", 3.0), ("text", "fixed", 3.0), ("audio", "fixed", 1.0)}
    assert {(each.modality, each.mode, each.guidance) for each in whole} == kinds
    for kind in kinds:
        mine = [each for each in whole if (each.modality, each.mode, each.guidance) == kind]
        assert {each.top_k for each in mine} == {0, 1, 2, 19, 20, 21}
        assert {each.top_p for each in mine} == {1e-9, 0.5, 0.9, 1.0 - 1e-12, 1.0}
        assert {each.temperature for each in mine} == {0.0, 1e-6, 0.8, 50.0}
        assert {each.sequences for each in mine} == {1, 3, 64}
        assert {each.logits for each in mine} == {
            *("normal", "ties", "equal", "mostly -inf", "huge", "NaN", "+inf", "all -inf", "stops")
        }
    small = trials.SUITES["small"]
    assert small.chosen(False) == list(enumerate(whole))
    short = small.chosen(True)
    assert {each.modality for _, each in short} == {"audio", "text"} and 10 < len(short) < len(whole) / 5
    assert all(whole[at] == each for at, each in short)
    assert len({small.seed(3, at) for at, _ in small.chosen(False)}) == len(whole)
    for name, text in (("rehearsal", 1000), ("true sizes", 151936)):
        large = trials.SUITES[name]
        assert (large.shape.codebook, large.shape.text, large.shape.hidden, large.shape.latent) == (
            1024,
            text,
            1536,
            256,
        )
        assert {(each.modality, each.sequences) for each in large.trials} == {
            ("audio", 1),
            ("text", 1),
            ("audio", 64),
            ("text", 8),
        }
        assert {each.top_p for each in large.trials} == {0.95, 1.0}
        assert {each.temperature for each in large.trials} == {0.0, 0.8}
        assert [each.modality for _, each in large.chosen(True)] == ["audio", "text"]


@pytest.mark.parametrize(("kind", "least", "most"), [("equal", 1.5, 1.5), ("huge", 1e30, 1e32), ("normal", 5, 30)])
def test_plain_trials_are_what_they_say(kind: str, least: float, most: float) -> None:
    values = np.stack(list(trials.draw_logits(replace(TRIAL, logits=kind), (1, 1, 138), Numbers(0))))
    assert len(values) == trials.ROWS and least <= np.abs(values).max() <= most
    assert kind == "equal" or len(np.unique(values)) > 3000


# ---- limits ----


def limits_of(monkeypatch: pytest.MonkeyPatch, **figures: Any) -> Findings:
    """The stage with a copy bandwidth, readings and launches as given."""
    given = {"best": 9.0, "median": 8.0, "readings": [7.0, 8.0], "launches": {"plain, device": [1.0]}} | figures
    copies = SimpleNamespace(best=given["best"], median=given["median"], bytes=1 << 20, kernel="copy")
    rates = list(given["readings"])
    summary = SimpleNamespace(best=rates[-1], median=rates[0], bytes=1 << 20, kernel="read")
    reader = SimpleNamespace(read=lambda: rates[0], result=summary)
    monkeypatch.setattr(limits, "_launches", lambda device: given["launches"])
    monkeypatch.setattr(limits, "_read_meter", lambda ground: reader)
    ground: Any = SimpleNamespace(device=SimpleNamespace(kind="cpu"), meter=SimpleNamespace(result=copies))
    return found_by(limits.measure_limits, ground)


@pytest.mark.parametrize(
    ("best", "median", "verdict"),
    [(9.0, 8.0, "pass"), (9.0, 0.0, "fail"), (0.0, 0.0, "fail"), (math.nan, 8.0, "fail"), (1e9, 8.0, "fail")],
)
def test_a_bandwidth_that_cannot_be_is_told(
    best: float, median: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verdicts(limits_of(monkeypatch, best=best, median=median))
    assert found == {"copy bandwidth": verdict, "read bandwidth": "pass", "launches": "pass"}
    found = verdicts(limits_of(monkeypatch, readings=[median, best]))
    assert found == {"copy bandwidth": "pass", "read bandwidth": verdict, "launches": "pass"}


@pytest.mark.parametrize("time", [0.0, -1.0, math.inf, math.nan])
def test_launches_that_take_no_time_are_told(time: float, monkeypatch: pytest.MonkeyPatch) -> None:
    check = limits_of(monkeypatch, launches={"plain, device": [1.0], "graph, device": [time] * 3}).checks[2]
    assert check.verdict == "fail" and "graph, device" in check.detail


def test_launches_are_timed_on_the_device_in_the_call_and_around() -> None:
    figures = limits._launches(Device(load_shim(), kind="cpu"))
    assert set(figures) == {
        "node, device",
        *(f"{how}, {where}" for how in ("plain", "graph") for where in ("device", "host call", "there and back")),
    }
    assert all(len(samples) == limits._BATCHES and min(samples) > 0 for samples in figures.values())


def test_memory_that_is_read_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(named: dict[str, Any]) -> None:
        at(named["total"], np.uint64, 0)[:] += np.uint64(1)

    ground: Any = SimpleNamespace(
        device=device_with("read_memory", off),
        dry_run=True,
        meter=SimpleNamespace(result=SimpleNamespace(best=9.0, median=8.0, bytes=1, kernel="copy")),
    )
    monkeypatch.setattr(limits, "_launches", lambda device: {})
    check = found_by(limits.measure_limits, ground).checks[1]
    assert check.verdict == "fail" and "reading memory on the GPU gave the sum" in check.detail
    ground.device = device_with("read_memory", bytes=1 << 20)  # the rest is never read
    assert found_by(limits.measure_limits, ground).checks[1].verdict == "fail"
    ground.device = Device(load_shim(), kind="cpu")
    assert found_by(limits.measure_limits, ground).checks[1].verdict == "pass"


# ---- loop ----


@pytest.mark.parametrize("part", ["decode_latents", "encode", "codes_to_latents"])
def test_an_engine_that_misses_the_golden_vector_is_told(
    ground: Ground, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_ahead_changes_nothing", lambda engine: "well")
    real = Ground.engine

    def other(self: Ground, *given: Any) -> Any:
        engine = real(self, *given)
        right = getattr(engine, part)
        monkeypatch.setattr(engine, part, lambda inputs: right(inputs) * np.float32(1.1))
        return engine

    found = Findings("loop")
    loop.check_bundle(ground, found, "onnxruntime-cuda", ground.bundle)
    assert list(verdicts(found).values()) == ["pass", "pass"]
    monkeypatch.setattr(Ground, "engine", other)
    loop.check_bundle(ground, found, "onnxruntime-cuda", ground.bundle)
    golden = found.checks[2]
    assert golden.verdict == "fail" and "off by" in golden.detail


def test_a_golden_output_that_fails_or_is_missing_is_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_ahead_changes_nothing", fails)
    right = SimpleNamespace(name="pcm", error=1e-6, tolerance=1e-4, problem=None, passed=True)
    wrong = SimpleNamespace(name="features", error=None, tolerance=1e-4, problem="it cannot be run", passed=False)
    for checks, verdict, said in (([right], "pass", "pcm"), ([right, wrong], "fail", "features: it cannot be run")):
        monkeypatch.setattr(loop, "check_golden", lambda bundle, engine, checks=checks: checks)
        found = Findings("loop")
        loop.check_bundle(ground, found, "onnxruntime-cuda", ground.bundle)
        assert [check.verdict for check in found.checks] == [verdict, "fail"] and said in found.checks[0].detail


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("how", ["value", "shape"])
def test_rows_that_depend_on_launching_ahead_are_told(
    place: int, run: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and latents of a sound, then of a text; in the second run, or in the third alone."""
    runs = [[np.arange(24.0), np.arange(12.0), np.arange(20.0), np.arange(2.0)] for _ in range(3)]
    engine: Any = SimpleNamespace(device_model=SimpleNamespace(ahead=9))
    ahead: list[int] = []

    def draw(engine: Any) -> list[np.ndarray]:
        ahead.append(engine.device_model.ahead)
        return runs[len(ahead) - 1]

    monkeypatch.setattr(loop, "_draw", draw)
    assert loop._ahead_changes_nothing(engine).startswith("44 rows") and ahead == [0, 3, 3]
    ahead.clear()
    if how == "value":
        runs[run][place][-1] += 1
    else:
        runs[run][place] = runs[run][place][:1]
    with pytest.raises(AssertionError, match="other rows, latents or logits"):
        loop._ahead_changes_nothing(engine)


def test_what_is_drawn_ahead_is_a_sound_and_a_text(ground: Ground) -> None:
    engine = ground.engine("onnxruntime-cuda", ground.bundle, 256)
    drawn = loop._draw(engine)
    engine.close()
    rows, latents, text, none = (len(each) for each in drawn)
    assert 8 <= rows <= 24 and latents == rows - 7 - (rows < 24) * (latents != rows - 7)
    assert 0 < text <= 24 and none == 0


def measured(*times: float) -> Any:
    subject = Subject("a", "b", None, {})
    figures = [Measurement("decode", subject, {}, "frame", "ms", summarize([time])) for time in times]
    return SimpleNamespace(measurements=figures, comparisons=[], notes=[])


@pytest.mark.parametrize(
    ("times", "verdict"),
    [((1.0,), "pass"), ((), "fail"), ((1.0, 0.0), "fail"), ((math.inf,), "fail"), ((math.nan,), "fail")],
)
def test_a_frame_that_took_no_time_is_told(
    ground: Ground, times: tuple[float, ...], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "measure", lambda *given, **named: measured(*times))
    found = Findings("loop")
    loop.measure_bundle(ground, found, "onnxruntime-cuda", ground.bundle.folder, contexts=(64,))
    assert list(verdicts(found).values()) == [verdict] * 2


def test_a_measurement_that_fails_is_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise UalmError("the engine gave nothing")

    monkeypatch.setattr(loop, "measure", broken)
    found = Findings("loop")
    loop.measure_bundle(ground, found, "onnxruntime-cuda", ground.bundle.folder, contexts=(64,))
    assert list(verdicts(found).values()) == ["fail"] * 2


# ---- machine, engines and shapes ----


def test_a_gpu_that_cannot_be_described_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        bundle = None

        @property
        def gpu(self) -> Any:
            raise load_shim().CudaError("CUDA cannot read the device's properties")

    answers = {"tensorrt": "no TensorRT", "onnxruntime": None}
    monkeypatch.setattr(machine, "why_not", lambda name, bundle, rows: answers.get(name, "not this one"))
    found = verdicts(found_by(machine.describe, Broken()))
    assert found.pop("GPU") == "fail" and found.pop("engine onnxruntime") == "pass"
    assert set(found.values()) == {"skipped"} and len(found) == 3


def test_a_try_at_tensorrt_that_fails_fails_its_check(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "_try", fails)
    assert list(verdicts(found_by(machine.try_tensorrt_rtx, ground)).values()) == ["skipped", "fail", "fail"]
    monkeypatch.setattr(machine, "_try", lambda target, build_only: f"{build_only}")
    on_gpu: Any = SimpleNamespace(dry_run=False)
    assert [(check.verdict, check.detail) for check in found_by(machine.try_tensorrt_rtx, on_gpu).checks] == [
        ("pass", "False")
    ] * 3


@pytest.mark.parametrize(
    ("code", "output", "build_only", "said"),
    [
        (0, "", True, "the process ended with status 0"),
        (1, '{"reached": "build", "bytes": 9, "library": "1.7"}', True, "the process ended with status 1: some words"),
        (
            0,
            '{"reached": "import", "problem": "it was not built"}',
            True,
            "it was not built, after: import; some words",
        ),
        (0, '{"reached": "run", "bytes": 9, "library": "1.7", "worst": 2.1e-3}', False, "off by 2.1e-03"),
        (0, '{"reached": "run", "bytes": 9, "library": "1.7", "worst": NaN}', False, "off by nan"),
    ],
)
def test_a_tensorrt_engine_that_is_off_is_told(
    code: int, output: str, build_only: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], code, output, "some words")
    monkeypatch.setattr(machine.subprocess, "run", lambda *arguments, **options: done)
    with pytest.raises(AssertionError, match=said):
        machine._try("8.0", build_only=build_only)


class FakeRtx:
    """The part of ``tensorrt_rtx`` that the probe calls: a product of ``x`` and the constant, off by a factor."""

    __version__ = "1.7"
    float32, ERROR, NONE, STRONGLY_TYPED = "float32", 1, "plain", 0

    def __init__(self, *, builds: bool = True, loads: bool = True, runs: bool = True, factor: float = 1.0) -> None:
        self.builds, self.loads, self.runs, self.factor = builds, loads, runs, factor
        self.asked: list[str] = []
        self.addresses: dict[str, int] = {}
        self.Logger = self.NetworkDefinitionCreationFlag = self.MatrixOperation = self.ComputeCapability = self
        self.SM80, self.SM86 = "SM80", "SM86"

    def __call__(self, *given: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *given: self

    def Weights(self, values: np.ndarray) -> np.ndarray:
        self.weights = values
        return values

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.asked.append(capability)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return np.zeros(9, np.uint8) if self.builds else None

    def deserialize_cuda_engine(self, content: Any) -> Any:
        return self if self.loads else None

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        x = np.frombuffer(ctypes.string_at(self.addresses["x"], 4 * rtx_probe.ROWS * rtx_probe.INPUTS), np.float32)
        y = (x.reshape(rtx_probe.ROWS, -1) @ self.weights * np.float32(self.factor)).astype(np.float32)
        ctypes.memmove(self.addresses["y"], y.ctypes.data, y.nbytes)
        return self.runs


@pytest.mark.parametrize(
    ("library", "reached", "problem"),
    [
        ({"builds": False}, "import", "it was not built"),
        ({"loads": False}, "build", "the engine does not load on this GPU"),
        ({"runs": False}, "load", "the engine does not run"),
        ({"factor": 1.1}, "run", None),
        ({}, "run", None),
    ],
    ids=str,
)
def test_the_probe_tells_how_far_it_came_and_how_far_it_is_off(
    library: dict[str, Any], reached: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRtx(**library)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    monkeypatch.setattr("ualm.runtime.engines.device.facts.load_kernels", load_shim)
    monkeypatch.setattr(rtx_probe, "local_sm", lambda: 86)
    found = rtx_probe.probe("8.0,8.6", run=True)
    assert (found["reached"], found.get("problem")) == (reached, problem) and fake.asked == ["SM80", "SM86"]
    if reached == "run":
        assert (found["worst"] > 0.05) == ("factor" in library) and ("factor" in library or found["worst"] < 1e-5)
    if not library:
        assert rtx_probe.probe("default", run=False)["reached"] == "build" and fake.asked == ["SM80", "SM86"]


@pytest.mark.parametrize(
    ("here", "target", "reached", "said"),
    [
        (90, "default", "import", "TensorRT-RTX 1.7 runs on sm80, sm86; the GPU here is sm90"),
        (86, "8.0", "build", "the engine does not load on this GPU, which it is not for"),
    ],
)
def test_a_gpu_that_the_library_or_the_engine_is_not_for_is_no_fault(
    here: int, target: str, reached: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeRtx(loads=False))
    monkeypatch.setattr(rtx_probe, "local_sm", lambda: here)
    found = rtx_probe.probe(target, run=True)
    assert (found["reached"], found.get("refused"), found.get("problem")) == (reached, said, None)


def test_engines_that_cannot_be_built_are_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_build", fails)
    monkeypatch.setattr(engines, "check_bundle", lambda *given: pytest.fail("tried all the same"))
    assert set(verdicts(found_by(engines.check_engines, ground)).values()) == {"fail"}


def test_a_shape_that_cannot_be_made_is_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise OSError("no space is left")

    monkeypatch.setattr("ualm.bench.random_run.run.write_random_run", broken)
    monkeypatch.setattr("ualm.export.bundle.export_run", broken)
    found = found_by(shapes.make_shape, ground, shape="1.5b")
    assert [(check.verdict, check.detail) for check in found.checks] == [("fail", "no space is left")] * 2


def test_a_comparison_that_was_not_made_is_told(
    ground: Ground, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "PeerSubject", lambda *given: SimpleNamespace())
    monkeypatch.setattr(shapes, "measure", lambda *given, **named: measured(1.0))
    found = Findings("loop-1.5b")
    shapes._against_torch(ground, found, "onnxruntime-cuda", "tiny", tiny_bundle, 64)
    assert [(check.verdict, check.detail) for check in found.checks] == [("fail", "nothing was compared")]


def test_the_latent_flag_is_what_the_plants_take_it_for() -> None:
    assert (_native.STOP, _native.LATENT) == (1, 4)
