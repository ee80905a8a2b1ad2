"""What the verbs of the ``ualm`` command share: options, opening a model, reports and live lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bundle.manifest import CodecIdentity
from ..bundle.packaged import default_bundle
from ..conversation.options import rows_of_sound
from ..errors import InputError
from ..finish import FinishReason
from ..model import Model
from ..process.cores import BY_OPTION, check_threads
from ..sound.sound import Sound
from ..terminal.report import tell_engine
from ..terminal.tables import terminal_columns
from .once import first_in_this_shell

BundleOption = Annotated[
    Path | None,
    typer.Option(
        "--bundle", "-b", envvar="UALM_BUNDLE", help="Folder made by `ualm export`; by default ualm's own model."
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
PlayOption = Annotated[
    bool, typer.Option("--play", help="Play the sound while it is generated; needs the extra `play`.")
]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw the sound's spectrogram: .png, .svg or .pdf; needs the extra `plot`."),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="tensorrt, tensorrt-rtx, onnxruntime-cuda or onnxruntime; by default the one in UALM_ENGINE, else the "
        "first that can run here.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="CPU threads, at most one per core; all cores by default. Not for TensorRT.")
]
ContextOption = Annotated[int | None, typer.Option("--max-context", help="Rows that prompt and answer may take.")]

#: The file name that stands for standard input or output.
STANDARD = Path("-")


def named_or_packaged(bundle: Path | None, *, quiet: bool = False) -> Path:
    """The folder that was named; else the model that comes with ualm.

    In that case a notice says so once per shell, if the result goes to a terminal and notices are on.
    """
    if bundle is not None:
        return bundle
    found = default_bundle()
    tell_packaged(quiet=quiet)
    return found


def tell_packaged(*, quiet: bool) -> None:
    """Report, once per shell and if the result goes to a terminal, that no bundle was named."""
    if not quiet and terminal_columns() is not None and first_in_this_shell():
        print("ualm: no bundle named, so the model that comes with ualm is used", file=sys.stderr, flush=True)


def open_model(
    bundle: Path | None, threads: int | None, max_context: int | None, engine: str | None = None, *, quiet: bool = False
) -> Model:
    """The model of ``--bundle`` or ``UALM_BUNDLE``, or the one that comes with ualm.

    If there is a GPU, or the bundle holds engines for one, a line on standard error says which engine runs, and why no
    other does.
    """
    check_threads(threads, *BY_OPTION)
    folder = named_or_packaged(bundle, quiet=quiet)
    model = Model.open(folder, engine=engine, threads=threads, max_context=max_context)
    if not quiet:
        tell_engine(model.choice)
    return model


def about_model(model: Model) -> dict[str, object]:
    """What a verb's JSON says about the model that ran: its engine, and why no faster one if there is a GPU."""
    return model.choice.to_json()


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def steps_of(max_seconds: float | None, codec: CodecIdentity) -> int | None:
    """Rows that a sound of ``--max-seconds`` takes; None for None."""
    if max_seconds is None:
        return None
    return rows_of_sound(max_seconds, codec, "--max-seconds ")


def tell_cut(finish: FinishReason | None, *, quiet: bool = False) -> None:
    """One line on standard error if a limit, not the model, ended a sound or an answer; none if ``quiet``."""
    if not quiet and finish in ("max_seconds", "max_tokens"):
        option = "--" + finish.replace("_", "-")
        notice = f"ualm: cut by its limit, not ended by the model; a larger {option} allows more"
        print(notice, file=sys.stderr, flush=True)


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
