"""What the verbs of the ``ualm`` command share: options, opening a model, reports and live lines."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from .cli_once import first_in_this_shell
from .cli_tables import CONTROLS, terminal_columns
from .cli_tables import table as table
from .cores import BY_OPTION, check_threads
from .engines.selection import Choice
from .errors import InputError
from .finish import FinishReason
from .manifest import CodecIdentity
from .model import Model
from .options import rows_of_sound
from .packaged import default_bundle
from .sound import Sound
from .standard_streams import StandardOutputError, not_printed

BundleOption = Annotated[
    Path | None,
    typer.Option(
        "--bundle", "-b", envvar="UALM_BUNDLE", help="Folder made by `ualm export`; by default the model within ualm."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notices on standard error; errors and progress are still shown.")
]
SeedOption = Annotated[int, typer.Option(help="Equal seeds give equal answers.")]
GuidanceOption = Annotated[float | None, typer.Option(help="Guidance scale; 1 turns guidance off.")]
TemperatureOption = Annotated[float | None, typer.Option(help="0 takes the most likely token.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Draw among this many candidates.")]
MaxSecondsOption = Annotated[float | None, typer.Option("--max-seconds", help="Longest sound to make.")]
MaxTokensOption = Annotated[int | None, typer.Option("--max-tokens", help="Longest answer.")]
TextTemperatureOption = Annotated[
    float | None, typer.Option("--text-temperature", help="Like --temperature, for texts.")
]
PlayOption = Annotated[bool, typer.Option("--play", help="Play what is made while it is made; needs the extra `play`.")]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw the sound's spectrogram: .png, .svg or .pdf; needs the extra `plot`."),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="tensorrt, tensorrt-rtx, onnxruntime-cuda or onnxruntime; by default what UALM_ENGINE says, else the "
        "first that can run here.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="CPU threads, at most one a core; all cores by default. Not for TensorRT.")
]
ContextOption = Annotated[int | None, typer.Option("--max-context", help="Rows that prompt and answer may take.")]

#: The file name that stands for standard input or output.
STANDARD = Path("-")

#: Progress goes to standard error, and only if that is a terminal.
progress = Console(stderr=True)


def named_or_packaged(bundle: Path | None, *, quiet: bool = False) -> Path:
    """The folder that was named; else the model that comes with ualm.

    That is told once a shell, where the result is on a terminal and there are to be notices.
    """
    if bundle is not None:
        return bundle
    found = default_bundle()
    tell_packaged(quiet=quiet)
    return found


def tell_packaged(*, quiet: bool) -> None:
    """Once a shell, where the result is on a terminal: that no bundle was named."""
    if not quiet and terminal_columns() is not None and first_in_this_shell():
        print("ualm: no bundle named, so the model that comes with ualm is used", file=sys.stderr, flush=True)


def open_model(
    bundle: Path | None, threads: int | None, max_context: int | None, engine: str | None = None, *, quiet: bool = False
) -> Model:
    """The model of ``--bundle`` or ``UALM_BUNDLE``, or the one that comes with ualm.

    Where there is a GPU, or the bundle holds engines for one, a line on standard error tells which engine runs, and why
    no other does.
    """
    check_threads(threads, *BY_OPTION)
    folder = named_or_packaged(bundle, quiet=quiet)
    model = Model.open(folder, engine=engine, threads=threads, max_context=max_context)
    if not quiet:
        tell_engine(model.choice)
    return model


def about_model(model: Model) -> dict[str, object]:
    """What a verb's JSON says of the model that ran: its engine, and why no faster one where there is a GPU."""
    return model.choice.to_json()


def tell_engine(choice: Choice) -> None:
    """One line on standard error about the engine that was chosen, where there is anything to choose."""
    if (told := choice.told()) is not None:
        print(f"ualm: {told.translate(CONTROLS)}", file=sys.stderr, flush=True)


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def steps_of(max_seconds: float | None, codec: CodecIdentity) -> int | None:
    """Rows that a sound of ``--max-seconds`` takes; None for None."""
    if max_seconds is None:
        return None
    return rows_of_sound(max_seconds, codec, "--max-seconds ")


