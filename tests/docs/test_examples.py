"""The documentation is correct: its examples run, its links resolve, its tables match the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import soundfile

import ualm.runtime
from support.runs import make_run
from support.sounds import make_sound
from ualm.runtime import AudioSampling, InputError, Model, TextSampling, errors
from ualm.runtime.audio import feature_cache
from ualm.runtime.conversation import events, state, worker
from ualm.runtime.conversation.resources import DEFAULT_CONTEXT
from ualm.runtime.sampling import SHORTEST_SOUND_ROWS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
#: Fences that are not run; anything else except ``python`` is a typo.
NOT_RUN = {"bash", "text", "json"}

_FENCE = re.compile(r"^([ ]*)```([^\n`]*)\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its tag, the number of its first line, and its contents."""

    tag: str
    line: int
    code: str


def blocks(page: str) -> list[Block]:
    found = []
    for match in _FENCE.finditer(page):
        indent, tag, code = match.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
        found.append(Block(tag.strip(), page.count("\n", 0, match.start(3)) + 1, "".join(lines)))
    return found


def run_examples(page: Path) -> dict[str, Any]:
    """Run the python blocks of a page in order and in one namespace; a traceback names the page and its line."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.tag == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True)
            exec(code, namespace)
    return namespace


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, as for a reader, and the packaged model: an example reads only what earlier ones have made."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("UALM_BUNDLE", "UALM_ENGINE"):
        monkeypatch.delenv(variable, raising=False)
    yield tmp_path / "work"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_examples_run(page: Path, workplace: Path, tmp_path: Path) -> None:
    if page.name == "huggingface.md":  # it begins with the reader's own training run and recording
        (workplace / "exp").mkdir()
        (workplace / "exp" / "my_run").symlink_to(make_run(tmp_path / "run").folder)
        soundfile.write(workplace / "dog.wav", make_sound(0.4).T, 16000)
    namespace = run_examples(page)
    if page.name == "limits.md":
        model = namespace["model"]
        assert namespace["row_bytes"] == model.resources.engine.bytes_per_row, (
            "the formula for the bytes of a row is wrong"
        )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_is_closed_and_tagged(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found)
    assert {block.tag for block in found} <= {"python", *NOT_RUN}


def test_the_pages_that_promise_examples_have_some() -> None:
    for name in ("README.md", "docs/api.md", "docs/limits.md"):
        assert any(block.tag == "python" for block in blocks((ROOT / name).read_text(encoding="utf-8"))), name


def test_an_example_that_fails_is_told_by_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\na = 1\n```\n\n```text\n1 / 0\n```\n\n```python\na += 1\nassert a == 3\n```\n"
    )
    with pytest.raises(AssertionError) as caught:
        run_examples(page)
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (str(page), 13)


# ---- links ----


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them: lower case, spaces to hyphens, punctuation removed."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists() and target.is_relative_to(ROOT), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in headings(target), f"{name_of(page)}: {link}"


# ---- tables ----


def page_text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def table(text: str, *columns: str) -> list[list[str]]:
    """Cells of the rows of the table whose header begins with these columns; an empty first cell repeats the last."""
    lines = text.splitlines()
    header = next(n for n, line in enumerate(lines) if line.startswith("| " + " | ".join(columns) + " |"))
    rows: list[list[str]] = []
    for line in lines[header + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        rows.append([cells[0] or rows[-1][0], *cells[1:]])
    return rows


def public_classes(module: ModuleType) -> dict[str, type]:
    found = inspect.getmembers(module, inspect.isclass)
    return {name: kind for name, kind in found if kind.__module__ == module.__name__ and not name.startswith("_")}


def test_the_table_of_errors_names_every_class_with_its_base() -> None:
    rows = table(page_text("limits.md"), "class", "when")
    described = {re.match(r"`(\w+)`", row[0]).group(1): row[0] for row in rows}  # type: ignore[union-attr]
    classes = public_classes(errors)
    assert sorted(described) == sorted(classes) and len(rows) == len(classes)
    for name, kind in classes.items():
        others = [base.__name__ for base in kind.__bases__ if base not in (errors.UalmError, Exception)]
        assert re.findall(r"`(\w+)`", described[name])[1:] == others, name


def test_the_table_of_events_names_every_class_and_field() -> None:
    rows = table(page_text("api.md"), "event", "field")
    classes = public_classes(events)
    assert set(classes.values()) == set(get_args(events.Event))
    expected = [(f"`{kind.__name__}`", f"`{field.name}`") for kind in get_args(events.Event) for field in fields(kind)]
    assert [(row[0], row[1]) for row in rows] == expected


def test_the_table_of_options_has_the_defaults() -> None:
    rows = table(page_text("api.md"), "field", "audio", "text")
    audio, text = AudioSampling(), TextSampling()
    expected = [
        [f"`{field.name}`", str(getattr(audio, field.name)), str(getattr(text, field.name))]
        for field in fields(AudioSampling)
    ]
    assert [row[:3] for row in rows] == expected


def test_every_public_name_is_documented() -> None:
    text = page_text("api.md") + page_text("limits.md")
    for name in ualm.runtime.__all__:
        assert name == "__version__" or re.search(rf"\b{name}\b", text), name


def test_the_table_of_limits_has_the_defaults(tiny_bundle: Path) -> None:
    defaults = {row[0]: row[1] for row in table(page_text("limits.md"), "limit", "default")}
    limits = state.Limits()
    assert defaults["rows of a conversation"].startswith(f"{DEFAULT_CONTEXT:,},")
    assert (defaults["bytes of a session's cache"], limits.memory) == ("none", None)
    assert (defaults["seconds of a turn"], limits.seconds) == ("none", float("inf"))
    assert defaults["segments of a turn"] == str(limits.segments)
    assert defaults["segments of a turn"] == str(inspect.signature(Model.run).parameters["max_segments"].default)
    assert defaults["rows of a segment"].startswith(f"{AudioSampling().max_steps:,},")
    assert defaults["events that wait for a slow consumer"] == str(worker.QUEUE_EVENTS)
    assert defaults["features of sounds kept for reuse, a model"] == f"{feature_cache.CACHE_BYTES >> 20} MiB"
    with Model.open(tiny_bundle, threads=1, max_context=256, verify="never") as model:
        spec = model.bundle.manifest.features
    assert defaults["shortest sound heard"].startswith(f"{1000 * spec.min_samples / spec.sample_rate:g} ms")
    assert f"{spec.max_samples / spec.sample_rate:g} s" in defaults["longest sound heard"]


def test_the_least_number_of_rows_of_a_sound_is_told() -> None:
    row = next(row for row in table(page_text("limits.md"), "limit", "default") if row[0] == "rows of a segment")
    assert f"({SHORTEST_SOUND_ROWS} or more)" in row[2]
    with pytest.raises(InputError):
        ualm.runtime.sampling.check_options("fixed", AudioSampling(max_steps=SHORTEST_SOUND_ROWS - 1), TextSampling())


def test_the_figures_of_the_large_shape_follow_from_the_formula() -> None:
    rows = {row[0]: row[1:] for row in table(page_text("limits.md"), "what", "rows")}
    branch = 2 * 4 * 28 * 2 * 128
    assert rows["one row"] == ["1", *(f"{n * branch:,} B = {n * branch // 1024} KiB" for n in (2, 1))]
    for name, count, unit, power, digits in (
        ("a second of heard sound", 25, "MiB", 20, 1),
        ("a second of generated sound", 50, "MiB", 20, 1),
        ("the default context, full", DEFAULT_CONTEXT, "GiB", 30, 2),
    ):
        assert rows[name] == [f"{count:,}", *(f"{n * branch * count / 2**power:.{digits}f} {unit}" for n in (2, 1))]
