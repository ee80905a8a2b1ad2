"""Results and streaming events of the reasoning modes, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..conversation.events import SoundChunk
from ..conversation.segment import Segment
from ..finish import FinishReason
from ..sampling import AudioSampling, TextSampling
from ..shown import shortened
from ..sound.sound import Sound
from ..vocabulary import Modality

ReasonMode = Literal["enrich", "dialogue", "reflect"]
#: "caption": the text that a sound is planned with. "answer": a text of a dialogue. "sound": a sound of the first turn,
#: or of a dialogue. "review": what is said about a sound heard again. "repair": a sound made after a review.
StageKind = Literal["caption", "answer", "sound", "review", "repair"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One segment and its part in the reasoning.

    Attributes
    ----------
    index : int
        Its number; counts all stages from 0.
    turn : int
        Number of its turn in the reasoning, from 0.
    kind : str
        "caption", the text that a sound is planned with; "answer", a text of a dialogue; "sound", a sound of the first
        turn, or of a dialogue; "review", what is said about a sound heard again; "repair", a sound made after a review.
    segment : Segment
        The segment.
    seed : int
        What it was drawn with.
    seconds : float
        Seconds from its first event to its last, as they were read.

    Examples
    --------
    >>> result = model.reason("something cheerful on a marimba", seed=7, max_seconds=0.1).result()
    >>> [(stage.index, stage.turn, stage.kind, stage.seed) for stage in result.stages]
    [(0, 0, 'caption', 7), (1, 0, 'sound', 7)]
    """

    index: int
    turn: int
    kind: StageKind
    segment: Segment
    seed: int
    seconds: float

    @property
    def text(self) -> str | None:
        """Its text; None for a sound."""
        return self.segment.text

    @property
    def sound(self) -> Sound | None:
        """Its sound; None for a text."""
        return self.segment.sound


@dataclass(frozen=True)
class ReasonedTurn:
    """A turn of the reasoning: what was said ("[sound of stage N]" for a sound that is heard again), the modality that
    was asked for (None: the model chose), and how it ended, as in ``events.TurnEnded``."""

    said: tuple[str, ...]
    modality: Modality | None
    reason: str
    seconds: Mapping[str, float]

    def __repr__(self) -> str:
        quoted = ", ".join(repr(shortened(each)) for each in self.said[:2])
        return f"ReasonedTurn({quoted}{', ...' if len(self.said) > 2 else ''}, reason={self.reason!r})"


@dataclass(frozen=True)
class StageStarted:
    """A stage begins.

    Attributes
    ----------
    stage : int
        Its number; counts from 0, in all events.
    kind : str
        "caption", "answer", "sound", "review" or "repair", see :class:`Stage`.
    modality : str
        "audio" or "text".

    Examples
    --------
    >>> next(iter(model.reason("something cheerful on a marimba")))
    StageStarted(stage=0, kind='caption', modality='text')
    """

    stage: int
    kind: StageKind
    modality: Modality


@dataclass(frozen=True)
class StageText:
    """More text of a stage: the model thinks, asks, answers or judges. All of a stage joined are its text.

    Attributes
    ----------
    stage : int
        Number of the stage.
    text : str
        What is added, never empty.

    Examples
    --------
    >>> events = list(model.reason("something cheerful on a marimba", max_seconds=0.1))
    >>> written = "".join(event.text for event in events if isinstance(event, StageText) and event.stage == 0)
    >>> written == events[-1].result.stages[0].text
    True
    """

    stage: int
    text: str


@dataclass(frozen=True, eq=False)
class StageSound:
    """More sound of a stage.

    Attributes
    ----------
    stage : int
        Number of the stage.
    chunk : SoundChunk
        What is added; the chunks of a stage joined are its sound.

    Examples
    --------
    >>> for event in model.reason("something cheerful on a marimba", max_seconds=0.1):
    ...     if isinstance(event, StageSound):
    ...         print(event.chunk.samples.shape, event.chunk.sample_rate)
    (1600,) 16000
    """

    stage: int
    chunk: SoundChunk


@dataclass(frozen=True, eq=False)
class StageEnded:
    """A stage is complete. It counts once its turn is: see :class:`ReasoningEnded`.

    Attributes
    ----------
    stage : int
        Number of the stage.
    result : Stage
        The whole stage.

    Examples
    --------
    >>> for event in model.reason("something cheerful on a marimba", max_seconds=0.1):
    ...     if isinstance(event, StageEnded):
    ...         print(event.stage, event.result.kind, event.result.segment.finish_reason)
    0 caption stop
    1 sound max_seconds
    """

    stage: int
    result: Stage


@dataclass(frozen=True)
class Verdict:
    """The result of hearing the sound again, in the mode "reflect".

    Attributes
    ----------
    round : int
        Counts from 1.
    agrees : bool or None
        True where the review says so, False where it says otherwise or the model went on with another sound, None where
        it says neither.
    review : str
        The model's words.

    Examples
    --------
    >>> for event in model.reason("a trumpet plays G5", "reflect", max_seconds=0.3):
    ...     if isinstance(event, Verdict):
    ...         print(event.round, isinstance(event.review, str))
    1 True
    """

    round: int
    agrees: bool | None
    review: str

    def __repr__(self) -> str:
        return f"Verdict(round={self.round}, agrees={self.agrees}, review={shortened(self.review)!r})"


