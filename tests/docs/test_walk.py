"""The walk in docs/architecture.md: each of its lives names files that exist, and each of them once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SECTION = re.compile(r"^## (Life of [^\n]+)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
LIVES = dict(_SECTION.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))


def test_there_are_four_lives() -> None:
    assert len(LIVES) == 4


@pytest.mark.parametrize("life", LIVES)
def test_its_files_exist_and_are_entered_once(life: str) -> None:
    """A file is named by its path below the root or below runtime/; or from the folder that was named last."""
    folder, found = ROOT, []
    for name in re.findall(r"`([\w/.-]+\.(?:py|h|cpp|cu)|[\w/-]+/)`", LIVES[life]):
        places = [folder / name, *([ROOT / name, ROOT / "runtime" / name] if "/" in name else [])]
        place = next((each for each in places if each.exists()), None)
        assert place is not None, f"{life}: no {name}"
        folder = place if place.is_dir() else place.parent
        found.append(place)
    assert len(found) >= 3
    files = [place.relative_to(ROOT).as_posix() for place in found if place.is_file()]
    assert len(files) == len(set(files)), (
        f"{life}: named twice: {sorted({each for each in files if files.count(each) > 1})}"
    )
