from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.packaged import PROMPT
from ualm.runtime import Model, Sound


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """The model that comes with ualm; files that use another model have their own fixture."""
    with Model.open(threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def trumpet(model: Model) -> Sound:
    """A sound of two notes, which that model made."""
    return model.generate(PROMPT, seed=7)
