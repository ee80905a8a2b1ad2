"""One schema: what is written in any format is read back unchanged, and errors name the wrong field."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ualm.bench.report.formats import choose_format, read_report, write_csv, write_json, write_jsonl
from ualm.bench.report.schema import (
    Bandwidth,
    BandwidthPair,
    Check,
    Comparison,
    Gpu,
    Machine,
    Measurement,
    Report,
    RoundTrip,
    Run,
    Subject,
    Traffic,
    from_json,
    to_json,
)
from ualm.bench.report.statistics import TEST, compare, summarize
from ualm.bench.report.tables import render
from ualm.runtime import InputError

BANDWIDTH = Bandwidth(2, 512 << 20, 54, 30.5, 29.25, "host", "avx2x4", 9, 17.125)
PAIRS = (BandwidthPair(30.0, 30.5, 2.5), BandwidthPair(17.125, 30.0, 3.75))
MACHINE = Machine("A CPU, made up", "x86_64", ("avx2", "fma"), 2, None, 24 << 30, 0.25)
RUN = Run(
    created="2026-11-25T03:00:00+00:00",
    command="ualm bench decode bundle --context '1,2'",
    commit="v1-3-gabc-dirty",
    seed=7,
    threads=2,
    versions={"python": "3.11", "numpy": "2", "odd.name": "1.0"},
    machine=MACHINE,
    bandwidth=BANDWIDTH,
    others_percent=0.5,
    core_round_trip=RoundTrip(13, 51.5, 54.0, 340.25),
)
SUBJECT = Subject("tiny", "onnxruntime", "ab" * 32, {"backbone.grouped": "int4", "head.audio": "int8"})
RIVAL = Subject("reference-bf16", "torch 2.13", None, {"all": "bf16"})


def measurement(**changes: Any) -> Measurement:
    made = Measurement(
        scenario="decode",
        subject=SUBJECT,
        settings={"context": 256, "modality": "audio", "guidance": 3.0},
        figure="frame",
        unit="ms",
        summary=summarize([1.5, 2.5, 10.125]),
        traffic=Traffic(10_000_000, 2_000_000, 3_000_000, 6.0, 0.2, 0.19, 1, "avx2x4", PAIRS),
        real_time_factor=0.125,
        outside_percent=2.5,
    )
    return dataclasses.replace(made, **changes)


def report(**changes: Any) -> Report:
    found = compare([[1.0, 1.25]] * 9, [[3.0]] * 9)
    compared = Comparison(
        "decode", SUBJECT, RIVAL, {"context": 256}, "frame", len(found.ratios), found.speedup, found.low, found.high,
        found.p, TEST, found.verdict, found.ratios,
    )  # fmt: skip
    bare = measurement(subject=RIVAL, traffic=None, real_time_factor=None, outside_percent=None)
    made = Report(RUN, (measurement(), bare), (compared,), ("one, two", 'three "four"'))
    return dataclasses.replace(made, **changes)


def write(path, form, *reports):
    path.write_text(render(list(reports), form), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_a_report_comes_back_as_it_was(tmp_path, form):
    assert read_report(write(tmp_path / f"a.{form}", form, report())) == [report()]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_report_from_before_the_pairs_is_read_and_says_what_its_share_is_of(tmp_path, version):
    document = json.loads(write_json(report())) | {"version": version}
    for name in ("kernel", "readings", "worst"):
        del document["run"]["bandwidth"][name]
    for name in ("fraction_near_best", "near_best", "kernel", "pairs"):
        del document["measurements"][0]["traffic"][name]
    (tmp_path / "a.json").write_text(json.dumps(document))
    (found,) = read_report(tmp_path / "a.json")
    traffic = found.measurements[0].traffic
    assert traffic is not None and (traffic.fraction, traffic.pairs, traffic.near_best) == (0.2, (), None)
    table = render([found], "table")
    assert "of best pass" in table and "of bandwidth" not in table and "near its best" not in table
    assert "30.5 GB/s (best of 54 passes over 512 MiB with 2 threads, median 29.2)" in table
    assert read_report(write(tmp_path / "b.csv", "csv", found)) == [found]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_a_gpu_and_what_was_checked_on_it_come_back_too(tmp_path, form):
    gpu = Gpu("A GPU", "9.0", 80 << 30, 132, "580.65", "13.0", {"processors": 1980, "memory": 2619})
    run = dataclasses.replace(
        RUN, machine=dataclasses.replace(MACHINE, gpu=gpu), bandwidth=Bandwidth(0, 1 << 30, 9, 2500.0, 2480.5, "device")
    )
    made = report(run=run, checks=(Check("kernels", "audio rows", "pass", "4,096 rows are equal", 1.5),))
    assert read_report(write(tmp_path / f"a.{form}", form, made)) == [made]
    table = render([made], "table")
    assert "A GPU (compute capability 9.0), 132 multiprocessors, 80 GiB, driver 580.65" in table
    assert "copy bandwidth on the GPU 2500.0 GB/s" in table and "4,096 rows are equal" in table


def test_a_dry_run_says_so_before_any_figure():
    lines = render([report(run=dataclasses.replace(RUN, dry_run=True))], "table").splitlines()
    assert any(line.startswith("DRY RUN") for line in lines[:5])


ODD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["3", "null", "true", '"a"', "NaN", "[1]", "a,b", "a\nb", "a\r\nb", "\r", "", " ", "Infinity", "1e5"]
)
NAMES = st.text("abc._-", min_size=1, max_size=6)


VALUES = ODD | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ODD, ODD, st.dictionaries(NAMES, VALUES, max_size=3))
def test_odd_texts_and_settings_come_back_from_every_format(tmp_path, command, note, odd):
    made = report(
        run=dataclasses.replace(RUN, command=command), measurements=(measurement(settings=odd),), notes=(note,)
    )
    for form in ("json", "jsonl", "csv"):
        assert read_report(write(tmp_path / f"a.{form}", form, made)) == [made]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_several_runs_in_one_file_stay_apart(tmp_path, form):
    other = report(run=dataclasses.replace(RUN, seed=8), comparisons=(), notes=())
    assert read_report(write(tmp_path / f"a.{form}", form, report(), other)) == [report(), other]


def test_json_holds_one_run():
    with pytest.raises(InputError, match="choose jsonl or csv"):
        render([report(), report()], "json")


def test_every_line_stands_for_itself():
    lines = [json.loads(line) for line in write_jsonl([report()]).splitlines()]
    assert [line["kind"] for line in lines] == ["measurement", "measurement", "comparison", "note", "note"]
    rows = list(csv.DictReader(io.StringIO(write_csv([report()]))))
    assert len(rows) == 5
    for line, row in zip(lines, rows, strict=True):
        assert (line["schema"], line["version"], line["run"]["commit"]) == ("ualm-bench", 4, RUN.commit)
        assert (row["schema"], row["version"], row["run.commit"]) == ("ualm-bench", "4", RUN.commit)
    assert rows[0]["measurement.summary.p50"] == "2.5" and rows[0]["measurement.settings.context"] == "256"
    assert rows[0][r"measurement.subject.precisions.backbone\.grouped"] == "int4"


def test_json_says_its_schema_first():
    assert list(json.loads(write_json(report())))[:3] == ["schema", "version", "run"]


def test_markdown_holds_every_figure():
    tables = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in render([report()], "markdown").splitlines()
        if line.startswith("|")
    ]
    header, _, first, second, *compared = tables
    cells = dict(zip(header, first, strict=True))
    assert (cells["subject"], cells["context"], cells["modality"], cells["guidance"]) == ("tiny", "256", "audio", "3")
    summary = measurement().summary
    for name in ("p50", "p90", "p95", "p99", "min", "mean", "max"):
        assert float(cells[name]) == pytest.approx(getattr(summary, name), rel=1e-3)
    assert (cells["n"], cells["unit"], cells["RTF"], cells["outside %"]) == ("3", "ms", "0.125", "2.50")
    assert [cells[name] for name in ("body MB", "head MB", "KV MB", "GB/s", "of bandwidth", "near its best")] == [
        "10", "2", "3", "6", "20.0 %", "19.0 % (1 of 2)",
    ]  # fmt: skip
    assert dict(zip(header, second, strict=True))["GB/s"] == ""
    cells = dict(zip(compared[0], compared[2], strict=True))
    assert (cells["pairs"], cells["times faster"], cells["verdict"]) == ("9", "2.667", "better")


def test_the_table_says_where_and_how_and_cuts_nothing():
    text = render([report()], "table")
    for piece in (
        RUN.command,
        RUN.commit,
        "A CPU, made up",
        "30.5 GB/s (best of 9 readings by avx2x4, 54 passes over 512 MiB with 2 threads, median 29.2, worst 17.1)",
        "int4: backbone.grouped",
        "digest abababababab",
    ):
        assert piece in text
    assert "one, two" in text and "…" not in text


def test_the_table_says_once_what_all_rows_have_in_common_and_keeps_every_figure():
    other = measurement(settings={"context": 4096, "modality": "audio", "guidance": 3.0}, summary=summarize([2.5] * 3))
    lines = render([report(measurements=(measurement(), other), comparisons=())], "table").splitlines()
    title = next(line for line in lines if line.startswith("decode"))
    for piece in ("modality audio", "guidance 3", "unit ms", "n 3", "body MB 10"):
        assert piece in title
    at = lines.index(title)
    header, first, second = (lines[at + step].split() for step in (2, 4, 5))
    assert header[:9] == ["context", "figure", "p50", "p90", "p95", "p99", "min", "mean", "max"]
    assert [row[:3] for row in (first, second)] == [["256", "frame", "2.5"], ["4096", "frame", "2.5"]]


@pytest.mark.parametrize(
    ("change", "piece"),
    [
        ({"schema": "other"}, "'ualm-bench'"),
        ({"version": 5}, "version 5"),
        ({"run": None}, "run is not an object"),
        ({"extra": 1}, "'extra'"),
        ({"measurements": [{}]}, r"measurements\[0\].scenario is missing"),
        ({"notes": [1]}, r"notes\[0\] = 1"),
    ],
)
def test_a_document_that_is_wrong_is_refused_by_field(tmp_path, change, piece):
    document = json.loads(write_json(report())) | change
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=piece) as caught:
        read_report(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "piece"),
    [
        ("a.json", "{", "not a result"),
        ("a.jsonl", "", "no lines"),
        ("a.csv", "schema,version\nualm-bench,1,2\n", "cells"),
        ("a.csv", "schema,version\nualm-bench,1\n", "kind = None"),
        ("a.md", "", ".json, .jsonl and .csv"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, name, content, piece):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=piece):
        read_report(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_report(tmp_path / "none.json")


def test_types_are_checked_and_whole_numbers_may_stand_for_floats():
    document = to_json(BANDWIDTH)
    assert from_json(Bandwidth, document | {"best": 30}) == dataclasses.replace(BANDWIDTH, best=30.0)
    for field, value in (("best", "30"), ("threads", 2.0), ("threads", True), ("median", None)):
        with pytest.raises(ValueError, match=field):
            from_json(Bandwidth, document | {field: value})


def test_the_format_comes_from_the_option_or_the_suffix(tmp_path):
    assert choose_format(None, None) == "table"
    assert choose_format("csv", tmp_path / "a.json") == "csv"
    for suffix, form in (
        (".json", "json"),
        (".jsonl", "jsonl"),
        (".csv", "csv"),
        (".md", "markdown"),
        (".txt", "table"),
    ):
        assert choose_format(None, tmp_path / f"a{suffix}") == form
    with pytest.raises(InputError, match="--format xml"):
        choose_format("xml", None)
    with pytest.raises(InputError, match="suffix"):
        choose_format(None, tmp_path / "a.xml")
