"""A plan computes what exports produce, and what it says about a device follows from that."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.runs import make_run
from ualm.bench.meters.traffic import weight_bytes
from ualm.bench.planner.devices import DEVICES, OWN_RESERVE, find_device
from ualm.bench.planner.plan import BOUND, CHUNK, LIBRARY, PlanRow, make_plan
from ualm.export.bundle import export_run
from ualm.runtime import InputError
from ualm.runtime.bundle.bundle import Bundle

CUSTOM = find_device(None, 10.0, 4.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that every precision can store: whole blocks of 32 inputs."""
    folder = tmp_path_factory.mktemp("plan") / "run"
    return make_run(folder, hidden=64, ffn=96, heads=4, encoder_width=32, encoder_output=32).folder


@pytest.fixture(scope="module")
def bundles(run: Path) -> dict[str, Path]:
    precisions = ("fp32", "bf16", "fp8", "int8", "int4")
    return {name: export_run(run, run.parent / name, precision=name, accept_quality=True).bundle for name in precisions}


def rows_of(bundle: Path, **options: Any) -> dict[str, PlanRow]:
    return {row.precision: row for row in make_plan(bundle, CUSTOM, (64,), **options).rows}


@pytest.mark.parametrize("seen_from", ["fp32", "bf16", "fp8", "int8", "int4"])
def test_other_precisions_are_computed_to_the_byte(bundles: dict[str, Path], seen_from: str) -> None:
    planned = rows_of(bundles[seen_from])
    assert [name for name, row in planned.items() if row.own] == [seen_from]
    for name, row in planned.items():
        real = Bundle(bundles[name if name != "fp16" else "bf16"])
        assert row.body_bytes == weight_bytes(real, "backbone"), name
        assert row.head_bytes == weight_bytes(real, "head.audio"), name
        assert row.codec_bytes == round(weight_bytes(real, "codec") / CHUNK), name
        read = sum(weight_bytes(real, role) for role in ("backbone", "head.audio", "encoder", "codec"))
        held = sum(weight_bytes(real, role) for role in ("head.text", "head.modality"))
        tables = ("embedding", "null.keys", "null.values", "codec.rvq_table", "codec.rvq_bias")
        held += sum(real.table(table).nbytes for table in tables)
        assert row.weight_bytes == read + held, name


def test_time_is_bytes_over_bandwidth_and_kv_is_that_of_both_branches(bundles: dict[str, Path]) -> None:
    model = Bundle(bundles["int4"]).manifest.model
    guided, plain = rows_of(bundles["int4"])["int4"], rows_of(bundles["int4"], guidance=1.0)["int4"]
    one_branch = 64 * 2 * model.layers * model.kv_heads * model.head_dim * 2
    assert (guided.kv_bytes, plain.kv_bytes) == (2 * one_branch, one_branch)
    assert rows_of(bundles["fp32"])["fp32"].kv_bytes == 4 * one_branch
    for row in (guided, plain):
        read = row.body_bytes + row.head_bytes + row.kv_bytes + row.codec_bytes
        assert row.ms == pytest.approx(1000 * read / 10e9)
        assert row.frames_per_second == pytest.approx(1000 / row.ms)
        assert row.memory_bytes == row.weight_bytes + row.kv_memory_bytes + row.workspace_bytes
        assert row.workspace_bytes > LIBRARY


def test_the_verdict_turns_where_bytes_and_memory_do(bundles: dict[str, Path]) -> None:
    codec = Bundle(bundles["int4"]).manifest.codec
    row = rows_of(bundles["int4"])["int4"]
    read = row.body_bytes + row.head_bytes + row.kv_bytes + row.codec_bytes
    enough = read * codec.sample_rate / codec.hop_length / 1e9
    needed = row.memory_bytes / 2**30 + OWN_RESERVE
    for bandwidth, memory, fits, real_time in (
        (enough * 1.001, needed * 1.001, True, True),
        (enough * 0.999, needed * 1.001, True, False),
        (enough * 1.001, needed * 0.999, False, False),
    ):
        found = make_plan(bundles["int4"], find_device(None, bandwidth, memory), (64,)).rows
        (verdict,) = [row for row in found if row.precision == "int4"]
        assert (verdict.fits, verdict.real_time) == (fits, real_time)
        assert verdict.real_time_percent == pytest.approx(100 * enough / bandwidth)


