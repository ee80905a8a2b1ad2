"""``ualm bench``: how fast a bundle runs or is made here, and how far that is from what the machine can do.

The bench is imported when one of these verbs runs: the runtime must work without it.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from ...errors import InputError, OutputError, UalmError
from ...files.writing import check_place, replacing_file
from ...process.extras import Extra, install_hint
from ...process.native_module import check_native
from ...process.stopping import raise_interrupt
from ...terminal.live import LiveLine
from ...terminal.report import print_any
from ...terminal.tables import terminal_columns
from ..help import WholeSentences
from ..options import QuietOption, ThreadsOption, named_or_packaged

app = typer.Typer(
    cls=WholeSentences,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a bundle: milliseconds, bytes a step, share of the memory bandwidth, against another.",
)

_Number = TypeVar("_Number", int, float)

BundleArgument = Annotated[
    Path | None,
    typer.Argument(envvar="UALM_BUNDLE", help="Folder made by `ualm export`; by default ualm's own model."),
]
EngineOption = Annotated[
    str | None, typer.Option(help="Engine; by default the one in UALM_ENGINE, else the best that can run here.")
]
RepeatOption = Annotated[int | None, typer.Option(help="Repetitions that are measured.")]
SeedOption = Annotated[int, typer.Option(help="Of the draws and of the noise that is heard or held.")]
VersusOption = Annotated[
    str | None,
    typer.Option(help="Another bundle, or reference-bf16 or reference-fp32 (with --run), measured in turn."),
]
RunOption = Annotated[Path | None, typer.Option(help="Training run whose weights a reference takes.")]
FormatOption = Annotated[str | None, typer.Option("--format", help="table, json, jsonl, csv or markdown.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; the table is still shown.")]
ContextOption = Annotated[str, typer.Option("--context", help="Rows held, one number or several: 256,1024.")]
SecondsOption = Annotated[str, typer.Option("--seconds", help="Seconds of sound, one number or several: 5,30.")]
ModalityOption = Annotated[str, typer.Option(help="audio or text.")]
GuidanceOption = Annotated[float | None, typer.Option(help="Guidance scale; 1 turns guidance off.")]


@app.command()
def decode(
    bundle: BundleArgument = None,
    context: ContextOption = "256",
    batch: Annotated[int, typer.Option(help="Conversations that take turns, a frame each.")] = 1,
    modality: ModalityOption = "audio",
    guidance: GuidanceOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    repeat: RepeatOption = None,
    seed: SeedOption = 0,
    versus: VersusOption = None,
    run: RunOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """Milliseconds per frame: body, head and sampler, with rows held."""
    contexts = _numbers("--context", context, int)
    _measure(
        lambda: _bench("scenarios.decode").Decode(contexts, batch, _modality(modality), guidance),
        (bundle, engine, threads, repeat, seed, versus, run),
        form,
        output,
        quiet,
    )


@app.command()
def prefill(
    bundle: BundleArgument = None,
    rows: Annotated[str, typer.Option(help="Rows of the prompt, one number or several: 64,256.")] = "64,256",
    context: ContextOption = "0",
    modality: ModalityOption = "audio",
    guidance: GuidanceOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    repeat: RepeatOption = None,
    seed: SeedOption = 0,
    versus: VersusOption = None,
    run: RunOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """Milliseconds to process a prompt, and to begin a segment after it."""
    counts, contexts = _numbers("--rows", rows, int), _numbers("--context", context, int)
    _measure(
        lambda: _bench("scenarios.prefill").Prefill(counts, contexts, _modality(modality), guidance),
        (bundle, engine, threads, repeat, seed, versus, run),
        form,
        output,
        quiet,
    )


@app.command()
def encode(
    bundle: BundleArgument = None,
    seconds: SecondsOption = "10",
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    repeat: RepeatOption = None,
    seed: SeedOption = 0,
    versus: VersusOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time to hear a sound: features, then the encoder."""
    lengths = _numbers("--seconds", seconds, float)
    _measure(
        lambda: _bench("scenarios.encode").Encode(lengths),
        (bundle, engine, threads, repeat, seed, versus, None),
        form,
        output,
        quiet,
    )


