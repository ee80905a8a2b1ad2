"""``--help`` of the ``ualm`` command: what each verb does, in full sentences."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperGroup


class WholeSentences(TyperGroup):
    """A group whose list of verbs is wrapped; by default, sentences are cut off at the end of a terminal's line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, verb.get_short_help_str(sys.maxsize)) for name, verb in found if verb and not verb.hidden]
            )
