"""Every performance figure that a page quotes is in a file of bench/results, rounded as quoted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.figures import (
    PAGES,
    RESULTS,
    ROOT,
    Exempt,
    Mismatch,
    figures_of,
    main,
    mismatches,
    rewritten,
    unmarked,
    written_like,
)
from support.kept_values import SelectorError, Value, evaluate
from ualm.bench.acceptance.stages import STAGES
from ualm.bench.harness.blocks import BLOCK_SECONDS
from ualm.bench.harness.measure import _QUIET
from ualm.bench.meters.bandwidth import READING_SECONDS
from ualm.bench.meters.memory import LOOK
from ualm.bench.meters.traffic import NEAR_BEST
from ualm.bench.planner.devices import DEVICES
from ualm.bench.report.formats import read_report, write_json
from ualm.bench.report.schema import Measurement, Subject
from ualm.bench.report.statistics import SMALLEST_EFFECT, summarize
from ualm.bench.scenarios.load import _COLD
from ualm.bench.scenarios.stream import PLAYABLE_SECONDS
from ualm.export.formats import blocks as quantize
from ualm.export.formats import float8
from ualm.export.targets.tensorrt.parts import SHORT_SECONDS
from ualm.export.tiny.judging.card import model_card
from ualm.runtime.audio.features import SILENCE_KEPT
from ualm.runtime.audio.pacing import MARGIN

_SAID = "what the command printed once: an example of its output"
_PLAN = "computed by ualm bench plan, measured by nothing"
_FORMAT = "a fact of the format"
_ROUNDING = "computed by test_the_errors_of_rounding_are_those_of_our_formats"
_LIMIT = "what a share means, or a constant of the code"

#: Figures that no result contains. Texts made of constants hold only as long as the code has these.
EXEMPT = [
    Exempt("README.md", "trumpet.wav: 0.80 s in 0.10 s", _SAID),
    Exempt("README.md", "sound: 0.68 s marimba.wav: 0.68 s in 0.14 s", _SAID),
    Exempt("README.md", "sound: 0.52 s review", _SAID),
    Exempt("README.md", "g5.wav: 0.52 s in 0.14 s", _SAID),
    Exempt("docs/api.md", "A sound too short to hear (30 ms)", "checked as a limit in test_examples.py"),
    Exempt("docs/api.md", f"({100 * (MARGIN - 1):.0f} % of margin included)", _LIMIT),
    Exempt("docs/api.md", f"586 samples, {586 / 16:.0f} ms, at 16 to 48 kHz", _FORMAT),
    Exempt("docs/bench.md", f"{PLAYABLE_SECONDS:g} s of them are there", _LIMIT),
    Exempt("docs/bench.md", f"above {100 * _COLD:g} % a note says that these are not the times", _LIMIT),
    Exempt("docs/bench.md", f"were sampled every {1000 * LOOK:g} ms", _LIMIT),
    Exempt("docs/bench.md", f"looked at every {1000 * LOOK:g} ms", _LIMIT),
    Exempt("docs/bench.md", f"about {1000 * BLOCK_SECONDS:g} ms where a frame lets it be", _LIMIT),
    Exempt("docs/bench.md", f"between any two, {1000 * READING_SECONDS:g} ms of passes", _LIMIT),
    Exempt("docs/bench.md", f"within {100 * (1 - NEAR_BEST):.0f} % of the run's best one", _LIMIT),
    Exempt(
        "docs/bench.md",
        f"about {1000 * BLOCK_SECONDS:g} ms is followed by a reading of {1000 * READING_SECONDS:g} ms",
        _LIMIT,
    ),
    Exempt("docs/bench.md", f"make blocks of about {1000 * BLOCK_SECONDS:g} ms", _LIMIT),
    Exempt("docs/bench.md", "above 100 % no engine can keep up", _LIMIT),
    Exempt("docs/bench.md", "A fraction above 100 % means", _LIMIT),
    Exempt("docs/bench.md", "with at least 95 % (order statistics", _LIMIT),
    Exempt("docs/bench.md", f"more than {100 * SMALLEST_EFFECT:g} % from 1", _LIMIT),
    Exempt("docs/bench.md", "a frame 5 times as fast as the reference", "a target"),
    Exempt("docs/bench.md", "the first exact frame within 5 % of prefill", "a target"),
    Exempt("docs/bench.md", f"(above {_QUIET:g} %, a note says that the machine was not quiet)", _LIMIT),
    Exempt("docs/architecture.md", "one codec time step (20 ms in the published models)", _FORMAT),
    *(
        Exempt("docs/gpu.md", f"| {stage.call} | {stage.limit:g} s", _LIMIT)
        for stage in {(each.call, each.limit): each for each in STAGES.values() if each.call}.values()
    ),
    Exempt("docs/gpu.md", "ended after 60 s, its limit", "an example of a message"),
    Exempt("docs/huggingface.md", "the loudest 20 ms its ends are", _LIMIT),
    Exempt(
        "docs/huggingface.md",
        f"{1000 * SILENCE_KEPT[0]:g} ms before and {1000 * SILENCE_KEPT[1]:g} ms after",
        _LIMIT,
    ),
    Exempt("docs/jetson.md", "Above 100 % it cannot be", _LIMIT),
    *(Exempt("docs/jetson.md", f"{name}, {DEVICES[device].bandwidth:g} GB/s |", "a data sheet")
      for name, device in (("Orin Nano 8GB", "orin-nano"), ("AGX Orin 64GB", "agx-orin"), ("Thor 128GB", "thor"))),
    Exempt("docs/jetson.md", f"The Orin Nano's {DEVICES['orin-nano'].bandwidth:g} GB/s", "a data sheet"),
    Exempt("docs/jetson.md", "| 26.5 ms, 133 % | 14.4 ms, 72 % | 8.0 ms, 40 % |", _PLAN),
    Exempt("docs/jetson.md", "| 13.2 ms, 66 % | 7.2 ms, 36 % | 4.0 ms, 20 % |", _PLAN),
    Exempt("docs/jetson.md", "| 9.9 ms, 50 % | 5.4 ms, 27 % | 3.0 ms, 15 % |", _PLAN),
    Exempt("docs/jetson.md", "| does not fit, 187 % |", _PLAN),
    Exempt("docs/jetson.md", "| 64.6 ms, 323 % | 34.6 ms, 173 % | 18.7 ms, 93 % |", _PLAN),
    Exempt("docs/jetson.md", "| 48.5 ms, 242 % | 26.0 ms, 130 % | 14.0 ms, 70 % |", _PLAN),
    Exempt("docs/jetson.md", "1.5B takes 5.1 ms, 25 %, and 3.8 GiB", _PLAN),
    Exempt("docs/limits.md", "300 s for Qwen2.5-Omni's encoder", "checked as a limit in test_examples.py"),
    Exempt("docs/limits.md", "| 30 ms (3 mel frames of 10 ms) |", "checked as a limit in test_examples.py"),
    Exempt("docs/limits.md", "20 ms of generated sound (50 frames a second and 7 rows of delay), or 40 ms", _FORMAT),
    Exempt("docs/precision.md", "off by 3.7 % (root mean square) with fp8 on both sides, by 2.7 % with fp8", _ROUNDING),
    Exempt("docs/precision.md", "by 0.5 % with int8 weights alone", _ROUNDING),
    Exempt("docs/precision.md", "off by 0.5 % there (root mean square), by 2.7 % in float8", _ROUNDING),
    Exempt("docs/precision.md", "int4 8.7 %, fp8 3.7 %, int8 0.5 %", _ROUNDING),
    Exempt("docs/precision.md", "fp8 reads 6 % fewer than int8", _PLAN),
    Exempt("docs/tensorrt.md", f"to {SHORT_SECONDS} s, to 300 s (AF-Whisper: its fixed 30 s)", "the engines' profiles"),
]  # fmt: skip


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def source_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ---- the pages ----


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_marked_figure_is_what_its_file_says(page: Path) -> None:
    wrong = list(mismatches(figures_of(name_of(page), source_of(page)), RESULTS))
    advice = "\npython tests/support/figures.py --write puts the files' numbers into the pages"
    assert not wrong, "\n".join(map(str, wrong)) + advice


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_figure_of_speed_names_its_file(page: Path) -> None:
    bare, idle = unmarked(name_of(page), source_of(page), EXEMPT)
    told = [f"{each.page}:{each.line}: {each.number} {each.unit} names no file: ...{each.context}..." for each in bare]
    told += [f"{each.page}: no such figure is left: {each.text!r}; strike it from EXEMPT" for each in idle]
    assert not told, "\n".join(told)


def test_exemptions_have_a_page_and_a_reason() -> None:
    assert {each.page for each in EXEMPT} <= {name_of(page) for page in PAGES}
    assert all(each.reason for each in EXEMPT)


def test_the_figures_that_are_quoted_come_from_many_files() -> None:
    """The search finds what it should: if it were broken, all pages would pass."""
    figures = [figure for page in PAGES for figure in figures_of(name_of(page), source_of(page))]
    marked = [figure for figure in figures if figure.marker]
    assert len(marked) > 100 and len({figure.page for figure in marked}) >= 5
    assert len([figure for figure in figures if figure.required and not figure.marker]) >= len(EXEMPT)


# ---- pages without marks, and how they are checked ----


def test_the_errors_of_rounding_are_those_of_our_formats() -> None:
    random = np.random.default_rng(0)
    weights = 0.02 * random.standard_normal((2048, 2048), dtype=np.float32)
    rows = random.standard_normal((256, 2048), dtype=np.float32)

    def off(found: np.ndarray, exact: np.ndarray) -> float:
        return 100 * float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))

    exact = rows @ weights
    codes, scale = float8.quantize(weights)
    narrow = float8.dequantize(codes, float(scale))
    fp8_rows = float8.round_values(rows, float8.scale_of(2 * float(np.abs(rows).max())))
    int4, int8 = (quantize.dequantize(*quantize.quantize(weights, dtype)) for dtype in ("int4", "int8"))
    both, alone = off(fp8_rows @ narrow, exact), off(rows @ narrow, exact)
    page = " ".join(source_of(ROOT / "docs/precision.md").split())
    sentences = {
        r"off by ([\d.]+) % \(root mean square\) with fp8 on both sides, by ([\d.]+) % with fp8 weights alone, "
        r"and by ([\d.]+) % with int8": (both, alone, off(rows @ int8, exact)),
        r"off by ([\d.]+) % there \(root mean square\), by ([\d.]+) % in float8": (
            off(int8, weights),
            off(narrow, weights),
        ),
        r"int4 ([\d.]+) %, fp8 ([\d.]+) %, int8 ([\d.]+) %": (off(rows @ int4, exact), both, off(rows @ int8, exact)),
    }
    for sentence, errors in sentences.items():
        (quoted,) = re.findall(sentence, page)
        assert [float(each) for each in quoted] == pytest.approx(errors, abs=0.1), sentence


def test_the_plan_of_the_boards_agrees_with_itself() -> None:
    """The share is the time of 50 frames in a second, and times of one model scale with the bandwidths."""
    page = source_of(ROOT / "docs/jetson.md")
    boards = {"Orin Nano 8GB": "orin-nano", "AGX Orin 64GB": "agx-orin", "Thor 128GB": "thor"}
    read: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for model, board, cells in re.findall(
        r"^\| (1\.5B|7B) \| (\w[\w ]+?)(?:, [\d.]+ GB/s)? \| (.*)$", page, re.MULTILINE
    ):
        for column, cell in enumerate(cells.split("|")):
            if found := re.fullmatch(r"([\d.]+) ms, (\d+) %", cell.strip()):
                ms, percent = map(float, found.groups())
                assert abs(percent - 5 * ms) <= 0.5 + 5 * 0.05, (model, board, cell)
                bandwidth = DEVICES[boards[board]].bandwidth
                read.setdefault((model, column), []).append(((ms - 0.05) * bandwidth, (ms + 0.05) * bandwidth))
    assert len(read) == 6
    for spans in read.values():
        assert len(spans) >= 2 and max(low for low, _ in spans) <= min(high for _, high in spans)


def test_the_model_card_is_what_its_training_and_its_judgements_make() -> None:
    folder = ROOT / "export/tiny/judging"
    card = source_of(folder / "MODEL_CARD.md")
    training = json.loads(source_of(folder / "training.json"))
    note = re.search(r"^- .*\n- (.*)\n- It reads English", card, re.MULTILINE)[1]  # type: ignore[index]
    kept = [name for name in ("int8", "fp32", "int4") if (folder / f"gates_{name}.json").is_file()]
    assert kept[0] == "int8", "the format that is shipped"
    examined = [(name, json.loads(source_of(folder / f"gates_{name}.json"))) for name in kept]
    assert card == model_card(training, examined, note)


# ---- the folder of results ----


def quoted_files() -> set[str]:
    markers = [figure.marker or "" for page in PAGES for figure in figures_of(name_of(page), source_of(page))]
    return {file for marker in markers for file in re.findall(r"([\w.-]+):[a-z]", marker)}


def test_every_result_is_quoted_or_explained_and_says_where_it_comes_from() -> None:
    explained = source_of(RESULTS / "README.md")
    quoted = quoted_files()
    for file in RESULTS.glob("*.json"):
        (report,) = read_report(file)
        assert file.stem in quoted or file.name in explained, (
            f"{file.name}: no page quotes it, and README.md says not why"
        )
        run = report.run
        assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", run.commit), f"{file.name}: run.commit = {run.commit!r}"
        assert not run.commit.endswith("-dirty") or file.name in explained, (
            f"{file.name} is -dirty; README.md says not so"
        )
        assert run.command and run.machine.cpu and run.machine.cores, file.name
        assert {"python", "numpy", "ualm"} <= run.versions.keys(), f"{file.name}: run.versions = {dict(run.versions)}"
        assert report.measurements, file.name


def test_what_is_named_there_is_there_and_what_is_said_to_be_unquoted_is() -> None:
    page = source_of(RESULTS / "README.md")
    named = set(re.findall(r"`(\w[\w.]*)\.json`", page))
    assert named and all((RESULTS / f"{name}.json").exists() for name in named), named
    unquoted = set(re.findall(r"`(\w[\w.]*)\.json`", page[page.index("No page quotes these") :].partition("\n\n")[0]))
    assert unquoted and not unquoted & quoted_files()


# ---- the search, the language, and rewriting ----


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one result, made from a kept one: two subjects, two contexts, a comparison."""
    (kept,) = read_report(RESULTS / "decode_1.5b_int4_vs_reference_bf16.json")
    mine, rival = (replace(kept.measurements[0].subject, name=name) for name in ("mine", "rival"))

    def frame(of: Subject, context: int, ms: float) -> Measurement:
        settings = {"context": context, "guidance": 3.0}
        return replace(kept.measurements[0], subject=of, settings=settings, summary=summarize([ms]))

    report = replace(
        kept,
        run=replace(kept.run, others_percent=2.04, bandwidth=replace(kept.run.bandwidth, best=64.0)),
        measurements=(frame(mine, 256, 40.54), frame(mine, 1024, 1234.5), frame(rival, 256, 222.6)),
        comparisons=(replace(kept.comparisons[0], subject=mine, other=rival, speedup=5.49, low=5.3, high=5.6),),
    )
    (tmp_path / "speed.json").write_text(write_json(report), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("speed:frame[subject=mine;context=256]", Value(40.54, "ms")),
        ("speed:frame[subject=rival]:max", Value(222.6, "ms")),
        ("speed:frame[subject=rival]:n", Value(1, "")),
        ("speed:frame:speedup", Value(5.49, "")),
        ("speed:frame[other=rival]:low", Value(5.3, "")),
        ("speed:frame[context=1024; guidance=3]", Value(1234.5, "ms")),
        ("speed:run.bandwidth.best", Value(64.0, "GB/s")),
        ("speed:run.machine.cores", Value(2, "")),
        ("speed:run.others_percent", Value(2.04, "%")),
        ("speed:frame[subject=rival] / speed:frame[subject=mine;context=256]", Value(222.6 / 40.54, "")),
        ("speed:frame[context=1024] - speed:frame[subject=rival]", Value(1234.5 - 222.6, "ms")),
        ("2 * (speed:frame[subject=rival] + speed:frame[context=1024])", Value(2 * (222.6 + 1234.5), "ms")),
    ],
)
def test_a_selector_names_one_value(results: Path, expression: str, value: Value) -> None:
    found = evaluate(expression, results)
    assert (found.number, found.unit) == (pytest.approx(value.number), value.unit)


