"""Writes a conversation as rows, with the training target of each row.

The layout is that of the runtime (``runtime.conversation.prompt`` and ``loop``): ``bos``, then per message role,
modality, content, and ``eot`` if the next message has the same role, else ``eos``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ....runtime.audio.features import audible_range
from ....runtime.bundle.feature_spec import OMNI, FeatureSpec
from ....runtime.vocabulary import BOS, EOS, EOT, MODALITIES, ROLES, STREAMS, Vocabulary
from .detect import Judge
from .domain import HOP, SAMPLE_RATE, SLOTS, FrameBank, sounds

#: Kinds of targets: nothing to learn, a choice of modality, a text token, an audio row.
NOTHING, MODALITY, TEXT, AUDIO = 0, 1, 2, 3
#: Weights of the cells where something is decided; cells that follow from earlier draws have weight 1.
_FIRST_FRAME, _FIRST_FRAME_REST, _END, _GOES_ON, _CONTENT = 8.0, 2.0, 4.0, 3.0, 3.0
_SHORT_ANSWER = 6.0
#: Features of the encoder's input. Silence carries no information for ualm-tiny, and is cut at both ends.
FEATURES = FeatureSpec(OMNI, SAMPLE_RATE, 400, 160, 128, 4_800_000, True, window_frames=200, silence_db=50)
#: Silence before or after a heard sound is shorter than this, in frames: 2.2 s.
_LONG_SILENCE = 111
#: Weights of the words of a review that say whether anything was heard at all, and whether it is right.
_VERDICT = 15.0


@dataclass(frozen=True)
class HeardSound:
    """A sound in a conversation: rows ``start`` .. ``start + rows`` take the features of ``samples`` (16 kHz)."""

    start: int
    rows: int
    samples: np.ndarray
    #: Class of the sound at each feature row, and whether an event begins there: int64 [rows], for the probe.
    classes: np.ndarray
    onsets: np.ndarray


@dataclass(frozen=True)
class Example:
    """``rows`` int32 [R, 8]; ``kinds`` int8 [R] and ``weights`` float32 [R, 8]: the targets of each row.

    ``sounds``: (first, stop) rows of each sound that the model generates and learns, from the modality row to the stop
    row.
    """

    task: str
    rows: np.ndarray
    kinds: np.ndarray
    weights: np.ndarray
    heard: tuple[HeardSound, ...]
    sounds: tuple[tuple[int, int], ...]


@dataclass
class Studio:
    """The material of examples. ``encode``: text to tokenizer ids; ``content_ids``: ids of tokens that carry
    information."""

    bank: FrameBank
    codes: np.ndarray
    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    content_ids: frozenset[int]
    classes: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judge = Judge()
        self.classes = {sound: index + 1 for index, sound in enumerate(sounds())}
        labels = self.bank.labels
        self._frame_class = np.array([0 if label is None else self.classes[label[0], label[1]] for label in labels])
        self._position = np.array([-1 if label is None else label[2] for label in labels])

    def decisive(self, review: list[int]) -> frozenset[int]:
        """Where the ids of a review say what was heard, starting at its first word, and whether that is right."""
        heard = len(self.encode("heard:"))
        words = [self.encode(f"it {word}") for word in ("matches", "differs")]
        ends = {at + 1 for word in words for at in range(len(review)) if review[at : at + 2] == word[:2]}
        return frozenset({heard, *ends})

    def frame_classes(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class of each frame (0 silence), and whether an event begins in it."""
        return self._frame_class[frames], (self._position[frames] == 0).astype(np.int64)

    def positions(self, frames: np.ndarray) -> np.ndarray:
        return self._position[frames]


