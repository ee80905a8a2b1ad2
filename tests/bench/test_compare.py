"""``ualm compare``: two bundles of one model, and refusals of bundles that are not."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.bundles import changed_manifest
from support.runs import make_run
from ualm.bench import compare
from ualm.export.bundle import export_run
from ualm.export.formats.precision import BACKBONE, CODEC, ENCODER
from ualm.export.quality.agreement import hold_rows
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.quality import COSINE_GATES, GATES, SNR_GATES, misses, ungated, verdicts
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ualm.runtime.errors import EngineError, InputError

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose matrices have whole blocks."""
    return make_run(tmp_path_factory.mktemp("compared") / "run", ffn=64).folder


@pytest.fixture(scope="module")
def wide(run: Path) -> Path:
    return export_run(run, run.with_name("fp32")).bundle


@pytest.fixture(scope="module")
def narrow(run: Path) -> Path:
    """In int8, in which random weights do not pass the gates."""
    return export_run(run, run.with_name("int8"), precision="int8", accept_quality=True).bundle


def test_a_narrower_bundle_is_held_against_its_gates(ualm: Command, wide: Path, narrow: Path) -> None:
    status, out, err = ualm("compare", wide, narrow, "--no-speed", "--threads", 1, "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert [told[side]["precision"]["backbone"] for side in "ab"] == ["fp32", "int8"] and told["speed"] is None
    a, b = Bundle(wide), Bundle(narrow)
    assert told["bytes"] == {"a": compare._total(a), "b": compare._total(b)}
    assert told["bytes"]["b"] == sum(path.stat().st_size for path in narrow.iterdir() if path.name != "manifest.json")
    assert told["sizes"]["encoder.integer"]["a"] == 0 < told["sizes"]["encoder.integer"]["b"]
    assert told["sizes"]["backbone"]["a"] > told["sizes"]["backbone"]["b"] > 0
    # the export's own figures for the narrow bundle, on rows that it drew itself: of similar size, and neither is zero
    exported, found = b.manifest.quality, told["quality"]
    for modality in ("audio", "text"):
        assert 0.2 < found[modality]["kl"] / exported[modality]["kl"] < 5
        assert abs(found[modality]["top1"] - exported[modality]["top1"]) < 0.2
    assert found["features"]["cosine_least"] == pytest.approx(exported["features"]["cosine_least"], abs=1e-3)
    assert found["pcm"]["snr_db"] == pytest.approx(exported["pcm"]["snr_db"], abs=3)
    gates = {(each["part"], each["figure"]): (each["gate"], each["met"]) for each in told["verdicts"]}
    assert gates["audio", "top1"] == (GATES["int8"].top1, found["audio"]["top1"] >= GATES["int8"].top1)
    assert gates["features", "cosine_least"][0] == COSINE_GATES["int8"]
    assert gates["pcm", "snr_db"][0] == SNR_GATES["fp16"]


def test_people_are_shown_each_figure_beside_its_gate(ualm: Command, wide: Path, narrow: Path) -> None:
    status, out, err = ualm("compare", wide, narrow, "--no-speed", "--threads", 1)
    assert (status, err) == (0, "")
    for piece in (
        f"A: {wide}",
        f"B: {narrow}",
        "sound: KL in nats",
        "at most 0.0002",
        "at least 0.96",
        "all files",
    ):
        assert piece in out
    assert sum(line.endswith(("  met", "  MISSED")) for line in out.splitlines()) == 6


def test_a_bundle_agrees_with_itself_exactly(wide: Path) -> None:
    found = compare.compare_bundles(wide, wide, threads=1, speed=False)
    for modality in ("audio", "text"):
        assert (found.quality[modality]["top1"], found.quality[modality]["kl"]) == (1.0, 0.0)
        assert found.quality[modality]["draws"] > 50
    assert found.quality["pcm"]["snr_db"] == 200 and all(verdict.met for verdict in found.verdicts)


def test_speed_is_measured_in_turn(
    wide: Path, narrow: Path, small_buffer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    run = compare.run_scenario
    monkeypatch.setattr(compare, "run_scenario", lambda *given: asked.append(run(*given)) or asked[-1])
    speed = compare.compare_bundles(wide, narrow, threads=1, repeat=12, context=16).speed
    (comparison,) = asked[0].comparisons
    assert speed is not None and (speed.pairs, speed.context) == (12, 16)
    assert (comparison.subject.precisions["backbone"], comparison.other.precisions["backbone"]) == ("int8", "fp32")
    assert (speed.ratio, speed.low, speed.high) == (comparison.speedup, comparison.low, comparison.high)
    medians = {each.subject.digest: each.summary.p50 for each in asked[0].measurements}
    assert speed.a_ms == medians[Bundle(wide).digest] and speed.b_ms == medians[Bundle(narrow).digest]


def test_too_few_pairs_of_blocks_are_told(ualm: Command, wide: Path, small_buffer: None) -> None:
    status, out, err = ualm("compare", wide, wide, "--threads", 1, "--repeat", 2, "--context", 16)
    assert (status, err) == (0, "")
    assert re.search(r"B is +[\d.]+ times as fast \(2 pairs of blocks\): too few pairs$", out, re.MULTILINE), out


def test_led_through_its_own_rows_an_engine_gives_the_logits_that_it_drew_from(tiny_bundle: Path) -> None:
    bundle = Bundle(tiny_bundle, verify="never")
    engine = OnnxRuntimeEngine(bundle, threads=1, max_context=1024)
    held = hold_rows(engine, bundle)
    sequence = engine.open_sequence()
    for segment in held[:2]:
        sequence.truncate(0)
        sequence.prefill(segment.prompt)
        sampling = compare.default_sampling(segment.modality, len(segment.rows))
        sequence.begin_segment(segment.modality, sampling, mode="fixed", segment=9)
        np.testing.assert_array_equal(sequence.follow(segment.rows), segment.logits)
        other = segment.rows.copy()
        other[0] = segment.rows[-1]
        sequence.truncate(0)
        sequence.prefill(segment.prompt)
        sequence.begin_segment(segment.modality, sampling, mode="fixed", segment=9)
        led = sequence.follow(other)
        np.testing.assert_array_equal(led[0], segment.logits[0])
        assert not np.array_equal(led[1], segment.logits[1])
    with pytest.raises(EngineError, match="no segment is under way"):
        sequence.follow(held[0].rows)
    engine.close()


@pytest.mark.parametrize(
    ("change", "piece"),
    [
        (lambda d: d["vocabulary"].update(codebook_size=15), "their vocabulary differs (codebook_size = 16 and 15)"),
        (lambda d: d["files"]["tokenizer.json"].update(sha256="0" * 64), "their tokenizer differs"),
        (lambda d: d["templates"].update(enrich="Other {prompt}"), "their templates differ"),
        (lambda d: d["model"].update(layers=3), "their model differs (layers = 2 and 3)"),
        (lambda d: d["codec"].update(hop_length=20), "their codec differs (hop_length = 10 and 20)"),
        (lambda d: d["features"].update(window=8), "their features differ"),
    ],
    ids=["vocabulary", "tokenizer", "templates", "model", "codec", "features"],
)
def test_two_models_are_not_compared(tiny_bundle: Path, change: Callable[[Any], None], piece: str) -> None:
    a = Bundle(tiny_bundle, verify="never")
    document = json.loads(json.dumps(a.manifest.to_json()))
    change(document)
    b = _with(a, document)
    with pytest.raises(InputError) as refused:
        compare.check_comparable(a, b)
    assert piece in str(refused.value) and "two forms of one model" in str(refused.value)


def _with(bundle: Bundle, document: dict[str, Any]) -> Any:
    """A stand-in for a bundle with this manifest, because some would not open at all."""
    said = SimpleNamespace(to_json=lambda: document["vocabulary"])
    templates = SimpleNamespace(to_json=lambda: document["templates"])
    features = SimpleNamespace(to_json=lambda: document["features"])
    sections = {name: SimpleNamespace(**document[name]) for name in ("model", "codec")}
    files = {
        name: replace(file, sha256=document["files"][name]["sha256"]) for name, file in bundle.manifest.files.items()
    }
    manifest = SimpleNamespace(vocabulary=said, templates=templates, files=files, features=features, **sections)
    return SimpleNamespace(folder=Path("other"), manifest=manifest)


def test_another_model_is_refused_in_one_line(ualm: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    other = changed_manifest(
        tiny_bundle, tmp_path / "other", lambda document: document["templates"]["reflect"].update(check="Well?")
    )
    status, out, err = ualm("compare", tiny_bundle, other)
    assert (status, out, err.count("\n")) == (1, "", 1) and "their templates differ" in err
    status, out, err = ualm("compare", tiny_bundle, tmp_path)
    assert (status, out) == (1, "") and f"{tmp_path}: no bundle here" in err


def test_a_format_without_a_gate_is_refused_before_anything_runs(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def codec_in_bf16(bundle: Bundle) -> Bundle:
        object.__setattr__(bundle.manifest, "precision", dict(bundle.manifest.precision) | {"codec": "bf16"})
        return bundle

    monkeypatch.setattr(compare, "Bundle", lambda path: codec_in_bf16(Bundle(path)))
    with pytest.raises(InputError, match=r"precision.codec = 'bf16' has no gate \(those that have: fp32, fp16\)"):
        compare.compare_bundles(tiny_bundle, tiny_bundle)


def test_every_format_of_an_export_has_a_gate() -> None:
    for backbone, encoder, codec in itertools.product(BACKBONE, ENCODER, CODEC):
        assert ungated({"backbone": backbone, "encoder": encoder, "codec": codec}) is None
    assert ungated({"backbone": "fp32", "encoder": "bf16", "codec": "fp32"}) is not None


@pytest.mark.parametrize(
    ("options", "piece"),
    [(["--threads", "1000"], "--threads 1000"), (["--repeat", "0"], "--repeat 0"), (["--context", "0"], "--context 0")],
)
def test_a_bad_option_is_refused_before_anything_runs(
    ualm: Command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], piece: str
) -> None:
    monkeypatch.setattr(compare, "_reference", lambda *given: pytest.fail("it ran"))
    status, out, err = ualm("compare", tiny_bundle, tiny_bundle, *options)
    assert (status, out, err.count("\n")) == (1, "", 1) and piece in err


def test_it_needs_the_base_packages_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'yaml', 'safetensors', 'scipy'): sys.modules[name] = None\n"
        "import ualm.bench.compare, ualm.runtime.cli.verbs.compare\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_gates_are_misses_of_their_verdicts() -> None:
    quality = {
        "audio": {"top1": 0.5, "kl": float("nan")},
        "text": {"top1": 1.0, "kl": 0.0},
        "features": {"cosine_least": 1.0},
        "pcm": {"snr_db": 34.9},
    }
    formats = {"backbone": "int8", "encoder": "int8", "codec": "fp16"}
    judged = verdicts(quality, formats)
    assert [verdict.met for verdict in judged] == [False, False, True, True, True, False]
    assert misses(quality, formats) == [
        "audio top-1 0.500 < 0.96",
        "audio KL nan > 0.0002",
        "sample SNR 34.9 dB < 35 dB",
    ]