def test_a_selector_reads_any_number_that_a_measurement_has(results: Path) -> None:
    (report,) = read_report(results / "speed.json")
    traffic = report.measurements[0].traffic
    numbers = {name: each for name, each in vars(traffic).items() if isinstance(each, (int, float))}
    assert numbers
    for name, number in numbers.items():
        assert evaluate(f"speed:frame[context=1024]:traffic.{name}", results).number == number
    assert evaluate("speed:frame[context=1024]:traffic.gb_per_second", results).unit == "GB/s"
    assert evaluate("speed:frame[context=1024]:traffic.body_bytes", results).unit == "B"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("speed:frame", r"3 values are speed:frame; speed\.json has frame\[scenario=decode;subject=mine"),
        ("speed:frames", r"0 values are speed:frames; speed\.json has frame$"),
        ("speed:frame[context=512]", "0 values"),
        ("speed:frame[mine]", r"\[mine\] is not NAME=VALUE"),
        ("speed:frame[subject=rival]:p75", "Measurement has no 'p75', but scenario"),
        ("speed:frame[subject=rival]:traffic", "no number"),
        ("speed:run.bandwith.best", "Run has no 'bandwith'"),
        ("slow:frame", "no such file"),
        ("speed:frame[subject=rival] ** 2", "is not a selector"),
        ("speed:frame[subject=rival] /", "is not a selector"),
        ("speed:frame[subject=rival] + speed:run.bandwidth.best", "'GB/s', and the page has 'ms'"),
        ("frame", "names no value"),
    ],
)
def test_a_selector_that_names_nothing_or_several_is_refused(results: Path, expression: str, problem: str) -> None:
    with pytest.raises(SelectorError, match=problem):
        evaluate(expression, results)