class Writer:
    """Writes one conversation."""

    def __init__(self, studio: Studio, rng: random.Random, task: str) -> None:
        self.studio, self.rng, self.task = studio, rng, task
        self._rows: list[np.ndarray] = [studio.vocabulary.special_row(BOS)]
        self._kinds: list[int] = [NOTHING]
        self._weights: list[np.ndarray] = [np.zeros(STREAMS, np.float32)]
        self._heard: list[HeardSound] = []
        self._sounds: list[tuple[int, int]] = []
        self._role = ""
        #: The row that closes the last message is written once the next one's role is known.
        self._open: tuple[int, float] | None = None

    def _row(self, row: np.ndarray, kind: int = NOTHING, weights: np.ndarray | float = 0.0) -> None:
        self._rows.append(np.asarray(row, np.int32))
        self._kinds.append(kind if np.any(weights) else NOTHING)
        whole = np.zeros(STREAMS, np.float32)
        whole[: 1 if np.isscalar(weights) else STREAMS] = weights
        self._weights.append(whole)

    def _token(self, token: int, kind: int = NOTHING, weight: float = 0.0) -> None:
        self._row(self.studio.vocabulary.special_row(token), kind, weight)

    def _close(self, role: str) -> None:
        if self._open is not None:
            kind, weight = self._open
            self._token(EOT if role == self._role else EOS, kind, weight)
            if kind == AUDIO and weight:
                self._sounds[-1] = (self._sounds[-1][0], len(self._rows))
        self._role = role

    def _begin(self, role: str, modality: str, weight: float) -> None:
        self._close(role)
        self._token(ROLES[role])
        self._token(MODALITIES[modality], MODALITY, weight)

    def user(self, text: str) -> None:
        self._begin("user", "text", 0.0)
        for row in self.studio.vocabulary.text_rows(self.studio.encode(text)):
            self._row(row)
        self._open = (NOTHING, 0.0)

    def user_sound(self, frames: np.ndarray, *, padded: bool = False) -> None:
        """A heard sound with the given frames; ``padded``: with some silence around it."""
        rng = self.rng
        if padded:
            if rng.random() < 0.3:
                before, after = rng.randrange(_LONG_SILENCE), rng.randrange(_LONG_SILENCE)
            else:
                before, after = rng.choice([0, 0, rng.randrange(10)]), rng.choice([0, 0, rng.randrange(16)])
            frames = np.concatenate([np.zeros(before, np.int64), frames, np.zeros(after, np.int64)])
        samples = self.studio.bank.frames[frames].reshape(-1)
        if rng.random() < 0.8:  # noise that a codec adds in any precision
            scale = float(np.sqrt(np.mean(samples**2))) * 10 ** (-rng.uniform(25, 70) / 20)
            noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples))
            samples = samples + (scale * noise).astype(np.float32)
        # as the bundle hears it: silence is cut, unless there is too much noise in it
        first, stop = audible_range(samples, FEATURES)
        samples, frames = samples[first:stop], frames[first // HOP : stop // HOP]
        classes, onsets = self.studio.frame_classes(frames)
        rows = len(frames) // 2
        pairs = classes[: 2 * rows].reshape(rows, 2)
        begins = onsets[: 2 * rows].reshape(rows, 2).max(1)
        self._begin("user", "audio", 0.0)
        self._heard.append(HeardSound(len(self._rows), rows, samples, pairs[:, 1], begins))
        for _ in range(rows):
            self._token(0)
        self._open = (NOTHING, 0.0)

    def says(self, text: str, *, choice: float = 1.0, verdict: bool = False) -> None:
        """A text by the model; ``choice``: weight of the choice to answer with text here.

        ``verdict``: it is a review, in which two words decide what follows.
        """
        self._begin("assistant", "text", choice)
        ids = self.studio.encode(text)
        least = _SHORT_ANSWER / len(ids)  # a short answer must not vanish beside long ones
        decisive = self.studio.decisive(ids) if verdict else frozenset()
        for at, (row, token) in enumerate(zip(self.studio.vocabulary.text_rows(ids), ids, strict=True)):
            weight = _VERDICT if at in decisive else _CONTENT if token in self.studio.content_ids else 1.0
            self._row(row, TEXT, max(least, weight))
        self._open = (TEXT, 1.0)

    def plays(self, frames: np.ndarray, *, choice: float = 1.0, learn: bool = True) -> None:
        """A sound by the model; ``learn=False``: context only, not a target."""
        self._begin("assistant", "audio", choice if learn else 0.0)
        start = len(self._rows) - 1
        rows = self.studio.vocabulary.delayed_rows(self.studio.codes[frames])
        weights = self._audio_weights(frames) if learn else np.zeros((len(rows), STREAMS), np.float32)
        for row, weight in zip(rows, weights, strict=True):
            self._row(row, AUDIO, weight)
        if learn:
            self._sounds.append((start, len(self._rows)))
        self._open = (AUDIO, 1.0) if learn else (NOTHING, 0.0)

    def _audio_weights(self, frames: np.ndarray) -> np.ndarray:
        weights = np.ones((len(frames) + STREAMS - 1, STREAMS), np.float32)
        positions = self.studio.positions(frames)
        for start in np.flatnonzero(positions == 0):
            for stream in range(STREAMS):
                weights[start + stream, stream] = _FIRST_FRAME if stream == 0 else _FIRST_FRAME_REST
        for slot in SLOTS.values():
            weights[: len(frames), 0][positions == slot] = _GOES_ON
        weights[len(frames), 0] = _END
        return weights

    def example(self) -> Example:
        self._close("")
        return Example(
            self.task,
            np.stack(self._rows),
            np.array(self._kinds, np.int8),
            np.stack(self._weights),
            tuple(self._heard),
            tuple(self._sounds),
        )
