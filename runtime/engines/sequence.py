"""What every engine's sequences refuse, in the same words."""

from __future__ import annotations

from ..errors import ContextError, EngineError


def check_room(held: int, new: int, limit: int) -> None:
    """:class:`ContextError` where ``new`` rows do not fit behind the ``held`` ones."""
    if held + new > limit:
        raise ContextError(
            f"the conversation needs {held + new} rows ({held} held + {new} new), but "
            f"max_context = {limit}; open the model with a larger max_context, or shorten the input"
        )


def check_truncation(length: int, held: int) -> None:
    """:class:`EngineError` for more rows than are held, or fewer than none."""
    if not 0 <= length <= held:
        raise EngineError(f"truncate: {length} rows, but {held} are held")
