"""``ualm generate``: a sound from a text, into a file, to the loudspeaker, or as raw samples into a pipe."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from ...audio.pacing import ChunkProfile
from ...conversation.events import SegmentEnded, SoundChunk
from ...errors import InputError
from ...model import Model
from ...sound.sound import Sound, check_writable
from ...sound.writing import SUFFIXES, encoding_of
from ...terminal.live import LiveLine, live_rows, sound_progress
from ...terminal.report import report
from ...vocabulary import STREAMS
from ..knowledge import Outside
from ..options import (
    STANDARD,
    BundleOption,
    ContextOption,
    EngineOption,
    GuidanceOption,
    JsonOption,
    MaxSecondsOption,
    PlayOption,
    PlotOption,
    QuietOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    about_model,
    given,
    open_model,
    steps_of,
    tell_cut,
)
from ..playback import Output, Player, RawPcm, StreamedWav
from ..plot import check_plot, save_spectrogram

#: Formats for a pipe.
_PIPE_FORMATS = ("raw", "wav")


def generate(
    text: Annotated[str, typer.Argument(help="What the sound should be.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f'File to write: {SUFFIXES}; "-": samples to standard output.'),
    ] = None,
    sound_format: Annotated[
        str | None, typer.Option("--format", help="With -o -: raw (samples alone) or wav. A file's name says its own.")
    ] = None,
    play: PlayOption = False,
    profile: Annotated[
        str, typer.Option(help="With --play or -o -: first_sound, balanced or throughput.")
    ] = "balanced",
    bundle: BundleOption = None,
    seed: SeedOption = 0,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    max_seconds: MaxSecondsOption = None,
    pcm16: Annotated[
        bool,
        typer.Option(
            "--pcm16", help="16-bit samples: a file is scaled down if a peak passes 1.0, a pipe is cut there."
        ),
    ] = False,
    plot: PlotOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a sound from a text. WAV files hold 32-bit floats unless --pcm16 is given.

    With -o - the samples go to standard output as they are made: 32-bit floats (f32le), with --pcm16 16-bit integers
    (s16le); without a header, or with --format wav as a WAV of unknown length. The report goes to standard error.
    """
    if output is None and not play:
        raise InputError("--output: name the file to write, - for standard output, or give --play")
    piped = output == STANDARD
    if piped and sys.stdout.isatty():
        raise InputError("--output -: standard output is a terminal; send the samples into a pipe or a file")
    _check_format(sound_format, output)
    subtype = "PCM_16" if pcm16 else None
    if output is not None and not piped:
        check_writable(output, subtype)
    if plot is not None:
        check_plot(plot)
    ChunkProfile.named(profile)
    with open_model(bundle, threads, max_context, engine, quiet=quiet) as model:
        manifest = model.bundle.manifest
        codec, rate, channels = manifest.codec, manifest.sound_rate, manifest.sound_channels
        if output is not None and not piped:
            check_writable(output, subtype, sample_rate=rate, channels=channels)
        max_steps = steps_of(max_seconds, codec)
        if max_steps is not None and max_steps >= model.max_context:
            raise InputError(
                f"--max-seconds {max_seconds:g}: needs {max_steps} rows beside the prompt's, but only "
                f"{model.max_context} are reserved; give a larger --max-context"
            )
        options: dict[str, Any] = {"seed": seed}
        options |= given(guidance=guidance, temperature=temperature, top_k=top_k, max_steps=max_steps)
        outputs: list[Output] = []
        if piped and sound_format == "wav":
            outputs.append(StreamedWav(_standard_output(), rate, channels, pcm16=pcm16))
        elif piped:
            outputs.append(RawPcm(_standard_output(), pcm16=pcm16))
        if play:
            outputs.append(Player(rate, channels))
        outside = Outside(model, quiet=quiet)
        outside.warn(text)
        started = time.perf_counter()
        if outputs:
            sound, about = _live(model, text, options, profile, outputs)
        else:
            sound, about = _whole(model, text, options, codec.hop_length / codec.sample_rate), {}
        elapsed = about.pop("made_seconds", time.perf_counter() - started)
        about |= about_model(model) | {"outside": outside.found}
    gain = 1.0 if output is None or piped else sound.save(output, subtype)
    if plot is not None:
        save_spectrogram(sound, plot, text)
    result = {
        "plot": None if plot is None else str(plot),
        "output": None if output is None else str(output),
        "seconds": round(sound.duration, 3),
        "sample_rate": sound.sample_rate,
        "frames": len(sound.codes) if sound.codes is not None else 0,
        "peak": round(float(abs(sound.samples).max()), 4),
        "gain": gain,
        "finish": sound.finish,
        "seed": seed,
        "elapsed_seconds": round(elapsed, 3),
        "real_time_factor": round(elapsed / sound.duration, 3),
    } | about
    if not as_json:
        tell_cut(sound.finish, quiet=quiet)
    where = "standard output" if piped else "played" if output is None else str(output)
    plain = f"{where}: {sound.duration:.2f} s in {elapsed:.2f} s{_remarks(result)}"
    if piped:
        print(json.dumps(result) if as_json else plain, file=sys.stderr, flush=True)
    else:
        report(as_json, result, plain)


