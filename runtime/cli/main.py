"""The ``ualm`` command. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.main()

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..audio.post_codec import Resampler
from ..bundle.manifest import CodecIdentity, PostCodecIdentity
from ..errors import InputError, UalmError
from ..process.extras import install_hint
from ..process.native_module import check_native
from ..process.stopping import caught, raise_interrupt
from ..shown import in_a_line
from ..terminal.live import live_bytes, live_rows
from ..terminal.report import report
from ..terminal.tables import CONTROLS
from .help import WholeSentences
from .knowledge import KnowingCommand, Outside
from .options import (
    BundleOption,
    ContextOption,
    EngineOption,
    GuidanceOption,
    JsonOption,
    MaxTokensOption,
    QuietOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    about_model,
    check_heard,
    given,
    heard,
    open_model,
    tell_cut,
)
from .verbs.bench import app as bench
from .verbs.chat import chat
from .verbs.compare import compare
from .verbs.doctor import doctor
from .verbs.generate import generate
from .verbs.inspect import inspect
from .verbs.reason import reason

app = typer.Typer(
    cls=WholeSentences,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # markup would swallow the brackets of ".[export]"
    help="Run unified audio language models: text to sound, questions about sounds, conversations.",
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"ualm {__version__}")
        raise typer.Exit


@app.command(cls=KnowingCommand)
def ask(
    sound: Annotated[
        Path, typer.Argument(help='The sound to listen to: WAV, FLAC, OGG, MP3, ...; "-": from standard input.')
    ],
    question: Annotated[str, typer.Argument(help="What you want to know about it.")],
    bundle: BundleOption = None,
    seed: SeedOption = 0,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    max_tokens: MaxTokensOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a sound.

    m4a, mp4, 3gp and webm need the extra `av`.
    """
    check_heard(sound)
    with open_model(bundle, threads, max_context, engine, quiet=quiet) as model:
        options: dict[str, Any] = {"seed": seed}
        options |= given(guidance=guidance, temperature=temperature, top_k=top_k, max_steps=max_tokens)
        outside = Outside(model, quiet=quiet)
        outside.warn(question)
        started = time.perf_counter()
        with live_rows(lambda rows, elapsed: f"{rows} tokens, {elapsed:.1f} s") as on_rows:
            answer = model.ask(heard(sound, model), question, on_rows=on_rows, **options)
        elapsed = time.perf_counter() - started
        about: dict[str, Any] = {"answer": answer, "seed": seed, "finish": answer.finish}
        about |= {"elapsed_seconds": round(elapsed, 3)} | about_model(model) | {"outside": outside.found}
    if not as_json:
        tell_cut(answer.finish, quiet=quiet)
    report(as_json, about, answer, from_model=True)


@app.command(epilog=f"Needs the extra `export`: {install_hint('export')}.")
def export(
    run: Annotated[Path | None, typer.Argument(help="Folder of a UALM training run.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to make.")] = None,
    config: Annotated[Path | None, typer.Option(help="train.yaml, where it is not in RUN.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="The weights, if RUN has none or several: a file, the index of shards, or a folder."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint to take; the newest by default.")] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What it is for: onnxruntime (a bundle); tensorrt-rtx (a bundle with engines for --target), tensorrt "
            "(for the GPU here); both take a bundle as RUN, too; huggingface, tensorrt-llm (text out only)."
        ),
    ] = "onnxruntime",
    gpus: Annotated[
        str | None, typer.Option("--target", help="GPUs to compile for with tensorrt-rtx: sm86,sm89,sm120.")
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Rows of context that engines are compiled for; 16384, or the model's limit.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Format of the backbone and its heads: fp32 (a bundle's default), bf16, fp16, fp8 (GPUs from sm89), "
            "int8 or int4."
        ),
    ] = None,
    encoder_precision: Annotated[
        str | None, typer.Option(help="Format of the encoder: fp32, fp16 or int8; what suits --precision by default.")
    ] = None,
    codec_precision: Annotated[
        str | None, typer.Option(help="Format of the codec: fp32 or fp16; what suits --precision by default.")
    ] = None,
    prefill: Annotated[
        str | None,
        typer.Option(help="int8: additional weights that read long prompts with integer products."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Prompts (.txt, one a line), sounds, or a folder of both, to fit int8, int4 and fp8 to."),
    ] = None,
    accept_quality: Annotated[
        bool, typer.Option("--accept-quality", help="Keep a bundle that agrees too little with fp32.")
    ] = False,
    sound_rate: Annotated[
        int | None,
        typer.Option(help="Resample the sounds it makes to this rate in Hz; the codec's by default."),
    ] = None,
    sound_channels: Annotated[int, typer.Option(help="Channels of these sounds, copies of the codec's one.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Turn a training run into a bundle, or into what another engine reads."""
    if output is None:
        raise InputError("--output: name the folder of the bundle to make")
    check_native()
    try:
        from ualm.export.arguments import check_request
        from ualm.export.targets.registry import ExportRequest, find_target

        request = ExportRequest(
            run=run,
            output=output,
            config=config,
            weights=weights,
            step=step,
            precision=precision,
            encoder_precision=encoder_precision,
            codec_precision=codec_precision,
            prefill=prefill,
            calibrate=calibrate,
            accept_quality=accept_quality,
            post_codec=_resampling(sound_rate, sound_channels),
            target=gpus,
            max_context=max_context,
        )
        check_request(request, engine)  # mistakes are reported before torch is loaded
        target = find_target(engine)
    except ImportError as error:
        raise_interrupt(error)
        raise UalmError(f"export cannot be loaded ({error}); install it with: {install_hint('export')}") from error
    with live_bytes() as progress:
        made = target(request, progress)
    report(as_json, made.result, "\n".join(made.lines))


def _resampling(rate: int | None, channels: int) -> Callable[[CodecIdentity], PostCodecIdentity] | None:
    if rate is None and channels == 1:
        return None
    return lambda codec: Resampler.describe(codec, codec.sample_rate if rate is None else rate, channels)


app.command(cls=KnowingCommand)(generate)
app.command()(chat)
app.command()(reason)
app.command()(inspect)
app.command()(compare)
app.command()(doctor)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command once its process is prepared: a ualm error is one line and exit status 1."""
    try:
        app(prog_name="ualm")
    except UalmError as error:
        # failures caused by a signal are not reported
        if not caught():
            print("ualm:", in_a_line(error).translate(CONTROLS), file=sys.stderr)
        sys.exit(1)
