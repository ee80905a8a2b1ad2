"""``ualm bench``: each verb on a tiny bundle, and refusals."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from support.runs import make_run
from ualm.bench.meters.bandwidth import BandwidthMeter
from ualm.bench.report.formats import read_report
from ualm.bench.scenarios.common import WARM_UP
from ualm.runtime import InputError, Model
from ualm.runtime.bundle import packaged
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.cli.verbs import bench as cli_bench
from ualm.runtime.engines.onnxruntime.codec import OnnxRuntimeCodecStream
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeSequence
from ualm.runtime.sampling import AudioSampling

BENCH = Path(__file__).resolve().parents[2] / "bench"


def figures(report, subject=None):
    return {each.figure: each for each in report.measurements if subject in (None, each.subject.name)}


# ---- each verb ----


def test_decode_tells_time_bytes_and_share_of_each_context(bench, tiny_bundle):
    report = bench("decode", tiny_bundle, "--context", "5,40", "--repeat", 12)
    manifest, model = Bundle(tiny_bundle).manifest, Bundle(tiny_bundle).manifest.model
    row = 2 * 2 * model.layers * model.kv_heads * model.head_dim * 4  # keys and values, both branches
    assert [each.settings["context"] for each in report.measurements] == [5, 40]
    for measured in report.measurements:
        assert (measured.scenario, measured.figure, measured.unit, measured.summary.n) == ("decode", "frame", "ms", 12)
        traffic, summary = measured.traffic, measured.summary
        # 12 blocks of one frame, each of them the first after the warm-up
        assert traffic.kv_bytes == (measured.settings["context"] + WARM_UP + 1) * row
        assert traffic.gb_per_second == pytest.approx(traffic.bytes / (summary.p50 / 1000) / 1e9)
        shares = [traffic.bytes / (pair.figure / 1000) / 1e9 / pair.bandwidth for pair in traffic.pairs]
        assert len(shares) == 12 and traffic.fraction == pytest.approx(statistics.median(shares))
        assert statistics.median(pair.figure for pair in traffic.pairs) == pytest.approx(summary.p50)
        assert traffic.kernel == report.run.bandwidth.kernel
        assert 0 < measured.outside_percent < 100
        frames = manifest.codec.sample_rate / manifest.codec.hop_length
        assert measured.real_time_factor == pytest.approx(summary.mean / 1000 * frames)
        assert measured.settings["guidance"] == AudioSampling().guidance
    assert report.run.threads == 1 and report.comparisons == ()
    assert report.measurements[0].subject.digest == Bundle(tiny_bundle).digest


def test_without_guidance_one_branch_is_held(bench, tiny_bundle):
    both, single = (
        bench("decode", tiny_bundle, "--context", 20, "--repeat", 3, "--guidance", scale).measurements[0].traffic
        for scale in (3, 1)
    )
    assert both.kv_bytes == 2 * single.kv_bytes


def test_a_batch_takes_turns_and_is_told_a_frame(bench, tiny_bundle, monkeypatch):
    asked = []
    run_frames = OnnxRuntimeSequence.run_frames
    monkeypatch.setattr(
        OnnxRuntimeSequence, "run_frames", lambda self, count: (asked.append(id(self)), run_frames(self, count))[1]
    )
    report = bench("decode", tiny_bundle, "--context", 5, "--repeat", 2, "--batch", 3)
    assert report.measurements[0].settings["batch"] == 3 and report.measurements[0].summary.n == 2
    turns = [asked[at : at + 3] for at in range(0, len(asked), 3)]
    assert len(set(asked)) == 3 and all(turn == turns[0] for turn in turns)


def test_text_reads_its_own_head(bench, tiny_bundle):
    measured = bench("decode", tiny_bundle, "--modality", "text", "--repeat", 2).measurements[0]
    assert measured.traffic.head_bytes == Bundle(tiny_bundle).manifest.parts["head.text"].weight_bytes
    assert measured.settings["guidance"] == 1.0 and measured.real_time_factor is None


def test_prefill_tells_the_prompt_a_row_and_the_beginning(bench, tiny_bundle):
    report = bench("prefill", tiny_bundle, "--rows", "4,16", "--context", "0,8", "--repeat", 2)
    settings = [(each.settings["rows"], each.settings["context"]) for each in report.measurements[::3]]
    assert settings == [(4, 0), (16, 0), (4, 8), (16, 8)]
    whole, row, begin = report.measurements[3:6]
    assert (whole.figure, row.figure, begin.figure) == ("prefill", "row", "begin")
    assert row.summary.mean == pytest.approx(whole.summary.mean / 16)
    assert 0 < whole.outside_percent < 100 and begin.outside_percent is None


def test_encode_and_codec_tell_the_real_time_factor(bench, tiny_bundle):
    report = bench("encode", tiny_bundle, "--seconds", "0.5,1", "--repeat", 2)
    assert [(each.figure, each.settings["seconds"]) for each in report.measurements] == [
        ("features", 0.5), ("encode", 0.5), ("features", 1.0), ("encode", 1.0),
    ]  # fmt: skip
    report = bench("codec", tiny_bundle, "--seconds", 0.25, "--repeat", 2)
    for measured in report.measurements:
        assert measured.real_time_factor == pytest.approx(measured.summary.mean / 1000 / 0.25, rel=1e-3)


def test_stream_tells_what_a_listener_waits_for(bench, tiny_bundle):
    found = figures(bench("stream", tiny_bundle, "--seconds", 0.15, "--repeat", 2))
    heard = ["first_row", "first_sample", "playable", "gap", "underruns", "stall", "preroll", "sound"]
    assert list(found) == [*heard, "direct", "overhead"]
    # the direct path draws only the rows that the first sample needs
    assert 0 < found["direct"].summary.mean < found["sound"].summary.mean and found["overhead"].unit == "%"
    assert {found[name].summary.n for name in found if name != "gap"} == {2}
    for kind in ("min", "max"):
        waits = [getattr(found[name].summary, kind) for name in ("first_row", "first_sample", "playable", "sound")]
        assert waits == sorted(waits) and waits[0] > 0
    sound = found["sound"]
    assert sound.real_time_factor > 0.99 * sound.summary.mean / 1000 / 0.15  # a sound may end before its limit


def test_load_tells_time_and_memory_of_a_fresh_process(bench, tiny_bundle):
    report = bench("load", tiny_bundle, "--pages", "warm", "--repeat", 1)
    found = figures(report)
    for name in ("import", "open", "first_row", "ready"):
        assert (found[name].unit, found[name].summary.n) == ("ms", 1) and found[name].summary.min > 0
    parts = sum(found[name].summary.mean for name in ("import", "open", "first_row"))
    assert found["ready"].summary.mean > parts
    if Path("/proc/self/smaps_rollup").exists():
        for kind in ("rss", "private", "anonymous"):
            assert found[f"{kind}_loaded"].unit == "MiB"
            assert 1 < found[f"{kind}_loaded"].summary.min <= found[f"{kind}_steady"].summary.min
        assert found["peak_rss"].summary.min >= found["rss_steady"].summary.min
        assert found["peak_private"].summary.min > 1


def test_a_cold_start_says_how_cold_it_was(bench, tiny_bundle):
    report = bench("load", tiny_bundle, "--pages", "cold", "--repeat", 1)
    cached = figures(report)["cached"].summary.max
    assert 0 <= cached <= 100
    assert any("not the times of a cold start" in note for note in report.notes) == (cached > 1)


# ---- programs of their own ----


@pytest.mark.parametrize("verb", cli_bench.PROGRAMS)
def test_a_program_says_itself_what_it_takes(ualm, verb):
    status, out, err = ualm("bench", verb, "--help")
    assert (status, err) == (0, "") and out.lower().lstrip().startswith(f"usage: ualm bench {verb} ")
    status, out, err = ualm("bench", verb)
    assert (status, out) == (2, "") and f"usage: ualm bench {verb} " in err.lower()


@pytest.mark.parametrize("verb", cli_bench.PROGRAMS)
def test_a_program_gets_its_arguments_as_they_are(ualm, monkeypatch, verb):
    asked = []
    module = f"ualm.bench.{cli_bench.PROGRAMS[verb][0]}"
    monkeypatch.setattr(f"{module}.main", lambda *given: asked.append(given))
    words = ["--stage", "a", "b", "-o", "file", "--none=1", "-xyz", "--", "-", "--help"]
    assert ualm("bench", verb, *words) == (0, "", "")
    assert asked == [(words, f"ualm bench {verb}")]


def test_every_program_of_the_bench_that_is_run_by_hand_has_a_verb():
    programs = {
        module
        for path in BENCH.rglob("*.py")
        for module in re.findall(r'command\.run\("ualm\.bench\.(\S+)"\)', path.read_text(encoding="utf-8"))
    }
    assert programs == {module for module, _, _ in cli_bench.PROGRAMS.values()}
    told = "\n".join(page.read_text(encoding="utf-8") for page in (BENCH.parent / "docs").glob("*.md"))
    for verb in cli_bench.PROGRAMS:
        assert re.search(rf"ualm bench {verb}\b", told), verb


def test_what_a_program_refuses_is_one_line(ualm, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(ualm("bench", "random-run", tmp_path / "file"), tmp_path / "file", "exists already")
    assert_refused(ualm("bench", "random-run", tmp_path / "run", "--layers", 0), "layers = 0")
    place = tmp_path / "none" / "a.json"
    for arguments in (["damage", "--bundle", tmp_path], ["arithmetic"]):
        assert_refused(ualm("bench", *arguments, "-o", place), place.parent, "does not exist")
    assert_refused(ualm("bench", "damage", "-o", tmp_path / "a.json"), "--bundle", "int8")
    assert_refused(ualm("bench", "tensorrt-build", tmp_path, "-o", tmp_path / "none" / "a.json"), "does not exist")
    assert_refused(ualm("bench", "acceptance", "--out", tmp_path / "out", "--shim", "x"), "--shim: only --dry-run")


def test_what_a_program_misses_is_told(ualm, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ualm.bench.random_run.run", None)
    assert_refused(ualm("bench", "random-run", tmp_path / "run"), 'install it with: pip install ".[export]"')


# ---- which bundle ----


@pytest.mark.parametrize("given", ["packaged", "environment", "argument"])
def test_every_verb_takes_the_bundle_that_other_verbs_take(ualm, tiny_bundle, monkeypatch, given):
    asked = []

    def stop(bundle):
        asked.append(bundle)
        raise InputError("enough")

    monkeypatch.setattr("ualm.bench.harness.measure.run_scenario", lambda what, request, progress: stop(request.bundle))
    monkeypatch.setattr("ualm.bench.planner.plan.make_plan", lambda bundle, *rest: stop(bundle))
    monkeypatch.setattr("ualm.bench.gates.judge_bundle", lambda bundle, *rest, **options: stop(bundle or tiny_bundle))
    if given == "packaged":
        monkeypatch.setattr(packaged, "PACKAGED", tiny_bundle)
    else:
        monkeypatch.setenv("UALM_BUNDLE", str(tiny_bundle if given == "environment" else "not this one"))
    named = [tiny_bundle] if given == "argument" else []
    options = {"plan": ["--device", "orin-nano"], "gates": [] if given == "packaged" else ["--run", "run"]}
    verbs = ("decode", "prefill", "encode", "codec", "stream", "load", "plan", "gates")
    for verb in verbs:
        status, out, err = ualm("bench", verb, *named, *options.get(verb, []))
        assert (status, out) == (1, "") and err.endswith("ualm: enough\n"), (verb, err)
    assert asked == [tiny_bundle] * len(verbs)


# ---- against another ----


def test_against_itself_a_bundle_is_compared_block_by_block(bench, tiny_bundle):
    report = bench("codec", tiny_bundle, "--seconds", 0.02, "--repeat", 9, "--versus", tiny_bundle)
    compared, streamed = report.comparisons
    assert streamed.figure == "streamed"
    assert (compared.subject.name, compared.other.name) == ("tiny", "tiny (again)")
    assert (compared.pairs, len(compared.ratios), compared.figure) == (9, 9, "decode")
    assert "Wilcoxon" in compared.test and compared.verdict in ("better", "worse", "noise")
    assert figures(report, "tiny (again)")["decode"].summary.n == 9


def test_against_the_reference_in_torch(bench, tiny_bundle, tiny_run):
    rival = ("--versus", "reference-bf16", "--run", tiny_run.folder)
    report = bench("decode", tiny_bundle, "--context", 16, "--repeat", 12, *rival)
    (compared,) = report.comparisons
    assert (compared.other.name, compared.other.precisions) == ("reference-bf16", {"all": "bf16"})
    assert compared.verdict == "better" and compared.speedup > 1.5
    assert "torch" in report.run.versions
    theirs = figures(report, "reference-bf16")["frame"]
    assert (theirs.traffic, theirs.outside_percent) == (None, None) and theirs.real_time_factor > 0
    report = bench("prefill", tiny_bundle, "--rows", 8, "--repeat", 1, *rival)
    assert [(each.figure, each.verdict) for each in report.comparisons] == [
        ("prefill", "too few pairs"), ("begin", "too few pairs"),
    ]  # fmt: skip


def test_the_reference_must_have_the_bundles_weights(ualm, tiny_bundle, tmp_path):
    other = make_run(tmp_path / "other", seed=99)
    status, out, err = ualm("bench", "decode", tiny_bundle, "--versus", "reference-fp32", "--run", other.folder)
    assert (status, out) == (1, "") and f"--run {other.folder}" in err and "was not made from it" in err


def test_the_direct_way_takes_the_rows_of_one_frame_and_one_codec_call(bench, tiny_bundle, monkeypatch):
    """What "overhead" is compared with: the frame, its look-ahead and the delay in rows, and nothing else."""
    codec = Bundle(tiny_bundle).manifest.codec
    least = -(-(codec.hop_length + codec.lookahead) // codec.hop_length)
    asked, decoded = [], []
    rows, decode = OnnxRuntimeSequence.run_frames, OnnxRuntimeCodecStream.decode
    monkeypatch.setattr(
        OnnxRuntimeSequence, "run_frames", lambda self, count: (asked.append(count), rows(self, count))[1]
    )
    monkeypatch.setattr(
        OnnxRuntimeCodecStream,
        "decode",
        lambda self, latents, *, last: (decoded.append(len(latents)), decode(self, latents, last=last))[1],
    )
    bench("stream", tiny_bundle, "--seconds", 0.15, "--repeat", 2)
    assert least + 7 in asked and least in decoded


def test_what_is_missing_for_the_reference_is_told(ualm, tiny_bundle, tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ualm.bench.peers.torch_reference", None)
    result = ualm("bench", "decode", tiny_bundle, "--versus", "reference-fp32", "--run", tiny_run.folder)
    assert_refused(result, "reference-fp32", 'pip install ".[export]"')


# ---- files ----


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_result_is_written_and_shown_again(ualm, small_buffer, tiny_bundle, tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    arguments = ("--seconds", 0.02, "--repeat", 2, "--threads", 1)
    status, table, err = ualm("bench", "codec", tiny_bundle, *arguments, "--output", file)
    assert (status, err) == (0, "") and "decode" in table and "GB/s" in table
    (report,) = read_report(file)
    assert report.run.command.startswith("ualm bench codec") and report.run.seed == 0
    assert ualm("bench", "show", file) == (0, table, "")
    status, markdown, _ = ualm("bench", "show", file, file, "--format", "markdown")
    assert status == 0 and markdown.count("| seconds |") == 2
    assert ualm("bench", "show", file, "-o", tmp_path / "b.md")[0] == 0
    once = (tmp_path / "b.md").read_text()
    assert markdown == once + "\n" + once
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted([file.name, "b.md"])


# ---- what is refused ----


def assert_refused(result, *pieces):
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("ualm: ") and err.count("\n") == 1
    for piece in pieces:
        assert str(piece) in err


@pytest.fixture
def nothing_is_measured(monkeypatch):
    monkeypatch.setattr(BandwidthMeter, "measure", lambda self: pytest.fail("something was measured"))


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["decode", "--context", "0"], ["--context 0", "from 1 to"]),
        (["decode", "--context", "1,x"], ["--context 1,x", "whole numbers"]),
        (["decode", "--context", ""], ["--context"]),
        (["decode", "--context", "99999999"], ["--context 99999999", "the most this model holds"]),
        (["decode", "--batch", "0"], ["--batch 0"]),
        (["decode", "--modality", "video"], ["--modality video", "audio or text"]),
        (["decode", "--guidance", "0.5"], ["guidance = 0.5"]),
        (["decode", "--threads", "0"], ["--threads 0"]),
        (["decode", "--repeat", "0"], ["--repeat 0"]),
        (["decode", "--seed", "-1"], ["--seed -1"]),
        (["decode", "--format", "xml"], ["--format xml", "jsonl"]),
        (["decode", "--output", "a.xml"], ["a.xml", "suffix"]),
        (["decode", "--versus", "reference-bf16"], ["--versus reference-bf16", "--run"]),
        (["decode", "--run", "x"], ["--run x", "reference-fp32"]),
        (["decode", "--versus", "nowhere"], ["nowhere", "no bundle here"]),
        (["prefill", "--rows", "0"], ["--rows 0"]),
        (["prefill", "--rows", "99999999"], ["--rows 99999999"]),
        (["encode", "--seconds", "0"], ["--seconds 0"]),
        (["encode", "--seconds", "nan"], ["--seconds nan"]),
        (["encode", "--seconds", "0.001"], ["--seconds 0.001", "from 0.03"]),
        (["encode", "--seconds", "4000"], ["--seconds 4000", "to 300 s"]),
        (["codec", "--seconds", "1e-9"], ["--seconds 1e-09", "a frame"]),
        (["codec", "--seconds", "a"], ["--seconds a", "numbers"]),
        (["stream", "--seconds", "1e-9"], ["--seconds 1e-09", "a frame"]),
        (["stream", "--seconds", "99999"], ["--seconds 99999", "rows"]),
        (["stream", "--profile", "fast"], ["profile = 'fast'", "first_sound, balanced, throughput"]),
        (["load", "--pages", "hot"], ["--pages hot", "warm,cold"]),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_one_line_before_anything_is_measured(
    ualm, tiny_bundle, nothing_is_measured, arguments, pieces
):
    assert_refused(ualm("bench", arguments[0], tiny_bundle, *arguments[1:]), *pieces)


def test_an_unknown_engine_is_named(ualm, small_buffer, tiny_bundle):
    for verb in ("decode", "codec", "stream", "load"):
        assert_refused(ualm("bench", verb, tiny_bundle, "--engine", "abacus", "--repeat", 1), "abacus", "onnxruntime")


def test_a_folder_without_a_bundle_is_named(ualm, nothing_is_measured, tmp_path):
    for verb in ("decode", "prefill", "encode", "codec", "stream", "load"):
        assert_refused(ualm("bench", verb, tmp_path), tmp_path, "ualm export")


def test_rivals_that_a_verb_has_not_are_refused(ualm, small_buffer, tiny_bundle, tiny_run):
    rival = ("--versus", "reference-fp32", "--run", tiny_run.folder, "--repeat", 1)
    assert_refused(ualm("bench", "decode", tiny_bundle, "--batch", 2, *rival), "--batch 2", "one conversation")
    assert_refused(ualm("bench", "prefill", tiny_bundle, "--context", 4, *rival), "--context 4", "empty cache")
    assert ualm("bench", "codec", tiny_bundle, *rival)[0] == 2  # has no --run
    assert_refused(ualm("bench", "codec", tiny_bundle, *rival[:2]), "--run")


@pytest.mark.parametrize("name", ["none/a.json", "folder.json"])
def test_an_output_that_cannot_be_written_is_refused_first(ualm, nothing_is_measured, tiny_bundle, tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    assert_refused(ualm("bench", "codec", tiny_bundle, "-o", tmp_path / name), tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nothing can be written")
def test_a_folder_that_takes_no_file_is_refused_first(ualm, nothing_is_measured, tiny_bundle):
    assert_refused(
        ualm("bench", "codec", tiny_bundle, "-o", "/proc/a.json"), "/proc/a.json", "choose a writable folder"
    )


def test_context_that_only_the_block_makes_too_long_is_refused(ualm, small_buffer, tiny_bundle):
    limit = Bundle(tiny_bundle).manifest.model.max_positions
    assert_refused(ualm("bench", "decode", tiny_bundle, "--context", limit, "--repeat", 1), f"holds {limit}")


# ---- the rooms ----


def test_the_runtime_does_not_load_the_bench_and_the_bench_no_export_library():
    code = (
        "import sys, importlib, pkgutil, ualm.runtime.cli.main\n"
        "assert not [name for name in sys.modules if name.startswith('ualm.bench')]\n"
        "import ualm.bench.harness.measure, ualm.bench.report.formats, ualm.bench.scenarios\n"
        "names = [module.name for module in pkgutil.iter_modules(ualm.bench.scenarios.__path__)]\n"
        "assert len(names) > 8\n"
        "for name in set(names) - {'tensorrt_build_child'}:\n"  # a program that exports
        "    importlib.import_module(f'ualm.bench.scenarios.{name}')\n"
        "found = {'torch', 'transformers', 'onnx', 'scipy', 'yaml', 'ualm.export'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sequence_tells_the_time_inside_the_library(tiny_bundle):
    with Model.open(tiny_bundle, threads=1, max_context=64) as model:
        sequence = model.resources.engine.open_sequence()
        assert sequence.library_seconds == 0
        vocabulary = model.bundle.manifest.vocabulary
        seen = [0.0]
        sequence.prefill([vocabulary.text_rows([5, 6])])
        seen.append(sequence.library_seconds)
        sequence.modality_logits()
        seen.append(sequence.library_seconds)
        sequence.begin_segment("audio", AudioSampling(), mode="fixed", segment=0)
        assert sequence.library_seconds == seen[-1]
        sequence.run_frames(2)
        seen.append(sequence.library_seconds)
        assert seen == sorted(set(seen))


def test_results_that_are_kept_are_of_the_schema():
    folder = Path(__file__).resolve().parents[2] / "bench" / "results"
    for file in sorted(folder.glob("*.json")):
        (report,) = read_report(file)
        assert report.measurements and json.loads(file.read_text())["schema"] == "ualm-bench"
