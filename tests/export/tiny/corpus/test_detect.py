"""The detectors that judge the gates: on synthetic notes, on real renders, and on sounds outside the domain."""

from __future__ import annotations

import numpy as np
import pytest

from ualm.export.tiny.corpus.detect import Judge, onsets, pitch
from ualm.export.tiny.corpus.domain import DRUMS, HOP, INSTRUMENTS, NOTES, SLOTS, Clip, FrameBank, sounds
from ualm.export.tiny.corpus.soundfont import render_sounds

from ..conftest import FIXTURE, repeated, tone


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("partials", [(1.0,), (1.0, 0.5, 0.3), (0.3, 1.0, 0.5)])
def test_pitch_of_a_synthetic_note_is_right_to_a_tenth_of_a_semitone(note: int, partials: tuple[float, ...]) -> None:
    for off in (-0.3, 0.0, 0.3):
        heard = pitch(tone(note + off, partials))
        assert heard is not None and abs(heard - note - off) < 0.1


def test_noise_and_silence_have_no_pitch() -> None:
    assert pitch(np.zeros(8000, np.float32)) is None
    assert pitch(np.random.default_rng(0).standard_normal(8000).astype(np.float32)) is None


@pytest.mark.parametrize("gap", [0.16, 0.28, 0.44])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_onsets_of_synthetic_notes_are_found_where_they_are(gap: float, count: int) -> None:
    notes = [tone((72, 76)[i], seconds=gap) for i in range(count - 1)] + [tone(84), np.zeros(640, np.float32)]
    found = onsets(np.concatenate(notes).astype(np.float32))
    assert len(found) == count
    assert all(abs(at - i * gap) < 0.025 for i, at in enumerate(found))


@pytest.mark.parametrize("key", FIXTURE, ids=lambda key: f"{key[0]} {key[1]}")
def test_a_real_render_is_heard_as_what_it_is(key: tuple[str, int], bank: FrameBank) -> None:
    clip = Clip(key[0], (key[1],))
    heard = Judge()(bank.samples(clip))
    assert heard.clip == clip, heard


@pytest.mark.parametrize("tempo", SLOTS)
@pytest.mark.parametrize("key", FIXTURE, ids=lambda key: f"{key[0]} {key[1]}")
def test_repeated_real_notes_are_counted_and_timed(key: tuple[str, int], tempo: str, bank: FrameBank) -> None:
    for count in (2, 3):
        clip = Clip(key[0], (key[1],) * count, tempo)
        assert Judge()(bank.samples(clip)).clip == clip


@pytest.mark.parametrize("snr", [45, 35])
def test_codec_noise_does_not_change_what_is_heard(snr: int, bank: FrameBank) -> None:
    rng = np.random.default_rng(0)
    for name, note in FIXTURE:
        clip = Clip(name, (note, note), "moderate")
        samples = bank.samples(clip)
        noise = rng.standard_normal(len(samples)) * np.sqrt(np.mean(samples**2)) * 10 ** (-snr / 20)
        # codec noise follows the level of the sound
        noisy = samples + (noise * (samples != 0)).astype(np.float32)
        assert Judge()(noisy).clip == clip, (clip, Judge()(noisy))


def test_a_wrong_sound_is_no_clip(bank: FrameBank) -> None:
    judge = Judge()
    assert judge(np.zeros(8000, np.float32)).clip is None
    assert judge(np.random.default_rng(0).standard_normal(12000).astype(np.float32) * 0.1).clip is None
    mixed = np.concatenate([bank.samples(Clip("piano", (72,)))[: 14 * HOP], bank.samples(Clip("trumpet", (79,)))])
    assert judge(mixed).clip is None and "several sounds" in judge(mixed).why
    two = bank.samples(Clip("marimba", (76, 76), "quick"))
    four = np.concatenate([two[: 16 * HOP], two])
    assert judge(four).clip is None and judge(four).why == "4 onsets"
    slow = bank.samples(Clip("marimba", (76, 76), "slow"))
    uneven = np.concatenate([two[: 8 * HOP], slow])
    assert judge(uneven).clip is None and "no tempo" in judge(uneven).why
    flat = tone(72.5)
    assert judge(flat).clip is None


def test_a_wrong_note_instrument_count_or_tempo_is_told_apart(bank: FrameBank) -> None:
    judge, clip = Judge(), Clip("trumpet", (79, 79), "quick")
    for other in (Clip("oboe", (81, 81), "quick"), Clip("trumpet", (79,)), Clip("trumpet", (79, 79), "slow")):
        assert judge(bank.samples(other)).clip == other != clip


@pytest.mark.parametrize("name", [*INSTRUMENTS, *DRUMS])
def test_every_note_count_and_tempo_of_a_sound_of_the_soundfont_is_heard_right(
    name: str, soundfont_bank: FrameBank
) -> None:
    clips = repeated(name)
    judge = Judge()
    wrong = [clip for clip in clips if judge(soundfont_bank.samples(clip)).clip != clip]
    assert not wrong, f"{len(wrong)} of {len(clips)}: {wrong}"


def test_rendering_is_repeatable_and_begins_at_the_onset(
    soundfont_renders: np.ndarray, real_renders: dict[tuple[str, int], np.ndarray]
) -> None:
    assert np.array_equal(soundfont_renders, render_sounds())
    assert np.allclose(np.abs(soundfont_renders).max(axis=1), 0.5)
    for key, stored in real_renders.items():  # the renders stored with the tests, in 16 bits
        assert np.abs(soundfont_renders[sounds().index(key)] - stored).max() < 1e-3
