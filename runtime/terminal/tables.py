"""Tables of the ``ualm`` command: at a terminal none is wider than it, elsewhere a row is one line for programs."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Control characters that a model, or a bundle's maker, may write and a terminal would obey; line feed and tab stay.
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
#: Columns before a row, and between two cells.
_INDENT, _GAP = 2, 2


def terminal_columns() -> int | None:
    """Columns of the terminal on standard output; None if it is not a terminal, so that nothing has to fit."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def table(title: str, rows: Sequence[Sequence[object]]) -> str:
    """A title over rows whose cells are aligned; cells that a terminal has no room for are wrapped in their column."""
    texts = [[Text(str(cell).translate(CONTROLS), overflow="fold") for cell in row] for row in rows]
    widths = [max(cells) for cells in _by_column([[cell.cell_len for cell in row] for row in texts])]
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    for _ in widths:
        grid.add_column(overflow="fold")
    for row in texts:
        grid.add_row(*row)
    columns, natural = terminal_columns(), sum(widths) + _GAP * len(widths)
    width = natural if columns is None else min(natural, columns - _INDENT)
    least = (1 + _GAP) * len(widths)  # narrower, rich would leave columns out
    out = io.StringIO()
    Console(file=out, width=max(width, least, 1), color_system=None, force_terminal=False).print(grid)
    lines = [(" " * _INDENT + line).rstrip() for line in out.getvalue().splitlines()] if widths else []
    return "\n".join([title.translate(CONTROLS), *lines])


def _by_column(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The cells of each column; a short row has none in the last ones."""
    return [[row[at] for row in rows if at < len(row)] for at in range(max(map(len, rows), default=0))]


def bands(widths: Sequence[int], kept: int, columns: int | None) -> list[list[int]]:
    """Numbers of the columns of a table too wide for ``columns``, in bands that fit one by one: the first ``kept`` are
    in each, so that a row can be recognised. A figure is never cut in two: a column that fits nowhere has its own band.

    ``widths``: of the columns, the gap behind each included. ``columns`` None: everything is one band.
    """
    first, rest = list(range(kept)), list(range(kept, len(widths)))
    if columns is None or not rest:
        return [[*first, *rest]]
    found: list[list[int]] = []
    room = columns - sum(widths[:kept])
    left = 0
    for column in rest:
        if not found or widths[column] > left:
            found.append(list(first))
            left = room
        found[-1].append(column)
        left -= widths[column]
    return found