def test_a_format_that_cannot_hold_the_model_is_left_out_and_told(tiny_bundle: Path) -> None:
    plan = make_plan(tiny_bundle, CUSTOM, (64,))  # its inner width, 48, is not a whole number of blocks
    assert [row.precision for row in plan.rows] == ["fp32", "bf16", "fp8"]
    for name in ("int8", "int4"):
        assert any(note.startswith(f"{name} cannot hold this model") for note in plan.notes)


def test_fp8_is_planned_where_it_can_be_multiplied(bundles: dict[str, Path]) -> None:
    for name, able in (("orin-nano", False), ("agx-orin", False), ("thor", True), ("rtx4090", True), ("h100", True)):
        plan = make_plan(bundles["int8"], DEVICES[name], (64,))
        assert ("fp8" in [row.precision for row in plan.rows]) == able
        assert any("fp8 needs compute capability 8.9" in note and name in note for note in plan.notes) != able
    plan = make_plan(bundles["fp8"], DEVICES["agx-orin"], (64,))
    assert not any(row.own for row in plan.rows)
    assert any("agx-orin cannot multiply it and so not run this bundle" in note for note in plan.notes)
    unknown = make_plan(bundles["fp8"], CUSTOM, (64,))
    assert any(row.own for row in unknown.rows)
    assert any("this device's is not known" in note for note in unknown.notes)


def test_contexts_cost_kv_alone(bundles: dict[str, Path]) -> None:
    near, far = (
        next(row for row in make_plan(bundles["int8"], CUSTOM, (context,)).rows if row.own) for context in (1, 1001)
    )
    assert far.kv_bytes == 1001 * near.kv_bytes
    assert far.memory_bytes - near.memory_bytes == 1000 * near.kv_bytes
    assert far.body_bytes == near.body_bytes


# ---- devices ----


def test_every_device_says_where_its_figures_stand() -> None:
    assert list(DEVICES) == ["orin-nano", "agx-orin", "thor", "rtx4090", "h100"]
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.source.startswith("https://")
        assert device.shared == device.title.startswith("Jetson")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("h200", None, None), "--device h200: known are orin-nano, agx-orin, thor, rtx4090, h100"),
        ((None, None, None), "--device: choose orin-nano"),
        ((None, 100.0, None), "both --bandwidth GB/s and --memory GiB"),
        (("thor", 0.0, None), "--bandwidth 0"),
        (("thor", None, -1.0), "--memory -1"),
        (("thor", float("nan"), None), "--bandwidth nan"),
    ],
)
def test_a_device_that_is_not_known_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(InputError) as caught:
        find_device(*arguments)
    assert said in str(caught.value)


def test_a_known_device_may_be_given_other_figures() -> None:
    slower = find_device("orin-nano", 68.0, None)
    assert (slower.bandwidth, slower.memory_gib, slower.shared) == (68.0, 8.0, True)
    assert "bandwidth as given" in slower.source


# ---- the command ----


def test_the_command_says_that_it_is_a_bound_in_every_format(
    ualm: Callable[..., tuple[int, str, str]], bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = bundles["int4"]
    for form in ("table", "markdown", "json", "jsonl", "csv"):
        status, out, _ = ualm("bench", "plan", bundle, "--device", "thor", "--context", "16,64", "--format", form)
        assert status == 0
        assert BOUND in out
        assert "273" in out
        lines = [json.loads(line) for line in out.splitlines()] if form == "jsonl" else []
        lines += list(csv.DictReader(io.StringIO(out))) if form == "csv" else []
        if form == "json":
            document = json.loads(out)
            assert document["schema"] == "ualm-plan"
            lines += document["rows"]
        if form not in ("table", "markdown"):
            assert [(row["precision"], int(row["context"])) for row in lines] == [
                (name, rows) for name in ("fp32", "bf16", "fp8", "int8", "int4") for rows in (16, 64)
            ]
    status, out, _ = ualm("bench", "plan", bundle, "--device", "thor", "-o", tmp_path / "plan.json")
    assert status == 0
    assert "int4 (this bundle)" in out
    assert json.loads((tmp_path / "plan.json").read_text())["device"]["name"] == "thor"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "tx2"), "--device tx2"),
        (("--device", "thor", "--context", "0"), "--context 0"),
        (("--device", "thor", "--context", "many"), "--context many"),
        (("--device", "thor", "--guidance", "0.5"), "guidance"),
        (("--device", "thor", "--format", "xml"), "--format xml"),
        (("--device", "thor", "-o", "plan.pdf"), "plan.pdf"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    ualm: Callable[..., tuple[int, str, str]], bundles: dict[str, Path], arguments: tuple[str, ...], said: str
) -> None:
    status, out, err = ualm("bench", "plan", bundles["fp32"], *arguments)
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1