def wrong_in(source: str, results: Path) -> list[Mismatch]:
    return list(mismatches(figures_of("page.md", source), results))


MINE = "<!--= speed:frame[subject=mine;context=256] -->"


@pytest.mark.parametrize(
    "source",
    [
        f"A frame takes 40.5 ms{MINE}.",
        f"A frame takes 41{MINE} ms.",
        f"A frame takes **0.041 s**, that is 0.041 s{MINE}.",
        "It is 5.3<!--= speed:frame:low --> to 5.6 times<!--= speed:frame:high --> as fast.",
        "It reads 64.0 GB/s<!--= speed:run.bandwidth.best -->; others took 2 %<!--= speed:run.others_percent -->.",
        "|<!--in speed[subject=mine] --> a | 1,234 ms<!--= :frame[context=1024] --> | 41<!--= :frame[context=256] -->|",
        "| | frame, ms |\n|---|---|\n| mine | 40.5" + MINE + " |",
        "It took 1.2 s<!--= speed:frame[context=1024] -->, 4.05e1<!--= speed:frame[subject=mine;context=256] --> ms.",
    ],
)
def test_a_true_figure_passes_in_any_place_and_unit(results: Path, source: str) -> None:
    assert wrong_in(source, results) == []


def test_a_changed_digit_is_told_with_both_numbers_and_put_right(results: Path) -> None:
    source = f"Title\n\nIt takes 40.4 ms{MINE}, or 1,239 ms<!--= speed:frame[context=1024] -->; 7 frames.\n"
    wrong = wrong_in(source, results)
    assert [str(each).partition(": the file")[2] for each in wrong] == [
        " says 40.5 (40.54 ms)",
        " says 1,234 (1234.5 ms)",
    ]
    assert str(wrong[0]).startswith("page.md:3: 40.4 ms <!--= speed:frame[subject=mine;context=256] -->")
    mended = rewritten(source, wrong)
    assert mended == source.replace("40.4", "40.5").replace("1,239", "1,234")
    assert wrong_in(mended, results) == []


