"""Training examples: whole conversations as rows, with what is to be learnt at each row.

The layout is that of the runtime (``chat.prompt_parts``, ``generate.turn``): ``bos``, then per message role, modality,
content, and ``eot`` if the next message has the same role, else ``eos``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...runtime.vocabulary import BOS, EOS, EOT, MODALITIES, ROLES, STREAMS, Vocabulary
from .detect import Judge
from .domain import (
    DRUMS,
    HIT,
    INSTRUMENTS,
    LAST,
    NOTES,
    SLOTS,
    TAIL,
    Clip,
    FrameBank,
    held_out,
    random_clip,
    sounds,
)
from .language import (
    PHRASES,
    Wish,
    article,
    describe,
    exact_prompt,
    loose_prompt,
    question_and_answer,
    random_mood,
    review,
    rich_caption,
    text_only,
    worded,
)

#: What a row is, as a target: nothing to learn, a choice of modality, a text token, an audio row.
NOTHING, MODALITY, TEXT, AUDIO = 0, 1, 2, 3
#: Weights of the cells where something is decided; all that follows from what was drawn before weighs 1.
_FIRST_FRAME, _FIRST_FRAME_REST, _END, _GOES_ON, _CONTENT = 8.0, 2.0, 4.0, 3.0, 3.0
_SHORT_ANSWER = 6.0
#: Of a review the word that says whether anything was heard at all, and the one that says whether it is right.
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
    """``rows`` int32 [R, 8]; ``kinds`` int8 [R] and ``weights`` float32 [R, 8]: what is learnt at each row.

    ``sounds``: (first, stop) rows of each sound the model makes and learns, from the modality row to the stop row.
    """

    task: str
    rows: np.ndarray
    kinds: np.ndarray
    weights: np.ndarray
    heard: tuple[HeardSound, ...]
    sounds: tuple[tuple[int, int], ...]


@dataclass
class Studio:
    """What examples are made from. ``encode``: text to tokenizer ids; ``content_ids``: those that say something."""

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
        """Where in the ids of a review it is said what was heard, from its first word, and whether that is right."""
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
        #: The row that closes the last message is written when the next one's role is known.
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
        """A heard sound of the frames given; ``padded``: with some silence around it."""
        rng = self.rng
        if padded:
            before, after = rng.choice([0, 0, rng.randrange(10)]), rng.choice([0, 0, rng.randrange(16)])
            frames = np.concatenate([np.zeros(before, np.int64), frames, np.zeros(after, np.int64)])
        samples = self.studio.bank.frames[frames].reshape(-1)
        if rng.random() < 0.8:  # what a codec of any precision adds
            scale = float(np.sqrt(np.mean(samples**2))) * 10 ** (-rng.uniform(25, 70) / 20)
            noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples))
            samples = samples + (scale * noise).astype(np.float32)
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
        """The model's text; ``choice``: how much it is to learn that it answers with text here.

        ``verdict``: it is a review, where two words decide what follows.
        """
        self._begin("assistant", "text", choice)
        ids = self.studio.encode(text)
        least = _SHORT_ANSWER / len(ids)  # a short answer counts for something beside the long ones
        decisive = self.studio.decisive(ids) if verdict else frozenset()
        for at, (row, token) in enumerate(zip(self.studio.vocabulary.text_rows(ids), ids, strict=True)):
            weight = _VERDICT if at in decisive else _CONTENT if token in self.studio.content_ids else 1.0
            self._row(row, TEXT, max(least, weight))
        self._open = (TEXT, 1.0)

    def plays(self, frames: np.ndarray, *, choice: float = 1.0, learn: bool = True) -> None:
        """A sound of the model's; ``learn=False``: it only happened."""
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


def make_example(studio: Studio, task: str, rng: random.Random) -> Example:
    """One example of a task of ``TASKS``."""
    writer = Writer(studio, rng, task)
    TASKS[task](writer)
    return writer.example()


def _trained(make: Callable[[], Clip]) -> Clip:
    while held_out(clip := make()):
        pass
    return clip


def _request(rng: random.Random, *, loose: float) -> tuple[str, Clip, bool]:
    """A prompt, a clip that obeys it, and whether the prompt left anything open."""
    if rng.random() < loose:
        prompt, wish = loose_prompt(rng)
        return worded(prompt, rng), _trained(lambda: wish.sample(rng)), True
    clip = random_clip(rng, counts=(0.24, 0.36, 0.40), drums=0.16)
    return worded(exact_prompt(clip, rng), rng), clip, False


def _direct(w: Writer) -> None:
    """Text to sound. What a loose prompt leaves open is better settled by a caption: the choice is not learnt here."""
    prompt, clip, loose = _request(w.rng, loose=0.12)
    w.user(prompt)
    w.plays(w.studio.bank.ids(clip), choice=0.0 if loose else 1.0)