@dataclass(frozen=True, eq=False)
class ReasoningResult:
    """Everything that was thought and made; of a cancelled reasoning, its whole turns.

    Attributes
    ----------
    mode : str
        "enrich", "dialogue" or "reflect".
    model : str
        Digest of the bundle, as :attr:`Model.identity`.
    prompts : tuple of str
        What the user asked.
    audio : AudioSampling
        How sounds were drawn; turn k, from 0, with its seed + k.
    text_options : TextSampling
        How texts were drawn, likewise.
    turns : tuple of ReasonedTurn
        The turns: what was said, in which modality an answer was asked for (None: the model chose), and how each ended.
    stages : tuple of Stage
        The segments of all turns, in order.
    verdicts : tuple of Verdict
        Of the mode "reflect", one a round.
    ended : str
        "done" or "cancelled".

    Examples
    --------
    >>> result = model.reason("something cheerful on a marimba", max_seconds=0.1).result()
    >>> result.mode, result.ended, len(result.turns), result.sound.duration
    ('enrich', 'done', 1, 0.1)
    """

    mode: ReasonMode
    model: str
    prompts: tuple[str, ...]
    audio: AudioSampling
    text_options: TextSampling
    turns: tuple[ReasonedTurn, ...]
    stages: tuple[Stage, ...]
    verdicts: tuple[Verdict, ...]
    ended: Literal["done", "cancelled"]

    def __repr__(self) -> str:
        made = f"{len(self.turns)} turns, {len(self.stages)} stages, {self.sound!r}"
        return f"ReasoningResult({self.mode!r}, {self.ended!r}, {made})"

    @property
    def sound(self) -> Sound | None:
        """The result: the last sound made; None if there is none."""
        return next((stage.sound for stage in reversed(self.stages) if stage.sound is not None), None)

    @property
    def finish(self) -> FinishReason | None:
        """How the result ended, as :attr:`Sound.finish`: the last sound, or the last text where there is none."""
        last = [stage.segment.finish_reason for stage in self.stages if stage.sound is not None or self.sound is None]
        return last[-1] if last else None

    @property
    def caption(self) -> str | None:
        """The text before the first sound; in a dialogue, the last text."""
        texts = [stage.text for stage in self.stages if stage.kind in ("caption", "answer") and stage.text is not None]
        if not texts:
            return None
        return texts[-1] if self.mode == "dialogue" else " ".join(texts)

    def trace(self) -> dict[str, Any]:
        """Gather everything but samples and codes, as JSON holds it.

        Returns
        -------
        dict of str to value
            "format", "version", "model", "mode", "prompts", "sampling", "turns" with their stages, "verdicts", "finish"
            and "ended"; times are in seconds, rounded to four digits.

        Examples
        --------
        >>> result = model.reason("something cheerful on a marimba", max_seconds=0.1).result()
        >>> [stage["kind"] for turn in result.trace()["turns"] for stage in turn["stages"]]
        ['caption', 'sound']
        """
        turns = []
        for index, turn in enumerate(self.turns):
            stages = [_stage(stage) for stage in self.stages if stage.turn == index]
            seconds = {name: round(value, 4) for name, value in turn.seconds.items()}
            ended = {"reason": stages[-1]["finish"]}  # in one vocabulary
            turns.append(vars(turn) | ended | {"said": list(turn.said), "seconds": seconds, "stages": stages})
        return {
            "format": "ualm-reasoning",
            "version": 1,
            "model": self.model,
            "mode": self.mode,
            "prompts": list(self.prompts),
            "sampling": {"audio": vars(self.audio), "text": vars(self.text_options)},
            "turns": turns,
            "verdicts": [vars(verdict) for verdict in self.verdicts],
            "finish": self.finish,
            "ended": self.ended,
        }


@dataclass(frozen=True, eq=False)
class ReasoningEnded:
    """The last event of a reasoning.

    Attributes
    ----------
    result : ReasoningResult
        Everything. Its ``ended`` is "done", or "cancelled" (the turn under way is taken back with its stages).

    Examples
    --------
    >>> *_, event = model.reason("something cheerful on a marimba", max_seconds=0.1)
    >>> event.result.ended
    'done'
    """

    result: ReasoningResult


ReasoningEvent = StageStarted | StageText | StageSound | StageEnded | Verdict | ReasoningEnded


def _stage(stage: Stage) -> dict[str, Any]:
    segment = stage.segment
    about: dict[str, Any] = {
        "stage": stage.index,
        "kind": stage.kind,
        "modality": segment.modality,
        "seed": stage.seed,
        "finish": segment.finish_reason,
        "rows": len(segment.rows),
        "took_seconds": round(stage.seconds, 4),
    }
    if segment.text is not None:
        about["text"] = segment.text
    if segment.sound is not None:
        codes = segment.sound.codes
        about["codes"] = 0 if codes is None else int(codes.size)
        about["frames"] = 0 if codes is None else len(codes)
        about |= {"seconds": round(segment.sound.duration, 4), "sample_rate": segment.sound.sample_rate}
    return about