def test_a_marker_that_names_nothing_is_told_and_nothing_is_written(results: Path) -> None:
    source = "It takes 40.4 ms<!--= speed:frames -->."
    (wrong,) = wrong_in(source, results)
    assert wrong.right is None and "0 values are speed:frames" in wrong.problem
    assert rewritten(source, [wrong]) == source


def test_a_marker_behind_no_figure_is_refused() -> None:
    with pytest.raises(SelectorError, match=r"page\.md:2: <!--= speed:frame --> stands behind no figure"):
        figures_of("page.md", "It is fast,\nvery fast<!--= speed:frame -->.")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("It takes 40.5 ms, or 3 s.", ["40.5 ms", "3 s"]),
        ("At 5 %, 1.05 x the time, 4 times.", ["5 %", "1.05 x", "4 times"]),
        ("At 19 GB/s, 55 ns, 3-fold.", ["19 GB/s", "55 ns", "3 fold"]),
        ("From 1.28 to 1.31 x; 2.9, 10 and **40 ms**; -0.2 or 3 percent.",
         ["1.28 x", "1.31 x", "2.9 ms", "10 ms", "40 ms", "-0.2 percent", "3 percent"]),
        ("RTF 2.19, or an RTF of 3.", ["2.19 RTF", "3 RTF"]),
        ("It takes 40.5\nms.", ["40.5 ms"]),
        ("| | time, ms | rows |\n|---|---|---|\n| a | 7 | 8 |\n\n| b | 9 |", ["7 ms"]),
        ("It reads at half of the memory's bandwidth.", ["half "]),
        ("```text\nmade in 0.10 s\n```", ["0.10 s"]),
        ("```bash\nsleep 3 s\n```\nand `--wait 3 s`, [4 s](#a-4-s)", ["4 s"]),
        ("Tiles of 32 x 32, 2 branches x 2 (keys), 1.5B, sm89, 16 kHz, 20 MiB, int4 s", []),
        ("<!-- 3 ms -->", []),
    ],
)  # fmt: skip
def test_figures_are_found_by_their_units(source: str, found: list[str]) -> None:
    assert [f"{each.number} {each.unit}" for each in figures_of("page.md", source)] == found


