"""What a command prints: its result on standard output, for people or for programs, and notices about the engine."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping

from rich.console import Console

from ..engines.registry import Choice
from ..process.standard_streams import StandardOutputError, not_printed
from .tables import CONTROLS

#: Progress goes to standard error, and only if that is a terminal.
progress = Console(stderr=True)


def tell_engine(choice: Choice) -> None:
    """One line on standard error about the engine that was chosen, where there is anything to choose."""
    if (notice := choice.notice()) is not None:
        print(f"ualm: {notice.translate(CONTROLS)}", file=sys.stderr, flush=True)


def print_any(text: str) -> None:
    """Print to standard output immediately; characters that it cannot encode are escaped, so that no answer is lost."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "backslashreplace":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, end="", flush=True)
    except StandardOutputError:
        raise
    except OSError as error:
        raise not_printed(error) from error


def report(as_json: bool, result: Mapping[str, object], plain: str, *, from_model: bool = False) -> None:
    """The one result of a verb, as a JSON object or as lines for people. ``from_model``: the model's own words, printed
    as they are except to a terminal, which would obey control characters among them."""
    if not from_model or sys.stdout.isatty():
        plain = plain.translate(CONTROLS)
    print_any((json.dumps(result) if as_json else plain) + "\n")
