from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ualm.bench.harness import measure as scenario
from ualm.bench.meters.bandwidth import BandwidthMeter
from ualm.bench.report.schema import Report, from_json


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The read bandwidth is measured with a buffer so small that it takes no time; its value is meaningless then."""
    monkeypatch.setattr(scenario, "BandwidthMeter", partial(BandwidthMeter, buffer_bytes=1 << 20, reading_seconds=1e-4))


@pytest.fixture
def bench(ualm: Callable[..., tuple[int, str, str]], small_buffer: None) -> Callable[..., Report]:
    """Runs ``ualm bench ... --format json`` with one thread and returns the report."""
    import json

    def run(*arguments: Any) -> Report:
        status, out, err = ualm("bench", *arguments, "--threads", 1, "--format", "json")
        assert (status, err) == (0, "")
        document = json.loads(out)
        assert (document.pop("schema"), document.pop("version")) == ("ualm-bench", 4)
        return from_json(Report, document)

    return run
