"""Commands that the documentation shows exist, with every option that they are shown with, and each has an example."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from ualm.runtime.cli.main import app
from ualm.runtime.cli.verbs.bench import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "bench").rglob("*.md"))]
_SHELL = re.compile(r"^```(?:bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(ualm [a-z][^`]*)`")
#: What may stand before a command in a line of a shell, and what ends it.
_BEFORE, _AFTER = re.compile(r"^(?:\$ |.*?&& )?(?:\S*/)?ualm(?= )"), {"|", ">", "<", ";", "&&", "..."}


def commands(text: str) -> Iterator[list[str]]:
    """The words behind ``ualm`` of each command on a page."""
    lines = [line for block in _SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *(each.replace("\n", " ") for each in _INLINE.findall(text))]:
        if _BEFORE.match(line):
            words = shlex.split(_BEFORE.sub("", line), comments=True)
            ends = [at for at, word in enumerate(words) if word in _AFTER]
            yield words[: min(ends, default=len(words))]


def names(group: TyperGroup, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield (*above, name), command
        if isinstance(command, TyperGroup):
            yield from names(command, *above, name)


def problem(words: list[str]) -> str | None:
    command: Any = typer.main.get_command(app)
    at = 0
    while isinstance(command, TyperGroup) and at < len(words) and not words[at].startswith("-"):
        if words[at] not in command.commands:
            return None if re.fullmatch(r"[A-Z.]+", words[at]) else f"no command {words[at]!r}"
        command = command.commands[words[at]]
        at += 1
    if command.name in PROGRAMS:
        return None  # its options are those of a program, and its own tests have them
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    if isinstance(command, TyperGroup) and at:
        known |= {option for each in command.commands.values() for one in each.params for option in one.opts}
    for word in words[at:]:
        if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known:
            return f"{command.name} has no {word}"
    return None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [f"ualm {' '.join(words)}: {found}" for words in commands(text) if (found := problem(words))]
    assert not wrong, "\n".join(wrong)


def test_each_verb_has_an_example() -> None:
    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("cli.md", "bench.md"))
    shown = list(commands(text))
    assert len(shown) > 40
    for path, command in names(typer.main.get_command(app)):  # type: ignore[arg-type]
        if not isinstance(command, TyperGroup) and path[-1] not in PROGRAMS:
            assert any(tuple(words[: len(path)]) == path for words in shown), f"no example of ualm {' '.join(path)}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ualm generat rain", "no command 'generat'"),
        ("$ .venv/bin/ualm generate rain --sed 7 -o a.wav | aplay --rate 3", "generate has no --sed"),
        ("pip install . && ualm bench decod", "no command 'decod'"),
        ("ualm bench decode bundle --contexts=3", "decode has no --contexts=3"),
        ("ualm bench random-run x --shape 7b", None),
        ("ualm --version", None),
    ],
)
def test_a_wrong_one_is_found(line: str, found: str | None) -> None:
    (words,) = commands(f"```bash\n{line}   # comment\n```\n")
    assert problem(words) == found
