"""The ``ualm`` command. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import io
import json
import math
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

from . import __version__
from .errors import InputError, UalmError
from .model import Model
from .sound import check_writable
from .vocabulary import STREAMS

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run unified audio language models: text to sound, and questions about sounds.",
)
_progress = Console(stderr=True)
#: The exit status that Typer makes of Ctrl-C.
_INTERRUPTED = 130

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", envvar="UALM_BUNDLE", help="Folder made by `ualm export`.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
SeedOption = Annotated[int, typer.Option(help="Equal seeds give equal answers.")]
TemperatureOption = Annotated[float | None, typer.Option(help="0 takes the most likely token.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Draw among this many candidates.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")]
ContextOption = Annotated[int | None, typer.Option("--max-context", help="Rows that prompt and answer may take.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"ualm {__version__}")
        raise typer.Exit


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="What the sound should be.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="WAV or FLAC file to write.")],
    bundle: BundleOption = None,
    seed: SeedOption = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 turns guidance off.")] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    max_seconds: Annotated[float | None, typer.Option("--max-seconds", help="Longest sound to make.")] = None,
    pcm16: Annotated[bool, typer.Option("--pcm16", help="16-bit samples, scaled down if a peak passes 1.0.")] = False,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a sound from a text. WAV files hold 32-bit floats unless --pcm16 is given."""
    subtype = "PCM_16" if pcm16 else None
    check_writable(output, subtype)
    with _open(bundle, threads, max_context) as model:
        codec = model.bundle.manifest.codec
        frame_seconds = codec.hop_length / codec.sample_rate
        options: dict[str, Any] = {"seed": seed}
        options |= _given(guidance=guidance, temperature=temperature, top_k=top_k)
        if max_seconds is not None:
            if not frame_seconds <= max_seconds < math.inf:
                raise InputError(
                    f"--max-seconds {max_seconds:g}: give a number of seconds that holds one frame, {frame_seconds:g} s"
                )
            options["max_steps"] = int(max_seconds / frame_seconds + 1e-6) + STREAMS - 1
        started = time.perf_counter()
        with _live(started, lambda rows: max(rows - STREAMS + 1, 0) * frame_seconds, "s of sound") as on_rows:
            sound = model.generate(text, on_rows=on_rows, **options)
        elapsed = time.perf_counter() - started
    gain = sound.save(output, subtype)
    result = {
        "output": str(output),
        "seconds": round(sound.duration, 3),
        "sample_rate": sound.sample_rate,
        "frames": len(sound.codes) if sound.codes is not None else 0,
        "peak": round(float(abs(sound.samples).max()), 4),
        "gain": gain,
        "seed": seed,
        "elapsed_seconds": round(elapsed, 3),
        "real_time_factor": round(elapsed / sound.duration, 3),
    }
    scaled = "" if gain == 1.0 else f", scaled by {gain:.3f} to keep the peak below 1"
    _report(as_json, result, f"{output}: {sound.duration:.2f} s in {elapsed:.2f} s{scaled}")


@app.command()
def ask(
    sound: Annotated[Path, typer.Argument(help="The sound to listen to: WAV, FLAC, OGG, MP3, ...")],
    question: Annotated[str, typer.Argument(help="What you want to know about it.")],
    bundle: BundleOption = None,
    seed: SeedOption = 0,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Longest answer.")] = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a sound."""
    with _open(bundle, threads, max_context) as model:
        options: dict[str, Any] = {"seed": seed} | _given(temperature=temperature, top_k=top_k, max_steps=max_tokens)
        started = time.perf_counter()
        with _live(started, float, "tokens") as on_rows:
            answer = model.ask(sound, question, on_rows=on_rows, **options)
        elapsed = time.perf_counter() - started
    _report(as_json, {"answer": answer, "seed": seed, "elapsed_seconds": round(elapsed, 3)}, answer)


@app.command()
def export(
    run: Annotated[Path | None, typer.Argument(help="Folder of a UALM training run.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the bundle to make.")] = None,
    config: Annotated[Path | None, typer.Option(help="train.yaml, where it is not in RUN.")] = None,
    weights: Annotated[Path | None, typer.Option(help="mp_rank_00_model_states.pt, likewise.")] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint to take; the newest by default.")] = None,
    precision: Annotated[str, typer.Option(help="Precision of the weights: fp32.")] = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Turn a training run into a bundle. Needs the export extra: pip install "ualm[export]"."""
    if output is None:
        raise InputError("--output: name the folder of the bundle to make")
    try:
        from ualm.export.exporter import export_run
    except ImportError as error:
        raise UalmError(f'export cannot be loaded ({error}); install it with: pip install "ualm[export]"') from error
    with _export_progress() as progress:
        report = export_run(
            run, output, config=config, weights=weights, step=step, precision=precision, progress=progress
        )
    result = {
        "bundle": str(report.bundle),
        "config": str(report.run.config),
        "weights": str(report.run.weights),
        "step": report.run.step,
        "bytes": dict(report.sizes),
        "seconds": {name: round(value, 3) for name, value in report.seconds.items()},
    }
    lines = [f"{name:<26}{size / 2**20:>12.2f} MiB" for name, size in report.sizes.items()]
    lines += [f"{stage:<26}{seconds:>12.2f} s" for stage, seconds in report.seconds.items()]
    _report(as_json, result, "\n".join([*lines, f"{report.bundle}: exported"]))


def main() -> None:
    """Entry point: a ualm error is one line on standard error and exit status 1."""
    try:
        app()
    except UalmError as error:
        # the messages of other libraries may run over several lines
        print("ualm:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            print("ualm: interrupted", file=sys.stderr)
        raise


def _open(bundle: Path | None, threads: int | None, max_context: int | None) -> Model:
    if bundle is None:
        raise InputError(
            "no bundle given; name one with --bundle or the variable UALM_BUNDLE (see: ualm export --help)"
        )
    return Model.open(bundle, threads=threads, max_context=max_context)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _report(as_json: bool, result: Mapping[str, object], plain: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character must not cost the answer
        sys.stdout.reconfigure(errors="backslashreplace")
    print(json.dumps(result) if as_json else plain)


@contextmanager
def _live(started: float, amount: Callable[[int], float], unit: str) -> Iterator[Callable[[str, int], None]]:
    """A line that is rewritten while rows come in; nothing when standard error is not a terminal."""
    if not _progress.is_terminal:
        yield lambda modality, rows: None
        return
    with Live(console=_progress, transient=True, refresh_per_second=8) as live:

        def on_rows(modality: str, rows: int) -> None:
            done, elapsed = amount(rows), time.perf_counter() - started
            factor = f", real-time factor {elapsed / done:.2f}" if unit.startswith("s ") and done else ""
            live.update(
                Text(f"{done:.1f} {unit}, {elapsed:.1f} s{factor}" if factor else f"{done:g} {unit}, {elapsed:.1f} s")
            )

        yield on_rows


@contextmanager
def _export_progress() -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_progress, transient=True, disable=not _progress.is_terminal) as bar:
        tasks: dict[str, object] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield update


if __name__ == "__main__":
    main()