@app.command()
def codec(
    bundle: BundleArgument = None,
    seconds: SecondsOption = "5",
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    repeat: RepeatOption = None,
    seed: SeedOption = 0,
    versus: VersusOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time to turn codec frames into samples."""
    lengths = _numbers("--seconds", seconds, float)
    _measure(
        lambda: _bench("scenarios.codec").Codec(lengths),
        (bundle, engine, threads, repeat, seed, versus, None),
        form,
        output,
        quiet,
    )


@app.command()
def stream(
    bundle: BundleArgument = None,
    seconds: SecondsOption = "5",
    text: Annotated[str, typer.Option(help="What the sound should be.")] = "rain on a tin roof",
    profile: Annotated[str, typer.Option(help="first_sound, balanced or throughput.")] = "first_sound",
    guidance: GuidanceOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    repeat: RepeatOption = None,
    seed: SeedOption = 0,
    versus: VersusOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """What a listener waits for: first row, first sample, first playable chunk, gaps, underruns."""
    lengths = _numbers("--seconds", seconds, float)
    _measure(
        lambda: _bench("scenarios.stream").Stream(lengths, text, guidance, profile),
        (bundle, engine, threads, repeat, seed, versus, None),
        form,
        output,
        quiet,
    )


@app.command()
def load(
    bundle: BundleArgument = None,
    pages: Annotated[str, typer.Option(help="Files in memory or not: warm, cold, or warm,cold.")] = "warm,cold",
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    repeat: RepeatOption = None,
    seed: SeedOption = 0,
    versus: VersusOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time from a fresh process to the first row, and the memory that it holds."""
    _measure(
        lambda: _bench("scenarios.load").Load(tuple(pages.split(","))),
        (bundle, engine, threads, repeat, seed, versus, None),
        form,
        output,
        quiet,
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a UALM training run.")],
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, fp8, int8 or int4, as for `ualm export`.")] = "fp32",
    encoder_precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8, likewise.")] = None,
    codec_precision: Annotated[str | None, typer.Option(help="fp32 or fp16, likewise.")] = None,
    prefill: Annotated[str | None, typer.Option(help="int8, likewise.")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="Prompts and sounds to fit a format to, likewise.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the bundle, which is deleted otherwise.")] = None,
    repeat: RepeatOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Time, memory and size of an export, stage by stage, and its agreement with fp32."""

    def measure(progress: Callable[[str], None]) -> Any:
        bench = _bench("scenarios.export")
        formats = bench.Formats(precision, encoder_precision, codec_precision, prefill, calibrate)
        return bench.measure_export(run, formats, keep=keep, repeat=repeat, progress=progress)

    _measured(measure, form, output)


@app.command()
def gates(
    bundle: Annotated[
        Path | None,
        typer.Argument(envvar="UALM_BUNDLE", help="Bundle of an ualm-tiny; the one that comes with ualm by default."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The training run of BUNDLE.")] = None,
    share: Annotated[float, typer.Option(help="Of the prompts, for a quick look.")] = 1.0,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    seed: Annotated[int, typer.Option(help="Of the prompts and the draws.")] = 0,
    against: Annotated[
        Path | None, typer.Option(help="What --output wrote for the run's fp32 bundle, to see what is lost.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """What ualm-tiny makes and says, judged by detectors of pitch, onset and timbre."""
    if bundle is not None and run is None:
        raise InputError(f"--run: name the training run that {bundle} was made of")
    _check_writable(output)
    bench, line = _bench("gates"), LiveLine()
    try:
        result = bench.judge_bundle(
            bundle, run, share=share, seed=seed, threads=threads, engine=engine, wide=against, progress=line.show
        )
    finally:
        line.hide()
    if output is not None:
        bench.write_gates(result, output)
    print_any(bench.gates_table(result) + "\n")


@app.command()
def plan(
    bundle: BundleArgument = None,
    device: Annotated[str | None, typer.Option(help="orin-nano, agx-orin, thor, rtx4090 or h100.")] = None,
    context: ContextOption = "1024",
    bandwidth: Annotated[float | None, typer.Option(help="GB/s of the memory, for another device.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB of the memory, for another device.")] = None,
    guidance: GuidanceOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """What a device could do at best: bytes a frame, time, memory, precisions that fit. Computed, not measured."""
    chosen = _bench("report.formats").choose_format(form, output)
    _check_writable(output)
    target = _bench("planner.devices").find_device(device, bandwidth, memory)
    contexts = _numbers("--context", context, int)
    made = _bench("planner.plan").make_plan(named_or_packaged(bundle, quiet=quiet), target, contexts, guidance)
    _write(lambda *form: _bench("planner.render").render_plan(made, *form), chosen, output)


@app.command()
def show(
    results: Annotated[list[Path], typer.Argument(help="Files that --output wrote: .json, .jsonl or .csv.")],
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Render kept results again."""
    formats = _bench("report.formats")
    chosen = formats.choose_format(form, output)
    _deliver([report for path in results for report in formats.read_report(path)], chosen, output)


class _Program(TyperCommand):
    """A verb whose program, loaded when the verb runs, parses the arguments itself, including ``--help``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []


#: Verb -> its program in the bench, what it does, and the extras that it needs. Each also runs without the command:
#: ``python -m ualm.bench.MODULE``.
PROGRAMS: dict[str, tuple[str, str, tuple[Extra, ...]]] = {
    "random-run": ("random_run.run", "Write a training run with random weights, to try an export with.", ("export",)),
    "damage": (
        "evidence.damage",
        "How far sound and spoilt exports agree with the weights of a trained model.",
        ("export",),
    ),
    "arithmetic": ("evidence.arithmetic", "How far the arithmetic of engines moves the golden logits.", ("export",)),
    "tensorrt-build": (
        "scenarios.tensorrt_build",
        "Time, memory and size of parts that TensorRT-RTX compiles.",
        ("export", "tensorrt-rtx"),
    ),
    "acceptance": ("acceptance.__main__", "Answer in one run what only a GPU can.", ("export",)),
}


def _add_program(verb: str) -> None:
    module, does, extras = PROGRAMS[verb]

    @app.command(verb, cls=_Program, help=does)
    def run(context: typer.Context) -> None:
        _bench(module, *extras).main(context.args, f"ualm bench {verb}")


for _verb in PROGRAMS:
    _add_program(_verb)


def _measure(
    scenario: Callable[[], Any], request: tuple[Any, ...], form: str | None, output: Path | None, quiet: bool
) -> None:
    """Run a scenario on a bundle: the one that ``request`` begins with, None for the one that comes with ualm."""

    def measure(progress: Callable[[str], None]) -> Any:
        what, (bundle, *others) = scenario(), request
        return _bench("harness.measure").run_scenario(
            what,
            _bench("harness.subjects").Request(named_or_packaged(bundle, quiet=quiet), *others, quiet=quiet),
            progress,
        )

    _measured(measure, form, output)


def _measured(measure: Callable[[Callable[[str], None]], Any], form: str | None, output: Path | None) -> None:
    """Refuse everything that can be refused before anything is measured."""
    chosen = _bench("report.formats").choose_format(form, output)
    _check_writable(output)
    line = LiveLine()
    try:
        report = measure(line.show)
    finally:
        line.hide()
    _deliver([report], chosen, output)


def _deliver(reports: list[Any], form: str, output: Path | None) -> None:
    """Print in ``form``; with ``output``, write there and print the table."""
    _write(lambda *form: _bench("report.tables").render(reports, *form), form, output)


def _write(render: Callable[[str, int | None], str], form: str, output: Path | None) -> None:
    """As :func:`_deliver`, for ``render`` of a format and the terminal's columns, None for a file."""
    if output is not None:
        text = render(form, None)
        with replacing_file(output) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
        form = "table"
    print_any(render(form, terminal_columns()))


def _bench(module: str, *extras: Extra) -> ModuleType:
    """A module of the bench, which needs ``extras``."""
    check_native()
    try:
        return importlib.import_module(f"ualm.bench.{module}")
    except ImportError as error:
        raise_interrupt(error)
        how = "install it with" if extras else "install ualm again"
        raise UalmError(f"bench cannot be loaded ({error}); {how}: {install_hint(*extras)}") from error


def _numbers(option: str, text: str, kind: type[_Number]) -> tuple[_Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} {text}: give {what}, separated by commas") from None


def _modality(name: str) -> str:
    if name not in ("audio", "text"):
        raise InputError(f"--modality {name}: choose audio or text")
    return name


def _check_writable(output: Path | None) -> None:
    if output is None:
        return
    check_place(output)
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise OutputError(
            f"{output}: cannot write here ({error.strerror or error}); choose a writable folder"
        ) from error
