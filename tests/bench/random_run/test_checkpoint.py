"""Checkpoints that are laid out first and filled later; ``test_run`` covers what torch reads from complete ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ualm.bench.random_run.checkpoint import Filling, lay_out
from ualm.bench.random_run.run import CHECKPOINT
from ualm.runtime.errors import OutputError


def test_values_that_do_not_fit_their_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    layout = {name: torch.empty(6, dtype=torch.bfloat16, device="meta") for name in ("a", "b")}
    lay_out(path, layout)
    values = torch.arange(6).to(torch.bfloat16)
    with open(path, "r+b") as file:
        filling = Filling(file, layout, lambda stage, done, total: None)
        for wrong in ([values[:5]], [values, values[:1]]):
            with pytest.raises(ValueError, match=r"a: .* bytes given, 12 laid out"):
                filling.write("a", wrong)
        filling.write("b", [values[:2], values[2:]])
        with pytest.raises(ValueError, match="a: laid out, and never written"):
            filling.finish()
        filling.write("a", [-values])
        filling.finish()
    loaded = torch.load(path, weights_only=True)["module"]
    assert torch.equal(loaded["a"], -values) and torch.equal(loaded["b"], values)


def test_a_writer_that_fails_without_a_word_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match=r"states\.pt: not written \(RuntimeError\)$"):
        lay_out(tmp_path / "states.pt", {"weight": torch.zeros(2)})