def _enriched(w: Writer) -> None:
    prompt, clip, loose = _request(w.rng, loose=0.5)
    w.user(prompt)
    w.says(rich_caption(clip), choice=1.0 if loose else 0.0)
    w.plays(w.studio.bank.ids(clip))


def _hearing(w: Writer) -> None:
    clip = random_clip(w.rng, counts=(0.26, 0.32, 0.42), drums=0.15)
    question, answer = question_and_answer(clip, w.rng)
    w.user_sound(w.studio.bank.ids(clip), padded=True)
    w.user(worded(question, w.rng))
    w.says(answer)


def _text_only(w: Writer) -> None:
    question, answer = text_only(w.rng)
    w.user(worded(question, w.rng))
    w.says(answer)


def _dialogue(w: Writer) -> None:
    rng, clip = w.rng, None
    start = rng.random()
    if start < 0.5:
        clip = _asked(w)
    elif start < 0.8:
        prompt, clip, loose = _request(rng, loose=0.6)
        w.user(prompt)
        w.says(rich_caption(clip), choice=1.0 if loose else 0.0)
    else:
        prompt, clip, _ = _request(rng, loose=0.0)
        w.user(prompt)
    w.plays(w.studio.bank.ids(clip))
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.15:
            w.user(rng.choice(PHRASES["recall"]))
            w.says(describe(clip))
            continue
        words, clip = _changed(clip, rng)
        w.user(worded(words, rng))
        w.says(rich_caption(clip))
        w.plays(w.studio.bank.ids(clip))


def _asked(w: Writer) -> Clip:
    """A request that names no instrument, the question, the answer and the caption."""
    rng = w.rng
    sound = rng.choice(list(INSTRUMENTS))
    words = {"a": article(sound), "sound": sound}
    if rng.random() < 0.5:
        mood, wish = random_mood(rng, sound)
        w.user(worded(rng.choice(PHRASES["open_mood"]).format(mood=mood), rng))
        w.says(PHRASES["ask_sound"])
        w.user(worded(rng.choice(PHRASES["answer_sound"]).format(**words), rng))
    else:
        w.user(worded(rng.choice(PHRASES["open"]), rng))
        w.says(PHRASES["ask_both"])
        tempo = rng.choice(["", "quickly", "slowly"])
        words |= {"adverb": f" {tempo}" if tempo else "", "adverb_comma": f", {tempo}" if tempo else ""}
        words |= {"adverb_first": f"{tempo} " if tempo else ""}
        w.user(worded(rng.choice(PHRASES["answer_both"]).format(**words), rng))
        wish = Wish(sound, tempo={"quickly": "quick", "slowly": "slow"}.get(tempo, "moderate"), least=2)
    clip = _trained(lambda: wish.sample(rng))
    w.says(rich_caption(clip))
    return clip


def changes(clip: Clip) -> list[str]:
    """The changes that make sense for a clip, by their names in phrases.json."""
    found = ["sound", "sound", "again"]
    if len(clip.notes) > 1:
        found += ["slower"] * 2 * (clip.tempo != "slow") + ["faster"] * 2 * (clip.tempo != "quick")
        found += ["backwards"] * (not clip.is_drum)
    return found


def apply_change(clip: Clip, change: str, sound: str = "") -> Clip:
    """The clip that a later turn asks for."""
    tempos = list(SLOTS)
    notes = clip.notes[::-1] if change == "backwards" else clip.notes
    step = {"slower": 1, "faster": -1}.get(change, 0)
    return Clip(sound or clip.sound, notes, tempos[tempos.index(clip.tempo) + step] if step else clip.tempo)


def _changed(clip: Clip, rng: random.Random) -> tuple[str, Clip]:
    while True:
        change = rng.choice(changes(clip))
        others = [name for name in (DRUMS if clip.is_drum else INSTRUMENTS) if name != clip.sound]
        sound = rng.choice(others) if change == "sound" else ""
        wanted = apply_change(clip, change, sound)
        if not held_out(wanted):
            words = {"a": article(sound), "sound": sound} if sound else {}
            return rng.choice(PHRASES["change"][change]).format(**words), wanted


def _reflection(w: Writer) -> None:
    rng = w.rng
    if rng.random() < 0.25:
        prompt, wish = loose_prompt(rng)
        prompt, wanted = worded(prompt, rng), _trained(lambda: wish.sample(rng))
        choice = 1.0
    else:
        wanted, choice = random_clip(rng, counts=(0.4, 0.32, 0.28), drums=0.45), 0.0
        prompt = worded(exact_prompt(wanted, rng), rng)
    w.user(prompt)
    w.says(rich_caption(wanted), choice=choice)
    intended = w.studio.bank.ids(wanted)
    for _ in range(2):
        found, frames = _attempt(w.studio, wanted, rng)
        # a try that strayed may pass as right, and is still not how the sound is made
        w.plays(frames, learn=np.array_equal(frames, intended))
        w.user_sound(frames)
        w.user(PHRASES["reflection"]["check"])
        text, matches = review(found, wanted)
        w.says(text, verdict=True)
        if matches:
            return
        if rng.random() < 0.8:
            break
    w.plays(intended)


