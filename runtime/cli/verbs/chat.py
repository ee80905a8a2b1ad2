"""``ualm chat``: a conversation line by line, at a terminal or from a script."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from ...conversation.events import SegmentEnded, SoundChunk, TurnEnded
from ...conversation.prompt import Message
from ...errors import InputError, UalmError
from ...model import Model
from ...process.standard_streams import StandardInputError, StandardOutputError, check_open
from ...process.stopping import forget
from ...sampling import AudioSampling, TextSampling
from ...sound.sound import Sound, Speech
from ..input_lines import ctrl_c, line_reader, typed_path
from ..knowledge import Outside
from ..options import (
    BundleOption,
    ContextOption,
    EngineOption,
    GuidanceOption,
    MaxSecondsOption,
    PlayOption,
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
)
from ..playback import Loudspeaker
from .chat_view import JsonView, TextView, View

#: Commands: what follows the name, and what it does.
COMMANDS = {
    "/sound": ("FILE", "add a sound to the next message; it is heard while you write"),
    "/speech": ("FILE", "the same for speech to be transcribed"),
    "/send": ("", "send the sounds that wait, without a text"),
    "/hear": ("", "add the last sound made to the next message: the model hears its own sounds only this way"),
    "/play": ("", "play the last sound made; needs the extra `play`"),
    "/save": ("FILE", "write the last sound made, as .wav, .flac, .mp3, .ogg or .opus"),
    "/seed": ("N", "draw the next turns with this seed"),
    "/undo": ("", "drop the sounds that wait, or else take back the last turn"),
    "/store": ("FILE", "write the conversation to a file"),
    "/restore": ("FILE", "go on with a conversation that /store wrote"),
    "/help": ("", "show this"),
    "/quit": ("", "leave, as Ctrl-D does"),
}


def chat(
    bundle: BundleOption = None,
    seed: SeedOption = 0,
    modality: Annotated[
        str | None, typer.Option(help="Begin every answer with: audio or text. The model chooses by default.")
    ] = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    max_seconds: MaxSecondsOption = None,
    text_temperature: TextTemperatureOption = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Longest text to write.")] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", help="Seconds that a turn may take; it is taken back then.")
    ] = None,
    play: PlayOption = False,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    quiet: QuietOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every event as one JSON object a line.")] = False,
) -> None:
    """Talk with the model: what you type is your turn, lines that begin with / are commands (see /help).

    Options of drawing are for sounds, unless they say text. Ctrl-C stops a turn; Ctrl-D leaves. Where lines do not come
    from a terminal, the exit status is 1 if any of them failed.
    """
    if modality not in (None, "audio", "text"):
        raise InputError(f"--modality {modality!r}: choose audio or text, or leave it out to let the model choose")
    check_open("your lines come from there")
    view: View = JsonView() if as_json else TextView(notices=not quiet)
    with open_model(bundle, threads, max_context, engine, quiet=quiet) as model:
        manifest = model.bundle.manifest
        defaults = manifest.sampling
        sound_options = given(
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            max_steps=steps_of(max_seconds, manifest.codec),
        )
        text_options = given(temperature=text_temperature, max_steps=max_tokens)
        talk = Chat(
            model,
            view,
            modality=modality,
            audio=replace(defaults.audio, **sound_options, seed=seed),
            text=replace(defaults.text, **text_options, seed=seed),
            limits={"time_limit": math.inf if time_limit is None else time_limit},
            loudspeaker=Loudspeaker(manifest.sound_rate, manifest.sound_channels) if play else None,
            quiet=quiet and not as_json,
        )
        at_terminal = sys.stdin.isatty()
        if as_json or (at_terminal and not quiet):
            about: dict[str, object] = {
                "bundle": str(model.bundle.folder),
                "model": model.identity,
                "max_context": model.max_context,
            }
            about |= about_model(model)
            knows = model.knows
            about["knows"] = None if knows is None else knows.about
            greeting = [f"{model.bundle.folder}: opened; /help lists the commands"]
            if knows is not None:
                greeting.append(f"this model knows {knows.about.rstrip('.')}")
            greeting.append("it hears a sound that it made only when you hand it over: /hear, then ask")
            view.note("opened", "\n".join(greeting), about)
        failed = _converse(talk, view, line_reader(as_json), at_terminal)
    if failed and not at_terminal:
        if as_json:  # in the other view each error was a line on standard error
            failures = "1 line failed; see the event" if failed == 1 else f"{failed} lines failed; see the events"
            raise UalmError(f"{failures} of the type error")
        raise typer.Exit(1)


class Chat:
    """A conversation and its commands; anything that cannot be done is a :class:`UalmError`, and the chat goes on."""

    def __init__(
        self,
        model: Model,
        view: View,
        *,
        modality: str | None,
        audio: AudioSampling,
        text: TextSampling,
        limits: dict[str, Any],
        loudspeaker: Loudspeaker | None = None,
        quiet: bool = False,
    ) -> None:
        """``loudspeaker``: where every sound is played while it is made. ``quiet``: no remarks on prompts."""
        self._model, self._view, self._modality, self._limits = model, view, modality, limits
        self._audio, self._text = audio, text
        self._loudspeaker, self._quiet = loudspeaker, quiet
        self._session = model.session(**limits)
        self._outside = Outside(model)
        self._waiting: list[Message] = []
        self._last_sound: Sound | None = None

    def line(self, line: str) -> bool:
        """Carry out a line; False if it says to leave."""
        if not line.startswith("/"):
            if line.strip():
                self._say([("user", line.strip())])
            return True
        name, *rest = line.rstrip().split(None, 1)  # a terminal's Tab types a tab
        argument = rest[0] if rest else ""
        argument = argument.strip()
        if name not in COMMANDS:
            raise InputError(f"{name}: no such command; /help lists them, and a space before / makes the line a text")
        wanted = COMMANDS[name][0]
        if bool(argument) != bool(wanted):
            raise InputError(f"{name}: write {name} {wanted}" if wanted else f"{name}: takes nothing after it")
        if name == "/quit":
            return False
        getattr(self, "_" + name[1:])(*([argument] if wanted else []))
        return True

    def _say(self, messages: list[Message]) -> None:
        for _, content in messages:
            if isinstance(content, str) and not self._quiet and (line := self._outside.remark(content)):
                self._view.note("outside", line, {"prompt": content})
        turn = self._session.turn(
            [*self._waiting, *messages],
            modality=self._modality,  # type: ignore[arg-type]
            audio=self._audio,
            text=self._text,
        )
        self._view.begin()
        loudspeaker, dry = self._loudspeaker, 0 if self._loudspeaker is None else self._loudspeaker.underruns

        def stop() -> None:
            turn.cancel()
            if loudspeaker is not None:
                loudspeaker.stop()

        try:
            with ctrl_c(stop):
                for event in turn:
                    self._view.event(event)
                    if loudspeaker is not None and isinstance(event, SoundChunk):
                        loudspeaker.write(event)
                    if isinstance(event, SegmentEnded) and event.result.sound is not None:
                        self._last_sound = event.result.sound
                        if loudspeaker is not None:
                            loudspeaker.finish()
                    if isinstance(event, TurnEnded) and event.reason != "cancelled":
                        self._waiting.clear()  # only now: if a turn is taken back, its sounds still wait
        finally:
            self._view.rest()
            if loudspeaker is not None:
                loudspeaker.abort()
        if loudspeaker is not None and (dry := loudspeaker.underruns - dry):
            self._view.note("underruns", f"the player ran dry {dry} times", {"underruns": dry})

    def _send(self) -> None:
        if not self._waiting:
            raise InputError("/send: no sound waits; add one with /sound FILE")
        self._say([])

    def _sound(self, argument: str) -> None:
        self._waiting.append(("user", self._listen(argument)))

    def _speech(self, argument: str) -> None:
        self._waiting.append(("user", Speech(self._listen(argument))))

    def _listen(self, argument: str) -> Sound:
        if argument == "-":
            raise InputError("-: standard input is where your lines come from; write the sound into a file first")
        file = typed_path(argument)
        sound = self._model.listen(file)
        fields = {"file": str(file), "seconds": round(sound.duration, 3), "sample_rate": sound.sample_rate}
        self._view.note("sound_added", f"{file}: {sound.duration:.2f} s, goes with the next message", fields)
        return sound

    def _hear(self) -> None:
        sound = self._made("/hear")
        self._model.listen(sound)  # like a sound from a file, it is encoded while the message is written
        self._waiting.append(("user", sound))
        fields = {"file": None, "seconds": round(sound.duration, 3), "sample_rate": sound.sample_rate}
        self._view.note("sound_added", f"the last sound: {sound.duration:.2f} s, goes with the next message", fields)

    def _play(self) -> None:
        sound = self._made("/play")
        channels = 1 if sound.samples.ndim == 1 else sound.samples.shape[1]
        loudspeaker = Loudspeaker(sound.sample_rate, channels, "/play")
        with ctrl_c(loudspeaker.stop):
            whole = loudspeaker.play(sound)
        fields = {"seconds": round(sound.duration, 3), "whole": whole}
        self._view.note("played", f"played: {sound.duration:.2f} s" if whole else "stopped", fields)

    def _save(self, argument: str) -> None:
        file, sound = typed_path(argument), self._made("/save")
        gain = sound.save(file)
        fields = {"output": str(file), "seconds": round(sound.duration, 3), "sample_rate": sound.sample_rate}
        self._view.note("saved", f"{file}: {sound.duration:.2f} s", fields | {"gain": gain})

    def _made(self, command: str) -> Sound:
        if self._last_sound is None:
            raise InputError(f"{command}: no sound has been made yet")
        return self._last_sound

    def _seed(self, argument: str) -> None:
        if not (argument.isascii() and argument.isdigit()):
            raise InputError(f"/seed: {argument!r} is not a whole number")
        audio, text = (replace(options, seed=int(argument)) for options in (self._audio, self._text))
        self._audio, self._text = audio, text  # type: ignore[assignment]
        self._view.note("seed", f"seed {audio.seed}", {"seed": audio.seed})

    def _undo(self) -> None:
        if self._waiting:
            plain = "the sounds that waited are dropped"
            self._waiting.clear()
        elif self._session.turns == 0:
            raise InputError("/undo: there is no turn to take back")
        else:
            self._session.truncate(self._session.turns - 1)
            plain = "the last turn is taken back"
        self._view.note("undone", f"{plain}; {self._held}", self._fields)

    def _store(self, argument: str) -> None:
        file = typed_path(argument)
        self._session.save(file)
        self._view.note("stored", f"{file}: {self._held}", {"output": str(file)} | self._fields)

    def _restore(self, argument: str) -> None:
        file = typed_path(argument)
        self._session = self._model.restore(file, **self._limits)
        self._view.note("restored", f"{file}: {self._held}", {"file": str(file)} | self._fields)

    def _help(self) -> None:
        lines = [f"{name + ' ' + wanted:<14} {what}" for name, (wanted, what) in COMMANDS.items()]
        lines.append(f"{'':<14} Ctrl-C stops the model's turn; a space before / makes a line a text")
        self._view.note("help", "\n".join(lines), {name: what for name, (_, what) in COMMANDS.items()})

    @property
    def _held(self) -> str:
        return f"the conversation holds {self._session.turns} turns ({self._session.rows} rows)"

    @property
    def _fields(self) -> dict[str, object]:
        return {"turns": self._session.turns, "rows": self._session.rows}


def _converse(talk: Chat, view: View, read: Callable[[], str | None], at_terminal: bool) -> int:
    """Lines until the end; returns how many failed. At a terminal, Ctrl-C at the prompt twice in a row leaves."""
    failed, warned = 0, False
    while True:
        try:
            line = read()
            warned = False
            if line is None or not talk.line(line):
                return failed
        except (StandardInputError, StandardOutputError):
            raise
        except UalmError as error:
            view.error(error)
            failed += 1
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            forget()
            if warned:
                return failed
            warned = True
            view.note("interrupted", "\nCtrl-C once more leaves, as /quit and Ctrl-D do", {})
