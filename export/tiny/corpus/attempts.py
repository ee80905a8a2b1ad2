"""First attempts for self-reflection to hear: correct ones, other clips, and sounds that drifted as under bad
sampling."""

from __future__ import annotations

import random

import numpy as np

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
    drawn_until,
    held_out,
    in_share,
    random_clip,
    sounds,
)
from .writer import Studio

#: Percent of the single notes and drums that no reflection in training requests or hears.
REFLECTION_HELD_OUT_PERCENT = 20


def reflection_held_out(clip: Clip) -> bool:
    """Whether reflection never sees a clip in training, neither as the request nor as what was played.

    For sequences of notes, those held out of all training; for single notes and drums, which other tasks must teach, a
    share.
    """
    if not clip.is_drum and len(clip.notes) > 1:
        return held_out(clip)
    return in_share(f"reflection: {clip.sound}:{clip.notes}:{clip.tempo}", REFLECTION_HELD_OUT_PERCENT)


def attempt(studio: Studio, wanted: Clip, rng: random.Random) -> tuple[Clip | None, np.ndarray]:
    """A first attempt and its kind: correct, another clip, or one that drifted from its sound, as under bad
    sampling."""
    ids = studio.bank.ids(wanted)
    draw = rng.random()
    if draw < 0.44:
        return wanted, ids
    if draw < 0.72:
        frames = drifted(studio.bank, ids, rng)
        found = studio.judge(studio.bank.frames[frames].reshape(-1)).clip
        if found is None or not reflection_held_out(found):
            return found, frames
    found = drawn_until(lambda clip: not reflection_held_out(clip), lambda: _mistaken(wanted, rng))
    return found, studio.bank.ids(found)


def _mistaken(wanted: Clip, rng: random.Random) -> Clip:
    """Another clip, most often one that differs in a single respect."""
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


def drifted(bank: FrameBank, ids: np.ndarray, rng: random.Random) -> np.ndarray:
    """Frames int64 [T] of a sound that leaves its path one to four times, as happens under bad sampling.

    From there on it follows another sound from the same position in the event or from its beginning, restarts an event,
    falls silent, or takes a few frames from anywhere; occasionally it ends early. Every frame is in the domain, as
    nearly all frames drawn by bad sampling are.
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
    """Frames of the event that a stray moves into; it ends with the event."""
    sound, note, position, _ = label or (*rng.choice(sounds()), 0, False)
    if kind == "note" and note != HIT:
        note = rng.choice(list(NOTES))
    elif kind in ("sound", "event", "note"):
        sound, other = rng.choice(sounds())
        note = note if sound in INSTRUMENTS and note != HIT else other
    if kind in ("event", "again"):
        position = 0
    return [(sound, note, place, False) for place in range(position, min(position + length, LAST - 1))]