def test_an_exemption_holds_for_its_very_text_and_must_hold_something() -> None:
    source = "It takes 3 s here,\nand 3 s there."
    here = Exempt("page.md", "3 s here", "a reason")
    bare, idle = unmarked("page.md", source, [here])
    assert [each.line for each in bare] == [2] and not idle
    assert not unmarked("page.md", source, [here, Exempt("page.md", "and 3 s there", "a reason")])[0]
    gone = [Exempt("page.md", "4 s here", ""), Exempt("page.md", "It takes", "")]
    assert unmarked("page.md", source, gone)[1] == gone
    assert unmarked("page.md", source, [replace(here, page="other.md")]) == unmarked("page.md", source, [])


@pytest.mark.parametrize(
    ("quoted", "number", "text"),
    [
        ("40.5", 40.54, "40.5"), ("1,053", 987.0, "987"), ("987", 1052.8, "1,053"), ("16384", 16384.2, "16384"),
        ("-0.2", 0.04, "0.0"), ("1.1e-3", 0.00106, "1.1e-3"), ("4e-4", 0.0123, "1e-2"), ("3", -0.2, "0"),
    ],
)  # fmt: skip
def test_a_number_is_written_as_the_one_it_replaces(quoted: str, number: float, text: str) -> None:
    assert written_like(quoted, number) == text


