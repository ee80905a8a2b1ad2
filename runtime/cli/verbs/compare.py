"""``ualm compare``: one bundle against another of the same model, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import UalmError
from ...process.extras import install_hint
from ...process.native_module import check_native
from ...process.stopping import raise_interrupt
from ...shown import in_bytes
from ...terminal.live import LiveLine
from ...terminal.report import report
from ...terminal.tables import table
from ..options import JsonOption, QuietOption, ThreadsOption

if TYPE_CHECKING:
    from ualm.bench.compare import Compared, Speed


def compare(
    a: Annotated[Path, typer.Argument(help="Bundle to compare with: fp32, or the one in use.")],
    b: Annotated[Path, typer.Argument(help="Bundle of the same model, such as one in another precision.")],
    threads: ThreadsOption = None,
    repeat: Annotated[int | None, typer.Option(help="Frames that are measured.")] = None,
    context: Annotated[int, typer.Option(help="Rows held meanwhile.")] = 256,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure the speed too.")] = True,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare bundle B with bundle A: agreement, size, speed.

    Agreement is shown beside the gates of B's formats, which an export must meet against fp32. Runs on the CPU engine.
    """
    check_native()
    try:
        from ualm.bench.compare import compare_bundles
    except ImportError as error:
        raise_interrupt(error)
        raise UalmError(f"compare cannot be loaded ({error}); install ualm again: {install_hint()}") from error
    line = LiveLine()
    try:
        found = compare_bundles(
            a, b, threads=threads, repeat=repeat, context=context, speed=speed, quiet=quiet, progress=line.show
        )
    finally:
        line.hide()
    report(as_json, found.to_json(), _plain(found))


def _plain(found: Compared) -> str:
    a, b = found.a, found.b
    formats = [
        (part, a.manifest.precision.get(part, "none"), b.manifest.precision.get(part, "none"))
        for part in b.manifest.precision
    ]
    sizes = [(role, *map(in_bytes, both)) for role, both in found.sizes.items()]
    sizes.append(("all files", *map(in_bytes, found.total)))
    sections = [
        table(f"A: {a.folder}\nB: {b.folder}", [("formats", "A", "B"), *formats]),
        table("agreement of B with A, beside the gates of B's formats", [each.row() for each in found.verdicts]),
        table("on disk, graph and weights (parts that share weights count them each)", [("part", "A", "B"), *sizes]),
    ]
    if found.speed is not None:
        sections.append(_speed(found.speed))
    return "\n\n".join(sections)


def _speed(speed: Speed) -> str:
    interval = "" if speed.low is None or speed.high is None else f", {speed.low:.2f} to {speed.high:.2f}"
    ratio = f"{speed.ratio:.2f} times as fast{interval} ({speed.pairs} pairs of blocks)"
    lines = [
        ("A", f"{speed.a_ms:.3g} ms"),
        ("B", f"{speed.b_ms:.3g} ms"),
        ("B is", f"{ratio}: {speed.verdict}"),
        *(("note", note) for note in speed.notes),
    ]
    return table(f"a frame with {speed.context} rows held (medians)", lines)
