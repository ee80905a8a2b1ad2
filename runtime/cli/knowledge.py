"""What the ``ualm`` command says about what a model knows: in its help, and once for a prompt about something else."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from typer.core import TyperCommand

from ..bundle.bundle import Bundle
from ..bundle.packaged import packaged_bundle
from ..errors import UalmError
from ..model import Model

#: Characters of a prompt that are quoted.
_MOST_PROMPT = 60


class Outside:
    """Checks the prompts of one process or conversation, and remarks on one of them at most."""

    def __init__(self, model: Model, *, quiet: bool = False) -> None:
        self._model, self._quiet = model, quiet
        #: Whether a prompt was about nothing that the model knows; None if its bundle does not say what that is.
        self.found: bool | None = None if model.knows is None else False

    def remark(self, prompt: str) -> str | None:
        """One line about the first prompt that shares nothing with what the model knows; None for all others."""
        if self.found or self._model.knows is None or not self._model.outside(prompt):
            return None
        self.found = True
        shown = textwrap.shorten(prompt, _MOST_PROMPT, placeholder=" ...")
        about = self._model.knows.about.rstrip(".")
        return f"this model knows {about}; nothing in {shown!r} is about that; the result will be something else"

    def warn(self, prompt: str) -> None:
        """As :meth:`remark`, to standard error, unless notices are off."""
        if (line := self.remark(prompt)) is not None and not self._quiet:
            print(f"ualm: {line}", file=sys.stderr, flush=True)

    def checked(self, prompts: Iterable[str]) -> Iterator[str]:
        """The prompts as they arrive, each checked."""
        for prompt in prompts:
            self.warn(prompt)
            yield prompt


class KnowingCommand(TyperCommand):
    """A verb whose help ends with what the model that comes with ualm knows, if that is the one that would run."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        about = _packaged_about()
        if about is not None:
            formatter.write_paragraph()
            formatter.write_text(f"The model that comes with ualm, which runs where no bundle is named, knows {about}.")


def _packaged_about() -> str | None:
    """What it knows, in the words of its bundle; None if another would run, or it cannot be read."""
    folder = packaged_bundle()
    if folder is None or os.environ.get("UALM_BUNDLE"):
        return None
    try:
        knows = Bundle(folder, verify="never").manifest.knows
    except UalmError:  # reported when it is run
        return None
    return None if knows is None else knows.about.rstrip(".")
