"""Figures that the pages quote: each has a marker that names its file in ``bench/results``.

``python tests/support/figures.py`` says which pages disagree with the files, and ``--write`` puts the files' numbers
into the pages. A marker is an HTML comment right after a number and its unit, invisible to readers; the language is
described in ``bench/results/README.md``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # as a program, it is outside its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.kept_values import SelectorError, evaluate, scoped
from ualm.runtime.files.writing import replacing_file

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), RESULTS / "README.md"]

#: Units whose figures must name their file. ``x`` between two sizes is a product, not a unit.
_REQUIRED = r"GB/s|milliseconds|seconds?|percent|times|fold|RTF|ms|ns|s|%|x(?!\s?[\d(])"
_UNIT = rf"(?:{_REQUIRED}|[KMG]iB|[kMG]B|B|nats?|dB)(?![\w/])|%"
_NUMBER = r"(?<![\w.])(?:(?<![^\s(|])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?(?![\d])"
_FIGURE = re.compile(rf"(?P<number>{_NUMBER})(?:[\s-]?(?P<unit>{_UNIT}))?")
#: Between the numbers of a range or a list, which share the unit of the last.
_AND = re.compile(r"(?:\*\*)?\s*(?:to|and|or|,|/|-|, and)\s*(?:\*\*)?")
_RTF = re.compile(r"\bRTF(?: of)? $")
_MARKER = re.compile(r"<!--=\s*(.*?)\s*-->", re.DOTALL)
_SCOPE = re.compile(r"<!--in\s+(.*?)\s*-->")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r"^([ ]*)```([^\n`]*)\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)
#: Shares in words, of quantities that the bench measures.
_WORDS = re.compile(
    r"\b(?:half|thirds?|quarters?|fifths?|tenths?|twentieths?)\b"
    r"(?=\s+(?:of\s+)?(?:the\s+|its\s+|that\s+)?(?:\w+'s?\s+|memory\s+)?(?:bandwidth|time|speed|rate)\b)"
)


@dataclass(frozen=True)
class Figure:
    """A number on a page. ``start``, ``end``: the position of its digits in the source; ``unit``: written beside it, at
    the end of its range or in the header of its column; "" if there is none. ``marker``: what it claims to equal.
    ``required``: whether it must name a file."""

    page: str
    line: int
    start: int
    end: int
    number: str
    unit: str
    marker: str | None
    required: bool
    context: str


@dataclass(frozen=True)
class Mismatch:
    """A marked figure that differs from its file, or whose marker names nothing (``right`` is None)."""

    figure: Figure
    right: str | None
    problem: str

    def __str__(self) -> str:
        figure = self.figure
        return f"{figure.page}:{figure.line}: {figure.number} {figure.unit} <!--= {figure.marker} -->: {self.problem}"


@dataclass(frozen=True)
class Exempt:
    """A text with figures that no result contains. It must occur in ``page``, and contain a figure."""

    page: str
    text: str
    reason: str


def figures_of(page: str, source: str) -> list[Figure]:
    """The figures of a page: those with a unit that must be backed, and those that are marked. Raises
    :class:`SelectorError` for a marker that follows no figure."""
    text, places, markers = _without_comments(_without_code(source))
    units_of_columns = _Columns(text)

    def line(at: int) -> int:
        return source.count("\n", 0, places[at]) + 1

    def figure(start: int, end: int, unit: str, marker: str | None, required: bool) -> Figure:
        around = " ".join(text[max(0, start - 60) : end + 40].split())
        span = places[start], places[end - 1] + 1
        return Figure(page, line(start), *span, text[start:end], unit, marker, required, around)

    found = [figure(*match.span(), "", None, True) for match in _WORDS.finditer(text)]
    behind: tuple[int, str] | None = None  # where the number after this one begins, and its unit
    for match in reversed(list(_FIGURE.finditer(text))):
        start, end = match.span("number")
        unit = " ".join((match["unit"] or "").split())
        if not unit and behind and _AND.fullmatch(text, end, behind[0]):
            unit = behind[1]
        if not unit and _RTF.search(text, max(0, start - 8), start):
            unit = "RTF"
        behind = start, unit
        unit = unit or units_of_columns.at(start)
        marker = markers.pop(match.end(), None) or markers.pop(end, None)
        required = bool(re.fullmatch(_REQUIRED, unit))
        if marker is not None or required:
            found.append(figure(start, end, unit, marker, required))
    for at, marker in markers.items():
        raise SelectorError(f"{page}:{line(max(0, at - 1))}: <!--= {marker} --> stands behind no figure")
    return sorted(found, key=lambda each: each.start)


def unmarked(page: str, source: str, exempt: Sequence[Exempt]) -> tuple[list[Figure], list[Exempt]]:
    """Figures that must name a file but neither do nor are exempt; and exemptions of the page that contain no
    figure."""
    open_figures = [figure for figure in figures_of(page, source) if figure.required and figure.marker is None]
    idle, spans = [], []
    for each in exempt:
        if each.page == page:
            pattern = r"\s+".join(map(re.escape, each.text.split()))
            here = [match.span() for match in re.finditer(pattern, source)]
            if not any(a <= figure.start and figure.end <= b for a, b in here for figure in open_figures):
                idle.append(each)
            spans += here
    return [figure for figure in open_figures if not any(a <= figure.start and figure.end <= b for a, b in spans)], idle


def mismatches(figures: Sequence[Figure], folder: Path) -> Iterator[Mismatch]:
    """Marked figures that differ from their file's value rounded to the quoted precision."""
    for figure in figures:
        if figure.marker is None:
            continue
        try:
            value = evaluate(figure.marker, folder)
            right = written_like(figure.number, value.to(figure.unit or value.unit))
        except SelectorError as error:
            yield Mismatch(figure, None, str(error))
            continue
        if right != figure.number:
            yield Mismatch(figure, right, f"the file says {right} ({value.number:g} {value.unit})")


