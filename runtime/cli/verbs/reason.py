"""``ualm reason``: a sound that the model thinks about before making it, is asked about, or judges afterwards."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InputError, UalmError
from ...files.writing import check_place, replacing_file
from ...finish import FinishReason
from ...process.standard_streams import check_open
from ...reasoning.modes import Reasoning
from ...reasoning.results import (
    ReasoningEnded,
    ReasoningEvent,
    ReasoningResult,
    StageEnded,
    StageSound,
    StageStarted,
    StageText,
    Verdict,
)
from ...sound.sound import check_writable
from ...sound.writing import SUFFIXES
from ...terminal.live import LiveLine, sound_progress
from ...terminal.report import print_any, report
from ..input_lines import line_reader
from ..knowledge import Outside
from ..options import (
    BundleOption,
    ContextOption,
    EngineOption,
    GuidanceOption,
    JsonOption,
    MaxSecondsOption,
    MaxTokensOption,
    PlayOption,
    PlotOption,
    QuietOption,
    SeedOption,
    TemperatureOption,
    TextTemperatureOption,
    ThreadsOption,
    TopKOption,
    about_model,
    given,
    open_model,
    steps_of,
    tell_cut,
)
from ..playback import Loudspeaker
from ..plot import check_plot, save_spectrogram
from .chat_view import CONTROLS

#: The prompt that stands for the lines of standard input.
_STDIN = "-"
_VERDICTS = {True: "the sound agrees with the request", False: "the sound differs", None: "no verdict in the review"}


def reason(
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT...",
            help='What the sound should be; in a dialogue, turn by turn, and "-" for further turns, one a line, from '
            "standard input.",
        ),
    ],
    mode: Annotated[
        str, typer.Option(help="enrich: write a caption first. dialogue: ask and be asked. reflect: hear it again.")
    ] = "enrich",
    rounds: Annotated[int, typer.Option(help="With reflect: how often a sound may be heard and repaired.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=f"File for the last sound: {SUFFIXES}.")] = None,
    trace: Annotated[Path | None, typer.Option(help="JSON file for everything that was thought.")] = None,
    plot: PlotOption = None,
    play: PlayOption = False,
    bundle: BundleOption = None,
    seed: SeedOption = 0,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    max_seconds: MaxSecondsOption = None,
    text_temperature: TextTemperatureOption = None,
    max_tokens: MaxTokensOption = None,
    pcm16: Annotated[bool, typer.Option("--pcm16", help="16-bit samples, scaled down if a peak passes 1.0.")] = False,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a sound and think: before it (enrich), in turns about it (dialogue), or after hearing it (reflect).

    Thoughts are shown as they come. Turn k draws with --seed plus k. Options of drawing are for sounds, unless they say
    text. --json prints the trace instead.
    """
    subtype = "PCM_16" if pcm16 else None
    if output is not None:
        check_writable(output, subtype)
    if plot is not None:
        check_plot(plot)
    if trace is not None:
        check_place(trace)
    from_lines = mode == "dialogue" and prompts[-1] == _STDIN
    if from_lines:
        check_open("- stands for its lines")
    asked: Any = _with_lines(prompts[:-1], line_reader(as_json)) if from_lines else prompts
    if mode != "dialogue":
        if len(prompts) > 1:
            raise InputError(f"{prompts[1]!r}: one PROMPT is expected; several are the turns of --mode dialogue")
        asked = prompts[0]
    with open_model(bundle, threads, max_context, engine, quiet=quiet) as model:
        manifest, outside = model.bundle.manifest, Outside(model, quiet=quiet)
        if output is not None:
            check_writable(output, subtype, sample_rate=manifest.sound_rate, channels=manifest.sound_channels)
        loudspeaker = Loudspeaker(manifest.sound_rate, manifest.sound_channels) if play else None
        if from_lines:
            asked = outside.checked(asked)
        else:
            for prompt in prompts:
                outside.warn(prompt)
        reasoning = model.reason(
            asked,
            mode,  # type: ignore[arg-type]  # checked there
            rounds=rounds,
            seed=seed,
            text=replace(manifest.sampling.text, **given(temperature=text_temperature, max_steps=max_tokens)),
            **given(
                guidance=guidance, temperature=temperature, top_k=top_k, max_steps=steps_of(max_seconds, manifest.codec)
            ),
        )
        result, elapsed = _followed(reasoning, _Shown(quiet=as_json, notices=not (quiet or as_json)), loudspeaker)
        further = about_model(model) | {"outside": outside.found}
        if loudspeaker is not None:
            further["underruns"] = loudspeaker.underruns
    _keep(result, elapsed, further, output, subtype, trace, plot, as_json)


