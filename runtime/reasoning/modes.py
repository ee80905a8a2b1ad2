"""UALM-Reason over a session whose cache is kept: enrichment, dialogue and self-reflection.

- "enrich": the prompt is answered with a caption, and the model goes on by itself with the sound. A model whose turn
  ends with the caption is given it back as the next prompt, to be answered with sound: caption to sound is what every
  UALM learns. An empty caption is replaced by the prompt.
- "dialogue": turns of the user, in each of which the model chooses text or sound; the last sound is the result.
- "reflect": enrichment; then, at most ``rounds`` times, the sound goes back in through the encoder, with the check of
  the templates behind it, and the model says what it hears and judges. A second sound of that turn is the repair. A
  model that says the sound differs and stops is asked for the repair, if the templates have words for it. A round
  whose review does not differ is the last. The repair of the last round is not heard again.

Turn k of a reasoning (from 0) draws with seed + k: a second try gives another result.

Overlap: a sound is encoded as soon as its last frame is decoded, while its turn is closed and its last samples are
played. Not earlier: the encoders' features depend on the mean, the variance and the loudest mel bin of the whole
sound, so features of an unfinished sound would be wrong.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal, get_args

from ..bundle.templates import ReflectTemplate, filled
from ..conversation.closing import Closing
from ..conversation.events import SegmentEnded, SegmentStarted, SoundChunk, TextDelta
from ..conversation.prompt import Content
from ..conversation.session import Session
from ..conversation.turn import Turn, open_turn
from ..errors import InputError, SessionError, UalmError
from ..files.reading import shown
from ..sampling import AudioSampling, TextSampling
from ..sound.sound import Sound
from ..vocabulary import Modality
from .async_events import AsyncReasoningEvents
from .results import (
    ReasonedTurn,
    ReasoningEnded,
    ReasoningEvent,
    ReasoningResult,
    ReasonMode,
    Stage,
    StageEnded,
    StageKind,
    StageSound,
    StageStarted,
    StageText,
    Verdict,
)

_SEEDS = 2**64
_Messages = list[tuple[str, Content]]


class Reasoning(Closing):
    """Thought before, between or after sounds: iterate (``for`` or ``async for``) for its events, once.

    Made by :meth:`Model.reason`; :meth:`result` runs it to the end. The events are :class:`StageStarted`,
    :class:`StageText` or :class:`StageSound`, :class:`StageEnded` for each stage, :class:`Verdict` before a repair or
    at the end of a review, and :class:`ReasoningEnded` at the end.

    Parameters
    ----------
    session : Session
        The conversation that is gone on with.
    prompt : str or iterable of str
        What the user asks; texts only for a "dialogue".
    mode : {"enrich", "dialogue", "reflect"}, default "enrich"
        What is done with it, see Notes.
    rounds : int, default 1
        How often a sound may be heard again, at least 1; more than 1 only for "reflect".
    audio : AudioSampling
        How sounds are drawn.
    text : TextSampling
        How texts are drawn.

    Attributes
    ----------
    session : Session
        The conversation, with the whole turns of the reasoning.
    mode : str
        "enrich", "dialogue" or "reflect".
    rounds : int
        How often a sound may be heard again.

    Raises
    ------
    InputError
        For a prompt, a mode or a number of rounds that cannot be used.
    UalmError
        In the iteration: as of a :class:`Turn`, whichever turn fails; its ``segments`` are those of the whole turns and
        of the turn that failed.

    Notes
    -----
    "enrich": the prompt is answered with a caption, and the model goes on with the sound. "dialogue": turns of the
    user, in each of which the model chooses text or sound; the last sound is the result. "reflect": as "enrich"; then,
    at most ``rounds`` times, the sound is heard again and judged, and made again where it differs from the request.

    Leaving the loop early cancels the turn under way; leaving a ``with`` block waits for that as well. Each turn counts
    by itself: one that fails, is cancelled or reaches a limit is taken back, and the session keeps the whole turns
    before it.

    Examples
    --------
    >>> for event in model.reason("something cheerful on a marimba", max_seconds=0.1):
    ...     if isinstance(event, StageStarted):
    ...         print(event.kind)
    caption
    sound
    """

    def __init__(
        self,
        session: Session,
        prompt: str | Iterable[str],
        *,
        mode: ReasonMode = "enrich",
        rounds: int = 1,
        audio: AudioSampling,
        text: TextSampling,
    ) -> None:
        if mode not in get_args(ReasonMode):
            raise InputError(f"mode = {mode!r}: choose {', '.join(map(repr, get_args(ReasonMode)))}")
        if type(rounds) is not int or rounds < 1:
            raise InputError(f"rounds = {rounds!r}: give a whole number of at least 1")
        if rounds > 1 and mode != "reflect":
            raise InputError(f"rounds = {rounds}: only the mode 'reflect' has rounds; leave it out for {mode!r}")
        self.session, self.mode, self.rounds = session, mode, rounds
        self._audio, self._text = audio, text
        self._resources = session.state.resources
        self._templates = self._resources.bundle.manifest.templates
        self._prompts = self._checked(prompt)
        self._taken: list[str] = []
        self._turns: list[ReasonedTurn] = []
        self._stages: list[Stage] = []
        self._verdicts: list[Verdict] = []
        #: Rounds begun.
        self._rounds = 0
        self._turn: Turn | None = None
        self._cancelled = self._begun = self._live = False

    @property
    def stages(self) -> Sequence[Stage]:
        """Stages so far, those of a turn under way included."""
        return tuple(self._stages)

    def cancel(self) -> None:
        """Stop soon, from any thread.

        After at most one event already waiting comes :class:`ReasoningEnded`, whose result has ``ended`` "cancelled".

        Examples
        --------
        >>> reasoning = model.reason("something cheerful on a marimba")
        >>> for event in reasoning:
        ...     reasoning.cancel()
        >>> event.result.ended
        'cancelled'
        """
        self._cancelled = True
        if self._turn is not None:
            self._turn.cancel()

    def result(self) -> ReasoningResult:
        """Run to the end, and return everything that was thought and made.

        Nothing is played meanwhile: as in :meth:`Turn.segments`, equal runs give equal bits.

        Returns
        -------
        ReasoningResult
            All stages, turns and verdicts.

        Raises
        ------
        SessionError
            If the events were read before, or the session is busy or closed.
        UalmError
            As in the iteration.

        Examples
        --------
        >>> result = model.reason("something cheerful on a marimba", max_seconds=0.1).result()
        >>> [stage.kind for stage in result.stages], result.finish
        (['caption', 'sound'], 'max_seconds')
        """
        for event in self.events(live=False):
            if isinstance(event, ReasoningEnded):
                return event.result
        raise AssertionError("a reasoning ends with ReasoningEnded")

    def __iter__(self) -> Iterator[ReasoningEvent]:
        return self.events()

    def events(self, *, live: bool = True) -> Iterator[ReasoningEvent]:
        """Iterate over the events, once.

        Parameters
        ----------
        live : bool, default True
            Sounds are played while they are made, so that their pieces follow the clock. False: they follow the profile
            alone, and equal runs give equal bits.

        Yields
        ------
        StageStarted, StageText, StageSound, StageEnded, Verdict or ReasoningEnded
            The events in order.

        Raises
        ------
        SessionError
            If the events were read before, or the session is busy or closed.
        UalmError
            Where a turn fails; its ``segments`` are those of the whole turns and of the turn that failed.

        Examples
        --------
        >>> *_, ended = model.reason("something cheerful on a marimba", max_seconds=0.1).events(live=False)
        >>> ended.result.sound.duration
        0.1
        """
        if self._begun:
            raise SessionError("the events of a reasoning can be read once; begin another")
        self._begun, self._live = True, live
        steps = {"enrich": self._enrich, "dialogue": self._dialogue, "reflect": self._reflect}
        ended: Literal["done", "cancelled"] = "done"
        try:
            yield from steps[self.mode]()
        except _Cancelled:
            ended = "cancelled"
        except UalmError as error:
            self._take_back()
            error.segments = [*(stage.segment for stage in self._stages), *error.segments]
            raise
        yield ReasoningEnded(
            ReasoningResult(
                self.mode,
                self._resources.bundle.digest,
                tuple(self._taken),
                self._audio,
                self._text,
                tuple(self._turns),
                tuple(self._stages),
                tuple(self._verdicts),
                ended,
            )
        )

    def __aiter__(self) -> AsyncReasoningEvents:
        return AsyncReasoningEvents(iter(self), self.cancel)

    def __repr__(self) -> str:
        state = "under way" if self._begun else "not begun"
        return f"Reasoning({self.mode!r}, {state}, {len(self._turns)} turns, {len(self._stages)} stages)"

    # ---- the modes ----

    def _enrich(self) -> Iterator[ReasoningEvent]:
        template, prompt = self._templates.enrich, next(iter(self._prompts))
        self._taken.append(prompt)
        request = filled(template.request, prompt=prompt)
        yield from self._take(_after(template.system, request), "caption", "sound", "text")
        if self._last_sound() is None:
            play = filled(template.play, prompt=prompt, caption=self._caption())
            yield from self._take([("user", play)], "caption", "sound", "audio")

    def _dialogue(self) -> Iterator[ReasoningEvent]:
        template = self._templates.dialogue
        for prompt in self._prompts:
            self._check_prompt(prompt)
            self._taken.append(prompt)
            request = filled(template.request, prompt=prompt)
            yield from self._take(_after(None if self._turns else template.system, request), "answer", "sound", None)

    def _reflect(self) -> Iterator[ReasoningEvent]:
        yield from self._enrich()
        for number in range(1, self.rounds + 1):
            verdict = yield from self._round(self._templates.reflect, number)
            if verdict.agrees is not False:
                return

    def _round(self, template: ReflectTemplate, number: int) -> Generator[ReasoningEvent, None, Verdict]:
        """Have the model hear the last sound again; returns the verdict."""
        self._rounds = number
        sound, first = self._last_sound(), len(self._stages)
        assert sound is not None  # a turn forced to sound makes one
        words = {"prompt": self._taken[0], "caption": self._caption()}
        verdict: Verdict | None = None
        check: _Messages = [("user", sound), ("user", filled(template.check, **words))]
        for event in self._take(check, "review", "repair", "text"):
            if verdict is None and isinstance(event, StageStarted) and event.kind == "repair":
                verdict = Verdict(number, False, self._written("review", first))
                yield verdict
            yield event
        review = self._written("review", first)
        if verdict is None:
            verdict = Verdict(number, _agrees(review, template), review)
            yield verdict
        self._verdicts.append(verdict)
        repaired = any(stage.kind == "repair" for stage in self._stages[first:])
        if verdict.agrees is False and not repaired and template.repair is not None:
            repair = filled(template.repair, **words, review=review)
            yield from self._take([("user", repair)], "review", "repair", "audio")
        return verdict

    # ---- one turn ----

    def _take(
        self, messages: _Messages, text_kind: StageKind, sound_kind: StageKind, modality: Modality | None
    ) -> Iterator[ReasoningEvent]:
        """One turn of the session, its segments as stages."""
        number = len(self._turns)
        audio = replace(self._audio, seed=(self._audio.seed + number) % _SEEDS)
        text = replace(self._text, seed=(self._text.seed + number) % _SEEDS)
        texts = tuple(content if isinstance(content, str) else self._named(content) for _, content in messages)
        self._turn = open_turn(
            self.session.state, messages, modality=modality, audio=audio, text=text, profile="balanced", live=self._live
        )
        if self._cancelled:
            self._turn.cancel()
        first, kind, began = len(self._stages), text_kind, 0.0
        try:
            for event in self._turn:
                if isinstance(event, SegmentStarted):
                    kind, began = (sound_kind if event.modality == "audio" else text_kind), time.perf_counter()
                    yield StageStarted(first + event.segment, kind, event.modality)
                elif isinstance(event, TextDelta):
                    yield StageText(first + event.segment, event.text)
                elif isinstance(event, SoundChunk):
                    yield StageSound(first + event.segment, event)
                elif isinstance(event, SegmentEnded):
                    seed = audio.seed if event.result.modality == "audio" else text.seed
                    took = time.perf_counter() - began
                    self._stages.append(Stage(len(self._stages), number, kind, event.result, seed, took))
                    self._listen_ahead(event.result.sound)
                    yield StageEnded(len(self._stages) - 1, self._stages[-1])
                elif event.reason == "cancelled":
                    self._take_back()
                    raise _Cancelled
                else:
                    self._turns.append(ReasonedTurn(texts, modality, event.reason, event.seconds))
        finally:
            self._turn.cancel()  # does nothing if it is over

    def _listen_ahead(self, sound: Sound | None) -> None:
        """Start encoding a sound that the next turn will hear."""
        if self.mode == "reflect" and sound is not None and self._rounds < self.rounds:
            with suppress(UalmError):  # the turn that hears it reports what is wrong with it
                self._resources.features.start(sound)

    def _take_back(self) -> None:
        """Forget the stages of a turn that did not count."""
        self._stages = [stage for stage in self._stages if stage.turn < len(self._turns)]

    def join(self) -> None:
        """Wait until none of its threads uses the model any more, so that it may be closed.

        Examples
        --------
        >>> reasoning = model.reason("something cheerful on a marimba")
        >>> event = next(iter(reasoning))  # the iterator is dropped, which cancels the turn under way
        >>> reasoning.join()
        """
        if self._turn is not None:
            self._turn.join()

    # ---- looking back ----

    def _last_sound(self) -> Sound | None:
        return next((stage.sound for stage in reversed(self._stages) if stage.sound is not None), None)

    def _written(self, kind: StageKind, first: int = 0) -> str:
        return " ".join(stage.text for stage in self._stages[first:] if stage.kind == kind and stage.text)

    def _caption(self) -> str:
        """The caption; the prompt if the model wrote none."""
        written = self._written("caption")
        return written if written.strip() else self._taken[0]

    def _named(self, content: object) -> str:
        for stage in self._stages:
            if stage.sound is content:
                return f"[sound of stage {stage.index}]"
        raise AssertionError("only sounds of stages are heard again")

    # ---- input checks ----

    def _checked(self, prompt: str | Iterable[str]) -> Iterable[str]:
        """The user's turns; those already known are checked now, those from an iterator when they arrive."""
        if isinstance(prompt, str):
            prompts: Iterable[str] = [prompt]
        elif self.mode != "dialogue":
            raise InputError(f"prompt: the mode {self.mode!r} takes one text, not a {type(prompt).__name__}")
        elif isinstance(prompt, Iterable):
            prompts = prompt
        else:
            raise InputError(f"prompt is a {type(prompt).__name__}; give a text, or texts for a dialogue")
        if isinstance(prompts, (list, tuple)):
            if not prompts:
                raise InputError("prompt: a dialogue takes at least one turn; give a text")
            for each in prompts:
                self._check_prompt(each)
            prompts = list(prompts)
        return prompts

    def _check_prompt(self, prompt: object) -> None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"prompt = {shown(prompt)}: give a text that is not empty")
        self._resources.checked([("user", prompt)])


class _Cancelled(Exception):
    """The turn under way was cancelled."""


def _after(system: str | None, request: str) -> _Messages:
    return [*([("system", system)] if system is not None else []), ("user", request)]


def _agrees(review: str, template: ReflectTemplate) -> bool | None:
    """The verdict by the words of a review; None if it contains none of them."""
    text = review.casefold()
    if any(words.casefold() in text for words in template.differs):
        return False
    return True if any(words.casefold() in text for words in template.agrees) else None