@pytest.fixture
def checkout(tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bool], tuple[int, str]]:
    """Runs the program on one page; returns its status, and the page afterwards."""
    page = tmp_path / "page.md"

    def run(source: str, write: bool) -> tuple[int, str]:
        page.write_text(source, encoding="utf-8")
        monkeypatch.setattr("support.figures.PAGES", [page])
        monkeypatch.setattr("support.figures.ROOT", tmp_path)
        monkeypatch.setattr("support.figures.RESULTS", results)
        monkeypatch.setattr("sys.argv", ["figures.py", *["--write"] * write])
        return main(), page.read_text(encoding="utf-8")

    return run


def test_the_program_tells_and_writes(
    checkout: Callable[[str, bool], tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = f"It takes 44.4 ms{MINE}.", f"It takes 40.5 ms{MINE}."
    assert checkout(old, False) == (1, old)
    assert "page.md:1: 44.4 ms" in capsys.readouterr().out
    assert checkout(old, True) == (0, new)
    assert checkout(new, False) == (0, new)
    lost = old.replace("speed:frame", "gone:frame")
    assert checkout(lost, True) == (1, lost)


@pytest.mark.parametrize("change", ["a digit", "a marker"])
def test_a_change_to_a_real_page_is_noticed(change: str, tmp_path: Path) -> None:
    page = ROOT / "README.md"
    source = source_of(page)
    figure = next(each for each in figures_of("README.md", source) if each.marker and each.required)
    if change == "a digit":
        digit = str((int(figure.number[-1]) + 5) % 10)
        changed = source[: figure.end - 1] + digit + source[figure.end :]
        assert [each.right for each in mismatches(figures_of("README.md", changed), RESULTS)] == [figure.number]
    else:
        bare = re.sub(r"<!--=.*?-->", "", source, count=1, flags=re.DOTALL)
        assert [each.number for each in unmarked("README.md", bare, EXEMPT)[0]] == [figure.number]


def test_a_result_that_changes_is_noticed(tmp_path: Path) -> None:
    for file in RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path)
    name, settings = "load_1.5b_int4.json", ("anonymous_steady", "warm")
    (report,) = read_report(RESULTS / name)
    changed = [
        replace(each, summary=summarize([2500.0])) if (each.figure, each.settings["pages"]) == settings else each
        for each in report.measurements
    ]
    (tmp_path / name).write_text(write_json(replace(report, measurements=tuple(changed))), encoding="utf-8")
    figures = figures_of("README.md", source_of(ROOT / "README.md"))
    quoted = [each for each in figures if each.marker == "load_1.5b_int4:anonymous_steady[pages=warm]"]
    assert quoted and not list(mismatches(quoted, RESULTS))
    assert [each.right for each in mismatches(figures, tmp_path)] == [
        written_like(each.number, 2500 * 2**20 / 1e9) for each in quoted
    ]