def _with_lines(prompts: list[str], read: Callable[[], str | None]) -> Iterator[str]:
    yield from prompts
    while (line := read()) is not None:
        if line.strip():
            yield line.strip()


def _followed(reasoning: Reasoning, shown: _Shown, loudspeaker: Loudspeaker | None) -> tuple[ReasoningResult, float]:
    """Show the events, and play the sounds if there is a loudspeaker."""
    started = time.perf_counter()
    try:
        for event in reasoning.events(live=loudspeaker is not None):
            shown.event(event)
            if loudspeaker is not None and isinstance(event, StageSound):
                loudspeaker.write(event.chunk)
            elif loudspeaker is not None and isinstance(event, StageEnded):
                loudspeaker.finish()
            if isinstance(event, ReasoningEnded):
                return event.result, time.perf_counter() - started
        raise AssertionError("a reasoning ends with ReasoningEnded")
    finally:
        shown.rest()
        if loudspeaker is not None:
            loudspeaker.abort()
        reasoning.cancel()
        reasoning.join()  # the model is closed now


def _keep(
    result: ReasoningResult,
    elapsed: float,
    further: Mapping[str, object],
    output: Path | None,
    subtype: str | None,
    trace: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Write what was asked for, and report; ``further`` fields are for programs that read the report."""
    about = result.trace()
    if trace is not None:
        with replacing_file(trace) as temporary:
            temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    about |= further
    sound = result.sound
    if sound is None:
        if output is not None or plot is not None:
            raise UalmError(
                f"{output or plot}: not written, since the model answered with texts only; say more, or leave it out"
            )
        return report(as_json, about, f"no sound was made, in {elapsed:.2f} s")
    gain = 1.0 if output is None else sound.save(output, subtype)
    if plot is not None:
        save_spectrogram(sound, plot, result.prompts[-1])
    about |= {
        "output": None if output is None else str(output),
        "plot": None if plot is None else str(plot),
        "gain": gain,
        "seconds": round(sound.duration, 3),
        "elapsed_seconds": round(elapsed, 3),
    }
    scaled = "" if gain == 1.0 else f", scaled by {gain:.3f} to keep the peak below 1"
    dry = f", the player ran dry {about['underruns']} times" if about.get("underruns") else ""
    where = str(output) if output is not None else "played" if "underruns" in about else "not kept, -o FILE does"
    report(as_json, about, f"{where}: {sound.duration:.2f} s in {elapsed:.2f} s{scaled}{dry}")


class _Shown:
    """Thoughts on standard output as they arrive; a live line while a sound is made. ``quiet``: only the live line.

    ``notices``: a line on standard error if a limit cuts a stage, once per limit.
    """

    def __init__(self, *, quiet: bool, notices: bool = True) -> None:
        self._notices = notices
        self._cut: set[FinishReason] = set()
        self._quiet, self._terminal = quiet, sys.stdout.isatty()
        self._live = LiveLine()
        self._mid_line = False
        self._started = 0.0
        #: The stage's name, until it is printed with the text after it: a live line would erase it.
        self._label = ""

    def event(self, event: ReasoningEvent) -> None:
        if isinstance(event, StageStarted):
            self._started, self._label = time.perf_counter(), f"{event.kind}: "
            self._live.show(self._label + ("listening ..." if event.kind == "review" else "thinking ..."))
        elif isinstance(event, StageText):
            self._live.hide()
            self._print_labelled(event.text.translate(CONTROLS) if self._terminal else event.text)
        elif isinstance(event, StageSound):
            made = (event.chunk.start + len(event.chunk.samples)) / event.chunk.sample_rate
            self._live.show(self._label + sound_progress(made, time.perf_counter() - self._started))
        elif isinstance(event, StageEnded):
            self._live.hide()
            sound = event.result.sound
            self._print_labelled("" if sound is None else f"{sound.duration:.2f} s")
            self.rest()
            finish = event.result.segment.finish_reason
            if self._notices and finish not in self._cut:
                tell_cut(finish)
            self._cut.add(finish)
        elif isinstance(event, Verdict):
            self.rest()
            self._print(f"verdict {event.round}: {_VERDICTS[event.agrees]}")
            self.rest()

    def rest(self) -> None:
        """Nothing more comes for now."""
        self._live.hide()
        if self._mid_line:
            self._print("\n")

    def _print_labelled(self, text: str) -> None:
        label, self._label = self._label, ""
        self._print(label + text)

    def _print(self, text: str) -> None:
        if text and not self._quiet:
            print_any(text)
            self._mid_line = not text.endswith("\n")