def _check_format(sound_format: str | None, output: Path | None) -> None:
    """``--format`` is for standard output; for a file it may only repeat the format of its name."""
    if sound_format is None:
        return
    if output is None:
        raise InputError(f"--format {sound_format}: says how --output is written; give that too")
    if output != STANDARD:
        encoding_of(output, format=sound_format)
    elif sound_format not in _PIPE_FORMATS:
        raise InputError(
            f"--format {sound_format}: standard output takes {' or '.join(_PIPE_FORMATS)}; name a file for others"
        )


def _standard_output() -> BinaryIO:
    return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)


def _whole(model: Model, text: str, options: dict[str, Any], frame_seconds: float) -> Sound:
    with live_rows(
        lambda rows, elapsed: sound_progress(max(rows - STREAMS + 1, 0) * frame_seconds, elapsed)
    ) as on_rows:
        return model.generate(text, on_rows=on_rows, **options)


def _live(
    model: Model, text: str, options: dict[str, Any], profile: str, outputs: list[Output]
) -> tuple[Sound, dict[str, Any]]:
    """Play or write the sound while it is made; returns it whole, and a report about the streaming."""
    audio = replace(model.bundle.manifest.sampling.audio, **options)
    line, started = LiveLine(), time.perf_counter()
    about: dict[str, Any] = {}
    turn = model.session(max_segments=1).turn(text, modality="audio", audio=audio, profile=profile)
    try:
        for event in turn:
            if isinstance(event, SoundChunk):
                elapsed = time.perf_counter() - started
                about.setdefault("first_chunk_seconds", round(elapsed, 3))
                line.show(sound_progress((event.start + len(event.samples)) / event.sample_rate, elapsed))
                for output in outputs:
                    output.write(event)
            elif isinstance(event, SegmentEnded):
                about["made_seconds"] = time.perf_counter() - started
                sound = event.result.sound
                break
        turn.cancel()
        turn.join()  # after this the model may be closed
        for output in outputs:
            output.finish()
            about |= output.report()
    except BaseException:
        for output in outputs:
            with suppress(Exception):  # the first failure is what counts
                output.abort()
        raise
    finally:
        line.hide()
        turn.cancel()
    assert sound is not None  # "fixed" mode draws at least one frame
    return sound, about


def _remarks(result: dict[str, Any]) -> str:
    remarks = ""
    if result["gain"] != 1.0:
        remarks += f", scaled by {result['gain']:.3f} to keep the peak below 1"
    if result.get("cut_samples"):
        remarks += f", {result['cut_samples']} samples cut at full scale (none without --pcm16)"
    if result.get("underruns"):
        remarks += f", the player ran dry {result['underruns']} times"
    return remarks