def _attempt(studio: Studio, wanted: Clip, rng: random.Random) -> tuple[Clip | None, np.ndarray]:
    """A first try and what it is: right, another clip, or one that strayed from its sound, as bad sampling does."""
    ids = studio.bank.ids(wanted)
    draw = rng.random()
    if draw < 0.44:
        return wanted, ids
    if draw < 0.72:
        frames = strayed(studio.bank, ids, rng)
        found = studio.judge(studio.bank.frames[frames].reshape(-1)).clip
        if found is None or not held_out(found):
            return found, frames
    found = _trained(lambda: _mistaken(wanted, rng))
    return found, studio.bank.ids(found)


def _mistaken(wanted: Clip, rng: random.Random) -> Clip:
    """Another clip, most often one that differs in one thing."""
    kinds = ["count", "sound", "any"]
    kinds += ["note"] * 4 if not wanted.is_drum else ["sound", "count"]
    kinds += ["tempo"] if len(wanted.notes) > 1 else []
    while True:
        kind = rng.choice(kinds)
        notes, sound, tempo = list(wanted.notes), wanted.sound, wanted.tempo
        if kind == "any":
            found = random_clip(rng)
            if found != wanted:
                return found
            continue
        if kind == "note":
            notes[rng.randrange(len(notes))] = rng.choice(list(NOTES))
        elif kind == "sound":
            sound = rng.choice(list(DRUMS if wanted.is_drum else INSTRUMENTS))
        elif kind == "tempo":
            tempo = rng.choice(list(SLOTS))
        elif len(notes) > 1 and rng.random() < 0.5:
            notes.pop(rng.randrange(len(notes)))
        elif len(notes) < 3:
            notes.insert(rng.randrange(len(notes) + 1), rng.choice(list(NOTES)) if not wanted.is_drum else notes[0])
        found = Clip(sound, tuple(notes), tempo if len(notes) > 1 else "moderate")
        if found != wanted:
            return found


def strayed(bank: FrameBank, ids: np.ndarray, rng: random.Random) -> np.ndarray:
    """Frames int64 [T] of a sound that leaves its path one to four times, as bad sampling makes it do.

    From there on it follows another sound from the same place in the event or from its beginning, starts an event
    again, falls silent, or takes a few frames from anywhere; now and then it ends early. Every frame is one of the
    domain: what bad sampling draws is as well, nearly always.
    """
    path = [bank.labels[number] for number in ids]
    leaves = sorted(rng.randrange(len(path) - 2) for _ in range(rng.choice((1, 1, 2, 3, 4))))
    for at in leaves:
        kind = rng.choice(("sound", "sound", "note", "event", "again", "silence", "anywhere"))
        length = rng.choice((rng.randint(1, 4), rng.randint(3, 12), len(path)))
        if kind == "silence":
            piece: list[tuple[str, int, int, bool] | None] = [None] * length
        elif kind == "anywhere":
            piece = [rng.choice(bank.labels) for _ in range(min(length, 6))]
        else:
            piece = _other_path(path[at], kind, length, rng)
        path[at : at + len(piece)] = piece[: len(path) - at]
    if rng.random() < 0.25:
        path = path[: rng.randint(8, len(path))]
    path[-TAIL:] = [None] * TAIL
    return np.array([bank.number(label) for label in path])


def _other_path(
    label: tuple[str, int, int, bool] | None, kind: str, length: int, rng: random.Random
) -> list[tuple[str, int, int, bool] | None]:
    """Frames of the event that a stray leads into; it ends with the event."""
    sound, note, position, _ = label or (*rng.choice(sounds()), 0, False)
    if kind == "note" and note != HIT:
        note = rng.choice(list(NOTES))
    elif kind in ("sound", "event", "note"):
        sound, other = rng.choice(sounds())
        note = note if sound in INSTRUMENTS and note != HIT else other
    if kind in ("event", "again"):
        position = 0
    return [(sound, note, place, False) for place in range(position, min(position + length, LAST - 1))]


TASKS: dict[str, Callable[[Writer], None]] = {
    "direct": _direct,
    "enriched": _enriched,
    "hearing": _hearing,
    "text": _text_only,
    "dialogue": _dialogue,
    "reflection": _reflection,
}