def rewritten(source: str, wrong: Sequence[Mismatch]) -> str:
    """The page with numbers that differ replaced by the files'; adapting the words around them is left to a person."""
    for each in sorted(wrong, key=lambda each: each.figure.start, reverse=True):
        if each.right is not None:
            source = source[: each.figure.start] + each.right + source[each.figure.end :]
    return source


def written_like(quoted: str, number: float) -> str:
    """``number`` rounded to the decimals of ``quoted``, with the same thousands separators."""
    digits = quoted.replace(",", "")
    mantissa, exponent, _ = digits.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if exponent:
        head, _, power = f"{number:.{decimals}e}".partition("e")
        return f"{head}e{int(power)}"
    parted = "," if "," in quoted or len(digits.lstrip("-").partition(".")[0]) < 4 else ""
    text = f"{number:{parted}.{decimals}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text


def _without_code(source: str) -> str:
    """Replaces code (commands, programs, data) with blanks. Output of programs (``text``) is kept, and so are examples
    of markers (``markdown``)."""

    def blank(match: re.Match[str]) -> str:
        kept = match.re is _FENCE and match[2].strip() in ("text", "markdown")
        return match[0] if kept else re.sub(r"[^\n]", " ", match[0])

    text = _FENCE.sub(blank, source)
    text = re.sub(r"`[^`\n]+`", lambda match: re.sub(r".", "`", match[0]), text)
    return re.sub(r"\]\([^)\s]*\)", lambda match: "]" + "(" * (len(match[0]) - 1), text)


def _without_comments(source: str) -> tuple[str, list[int], dict[int, str]]:
    """The text without its comments; the original position of each character; and the markers, by the position in the
    text that they follow."""
    kept: list[str] = []
    places: list[int] = []
    markers: dict[int, str] = {}
    scopes: dict[int, str] = {}
    at = 0
    for match in _COMMENT.finditer(source):
        kept.append(source[at : match.start()])
        places += range(at, match.start())
        if scope := _SCOPE.fullmatch(match[0]):
            scopes[source.count("\n", 0, match.start())] = scope[1]
        if marker := _MARKER.fullmatch(match[0]):
            line = source.count("\n", 0, match.start())
            markers[len(places)] = scoped(" ".join(marker[1].split()), scopes.get(line))
        at = match.end()
    kept.append(source[at:])
    places += range(at, len(source))
    return "".join(kept), places, markers


class _Columns:
    """Units in the headers of tables."""

    def __init__(self, text: str) -> None:
        self._cells: list[tuple[int, int, str]] = []
        units: list[str] | None = None
        at = 0
        for line in text.splitlines(keepends=True):
            if not line.startswith("|"):
                units = None
            elif units is None:
                units = [_unit_of(cell) for cell in line.strip().strip("|").split("|")]
            else:
                start = at + 1
                for unit, cell in zip(units, line.removeprefix("|").split("|"), strict=False):
                    if unit:
                        self._cells.append((start, start + len(cell), unit))
                    start += len(cell) + 1
            at += len(line)

    def at(self, place: int) -> str:
        """The unit in the header of the column that contains a position of the text, or ""."""
        return next((unit for start, end, unit in self._cells if start <= place < end), "")


def _unit_of(head: str) -> str:
    found = re.search(rf"(?<![\w/'])(?:{_REQUIRED})(?![\w/'])|%", head)
    return found[0] if found else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the numbers of the files into the pages")
    write, wrong = parser.parse_args().write, 0
    for page in PAGES:
        source = page.read_text(encoding="utf-8")
        try:
            found = list(mismatches(figures_of(page.relative_to(ROOT).as_posix(), source), RESULTS))
        except SelectorError as error:  # a marker that follows no figure
            print(error)
            wrong += 1
            continue
        print("\n".join(map(str, found)), end="\n" if found else "")
        if write:
            with replacing_file(page) as temporary:
                temporary.write_text(rewritten(source, found), encoding="utf-8")
        wrong += sum(each.right is None or not write for each in found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
