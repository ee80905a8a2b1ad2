"""docs/README.md links to every page of the documentation, once and in one line."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_page_has_its_line() -> None:
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \| (.+) \|$", (DOCS / "README.md").read_text(encoding="utf-8"), re.M)
    assert all(name == link and about.strip() for name, link, about in rows)
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"README.md"}
    assert sorted(link for _, link, _ in rows) == sorted(pages)
