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

    ``index`` counts all stages, ``turn`` the turns of the reasoning, both from 0. ``seed``: what it was drawn with.
    ``seconds``: from its first event to its last, as they were read.
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
        said = ", ".join(repr(shortened(each)) for each in self.said[:2])
        return f"ReasonedTurn({said}{', ...' if len(self.said) > 2 else ''}, reason={self.reason!r})"


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; ``stage`` counts from 0, in all events."""

    stage: int
    kind: StageKind
    modality: Modality


@dataclass(frozen=True)
class StageText:
    """More text of a stage: the model thinks, asks, answers or judges. All of a stage joined are its text."""

    stage: int
    text: str


@dataclass(frozen=True, eq=False)
class StageSound:
    """More sound of a stage, as a :class:`SoundChunk`."""

    stage: int
    chunk: SoundChunk


@dataclass(frozen=True, eq=False)
class StageEnded:
    """A stage is complete. It counts once its turn is: see ``ReasoningEnded``."""

    stage: int
    result: Stage


@dataclass(frozen=True)
class Verdict:
    """The result of hearing the sound again; ``round`` counts from 1.

    ``agrees``: True where the review says so, False where it says otherwise or the model went on with another sound,
    None where it says neither. ``review``: the model's words.
    """

    round: int
    agrees: bool | None
    review: str

    def __repr__(self) -> str:
        return f"Verdict(round={self.round}, agrees={self.agrees}, review={shortened(self.review)!r})"


@dataclass(frozen=True, eq=False)
class ReasoningResult:
    """Everything that was thought and made; of a cancelled reasoning, its whole turns."""

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
        """Everything but samples and codes, as JSON holds it."""
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
    """The last event. ``result.ended``: "done", or "cancelled" (the turn under way is taken back with its stages)."""

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
