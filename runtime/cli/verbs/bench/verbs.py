"""``ualm bench``: how fast a bundle runs or is made here, and how far that is from what the machine can do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ....errors import InputError
from ....terminal.live import LiveLine
from ....terminal.report import print_any
from ...help import WholeSentences
from ...options import QuietOption, ThreadsOption, named_or_packaged
from .measuring import (
    bench_module,
    check_writable,
    checked_modality,
    deliver,
    measure_and_deliver,
    measure_bundle,
    numbers,
    write_rendered,
)

app = typer.Typer(
    cls=WholeSentences,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a bundle: milliseconds, bytes a step, share of the memory bandwidth, against another.",
)

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
    contexts = numbers("--context", context, int)
    measure_bundle(
        lambda: bench_module("scenarios.decode").Decode(contexts, batch, checked_modality(modality), guidance),
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
    counts, contexts = numbers("--rows", rows, int), numbers("--context", context, int)
    measure_bundle(
        lambda: bench_module("scenarios.prefill").Prefill(counts, contexts, checked_modality(modality), guidance),
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
    lengths = numbers("--seconds", seconds, float)
    measure_bundle(
        lambda: bench_module("scenarios.encode").Encode(lengths),
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
    lengths = numbers("--seconds", seconds, float)
    measure_bundle(
        lambda: bench_module("scenarios.codec").Codec(lengths),
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
    lengths = numbers("--seconds", seconds, float)
    measure_bundle(
        lambda: bench_module("scenarios.stream").Stream(lengths, text, guidance, profile),
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
    measure_bundle(
        lambda: bench_module("scenarios.load").Load(tuple(pages.split(","))),
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
        bench = bench_module("scenarios.export")
        formats = bench.Formats(precision, encoder_precision, codec_precision, prefill, calibrate)
        return bench.measure_export(run, formats, keep=keep, repeat=repeat, progress=progress)

    measure_and_deliver(measure, form, output)


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
    check_writable(output)
    bench, line = bench_module("gates"), LiveLine()
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
    chosen = bench_module("report.formats").choose_format(form, output)
    check_writable(output)
    target = bench_module("planner.devices").find_device(device, bandwidth, memory)
    contexts = numbers("--context", context, int)
    made = bench_module("planner.plan").make_plan(named_or_packaged(bundle, quiet=quiet), target, contexts, guidance)
    write_rendered(lambda *form: bench_module("planner.render").render_plan(made, *form), chosen, output)


@app.command()
def show(
    results: Annotated[list[Path], typer.Argument(help="Files that --output wrote: .json, .jsonl or .csv.")],
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Render kept results again."""
    formats = bench_module("report.formats")
    chosen = formats.choose_format(form, output)
    deliver([report for path in results for report in formats.read_report(path)], chosen, output)