def tell_cut(finish: FinishReason | None, *, quiet: bool = False) -> None:
    """One line on standard error where a limit, not the model, ended a sound or an answer; none where ``quiet``."""
    if not quiet and finish in ("max_seconds", "max_tokens"):
        option = "--" + finish.replace("_", "-")
        told = f"ualm: cut by its limit, not ended by the model; a larger {option} allows more"
        print(told, file=sys.stderr, flush=True)


def check_heard(sound: Path) -> None:
    """Refuse, before a model is loaded, standard input that cannot hold a sound."""
    if sound != STANDARD:
        return
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input: is closed; send a sound into it, or name a file")
    if sys.stdin.isatty():
        raise InputError("standard input: is a terminal; send a sound into it from a pipe or a file")


def heard(sound: Path, model: Model) -> Path | Sound:
    """The sound of that name, or the one on standard input."""
    if sound != STANDARD:
        return sound
    return Sound.from_file(sys.stdin.buffer, longest=model.longest_sound)


def print_any(text: str) -> None:
    """Print to standard output at once; letters that a terminal lacks are escaped and do not cost the answer."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "backslashreplace":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, end="", flush=True)
    except StandardOutputError:
        raise
    except OSError as error:
        raise not_printed(error) from error


def report(as_json: bool, result: Mapping[str, object], plain: str, *, said: bool = False) -> None:
    """The one result of a verb, as a JSON object or as lines for people. ``said``: the model's own words, which only a
    terminal, that would obey some of them, is not given as they are."""
    if not said or sys.stdout.isatty():
        plain = plain.translate(CONTROLS)
    print_any((json.dumps(result) if as_json else plain) + "\n")


def in_bytes(size: int) -> str:
    """A number of bytes, as wide as any other, for a column of a table."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value >= 1024:
            value, unit = value / 1024, larger
    return f"{value:>7.0f} {unit}" if unit == "bytes" else f"{value:>7.1f} {unit}"


def _rewritable() -> bool:
    """Whether what is on standard error can be taken back; a dumb terminal would keep it, or an empty line of it."""
    return progress.is_terminal and not progress.is_dumb_terminal


class LiveLine:
    """One line on standard error that is rewritten, and gone in the end; nothing where that is not possible.

    It takes the whole line of the terminal that the cursor is in: nothing else may stand there, from either stream.
    """

    def __init__(self) -> None:
        self._live: Live | None = None

    def show(self, text: str) -> None:
        if not _rewritable():
            return
        line = Text(text, no_wrap=True, overflow="ellipsis")
        if self._live is None:
            # standard output stays as it is: what is printed there meanwhile must not land on standard error
            self._live = Live(line, console=progress, transient=True, refresh_per_second=8, redirect_stdout=False)
            self._live.start(refresh=True)
        else:
            self._live.update(line)

    def hide(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def sound_progress(made: float, elapsed: float) -> str:
    """``made`` seconds of sound after ``elapsed`` seconds, for a live line."""
    factor = f", real-time factor {elapsed / made:.2f}" if made else ""
    return f"{made:.1f} s of sound, {elapsed:.1f} s{factor}"


@contextmanager
def live_rows(show: Callable[[int, float], str]) -> Iterator[Callable[[str, int], None]]:
    """A live line while rows come in: ``show(rows, elapsed seconds)`` is its text."""
    line, started = LiveLine(), time.perf_counter()
    try:
        yield lambda modality, rows: line.show(show(rows, time.perf_counter() - started))
    finally:
        line.hide()


@contextmanager
def live_bytes() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of a long job: call with stage, bytes done, bytes in all (0: not known)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=progress, transient=True, disable=not _rewritable()) as bar:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield update
