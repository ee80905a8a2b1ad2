"""What the manifest says about a compiled engine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ualm.runtime.bundle.compiled import EngineFile, EngineProfile

PROFILE = EngineProfile("decode", {"columns": ((1,), (256,), (512,))}, {})
ENTRY = EngineFile("backbone", "tensorrt", "b.engine", "10.3.0", (87,), "graph", "weights", 512, (PROFILE,))


@pytest.mark.parametrize("cache", ["in_place", "appended"])
def test_an_entry_comes_back_as_it_went(cache: str) -> None:
    entry = replace(ENTRY, cache=cache)  # type: ignore[arg-type]
    assert EngineFile.from_json(json.loads(json.dumps(entry.to_json()))) == entry


def test_an_entry_of_before_there_were_two_kinds_of_cache_is_written_in_place() -> None:
    entry = ENTRY.to_json()
    assert "cache" not in entry
    assert EngineFile.from_json(entry).cache == "in_place"


@pytest.mark.parametrize("cache", ["elsewhere", None, 1])
def test_an_unknown_kind_of_cache_is_refused(cache: object) -> None:
    with pytest.raises(ValueError, match=f"engines: cache = {cache!r}"):
        EngineFile.from_json(ENTRY.to_json() | {"cache": cache})
