from __future__ import annotations

import random

import numpy as np
import pytest

from ualm.export.tiny.corpus.domain import (
    DRUMS,
    HIT,
    HOP,
    LAST,
    SLOTS,
    TAIL,
    Clip,
    FrameBank,
    FrameIndex,
    held_out,
    random_clip,
)


def test_every_onset_of_a_clip_lies_on_the_grid_and_its_frames_begin_there(bank: FrameBank) -> None:
    for tempo, slot in SLOTS.items():
        clip = Clip("oboe", (72, 76, 79), tempo)
        ids = bank.ids(clip)
        assert len(ids) == clip.frames == 2 * slot + LAST + TAIL
        for number, (onset, note) in enumerate(zip(clip.onsets, clip.notes, strict=True)):
            assert round(onset * 16000) == number * slot * HOP
            assert bank.labels[ids[number * slot]] == ("oboe", note, 0, False)


def test_an_event_that_the_next_one_cuts_ends_with_a_faded_frame(bank: FrameBank) -> None:
    ids = bank.ids(Clip("trumpet", (72, 74), "quick"))
    assert bank.labels[ids[SLOTS["quick"] - 1]] == ("trumpet", 72, SLOTS["quick"] - 1, True)
    faded = bank.frames[ids[SLOTS["quick"] - 1]]
    assert abs(faded[-1]) < 1e-3 * np.abs(faded).max()


def test_a_clip_ends_in_silence(bank: FrameBank) -> None:
    assert not bank.samples(Clip("snare drum", (HIT, HIT), "slow"))[-TAIL * HOP :].any()


def test_frames_are_numbered_alike_with_and_without_samples(bank: FrameBank) -> None:
    assert FrameIndex().labels == bank.labels
    assert len(set(bank.labels)) == len(bank.frames)


@pytest.mark.parametrize(
    ("sound", "notes", "tempo"),
    [
        ("kazoo", (72,), "moderate"),
        ("piano", (73,), "moderate"),
        ("piano", (72, HIT), "quick"),
        ("cowbell", (72,), "moderate"),
        ("piano", (), "moderate"),
        ("piano", (72,) * 4, "quick"),
        ("piano", (72, 74), "presto"),
        ("piano", (72,), "quick"),
    ],
)
def test_what_cannot_be_played_is_no_clip(sound: str, notes: tuple[int, ...], tempo: str) -> None:
    with pytest.raises(ValueError):
        Clip(sound, notes, tempo)


def test_held_out_sequences_are_never_drawn_for_training_and_always_for_tests() -> None:
    rng = random.Random(0)
    assert not any(held_out(random_clip(rng)) for _ in range(2000))
    assert all(held_out(random_clip(rng, counts=(0, 1, 1), drums=0, held=True)) for _ in range(200))


def test_about_the_stated_share_is_held_out_whatever_the_tempo() -> None:
    pairs = [Clip("piano", (a, b), "quick") for a in (72, 74, 76, 77, 79, 81, 83, 84) for b in (72, 74, 76, 77, 79)]
    pairs += [Clip("oboe", clip.notes, "quick") for clip in pairs]
    assert 0.05 < np.mean([held_out(clip) for clip in pairs]) < 0.3
    assert all(held_out(clip) == held_out(Clip(clip.sound, clip.notes, "slow")) for clip in pairs)
    assert not any(held_out(Clip(drum, (HIT,) * 3, "quick")) for drum in DRUMS)


@pytest.mark.parametrize(
    ("notes", "direction"),
    [
        ((72,), "single"),
        ((72, 74), "rising"),
        ((84, 79, 72), "falling"),
        ((76, 76), "level"),
        ((72, 76, 74), "turning"),
    ],
)
def test_direction_says_how_the_notes_move(notes: tuple[int, ...], direction: str) -> None:
    assert Clip("guitar", notes).direction == direction
