"""The second judge: on synthetic notes, on every sound of the soundfont, and where the two judges differ."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from ualm.export.tiny.corpus.detect import Heard, Judge
from ualm.export.tiny.corpus.domain import DRUMS, HIT, HOP, INSTRUMENTS, NOTES, Clip, FrameBank, random_clip
from ualm.export.tiny.judging.second_judge import SecondHeard, SecondJudge, agreement, agrees
from ualm.runtime.errors import ExportError

from ..conftest import FIXTURE, repeated, tone


@pytest.fixture(scope="module")
def judge() -> SecondJudge:
    return SecondJudge()


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("partials", [(1.0,), (1.0, 0.5, 0.3), (0.6, 1.0, 0.5), (0.5, 0.5, 1.0, 0.5)])
def test_a_synthetic_note_is_heard_on_its_key(note: int, partials: tuple[float, ...], judge: SecondJudge) -> None:
    for off in (-0.25, 0.0, 0.25):
        heard = judge(tone(note + off, partials))
        assert heard == SecondHeard((note,), heard.onsets, "moderate"), heard
        assert heard.onsets[0] < 0.03


def test_a_note_between_the_keys_has_none(judge: SecondJudge) -> None:
    flat = judge(tone(73.0))
    assert flat.notes == (None,) and flat.why == "a note between the keys"


def test_noise_is_unpitched(judge: SecondJudge) -> None:
    fading = np.exp(-np.arange(8000) / 2000)
    for seed in range(10):
        heard = judge((0.2 * np.random.default_rng(seed).standard_normal(8000) * fading).astype(np.float32))
        assert set(heard.notes) == {None} and heard.why != "a note between the keys", heard


@pytest.mark.parametrize(("ratio", "note"), [(0.01, 79), (0.25, None)])
def test_a_note_is_pitched_until_noise_of_a_quarter_of_its_power_covers_it(
    ratio: float, note: int | None, judge: SecondJudge
) -> None:
    rng, clean = np.random.default_rng(0), tone(79)
    fading = np.exp(-3 * np.arange(len(clean)) / 16000) * np.sqrt(ratio * np.mean(clean[:320] ** 2))
    for _ in range(4):
        assert judge((clean + fading * rng.standard_normal(len(clean))).astype(np.float32)).notes == (note,)


def test_what_is_no_clip_is_told_why(judge: SecondJudge, bank: FrameBank) -> None:
    assert judge(np.zeros(8000, np.float32)) == SecondHeard((), (), None, "silence")
    assert judge(np.zeros(0, np.float32)).why == "silence"
    two = bank.samples(Clip("marimba", (76, 76), "quick"))
    assert judge(np.concatenate([two[: 16 * HOP], two])).why == "4 onsets"
    uneven = judge(np.concatenate([two[: 8 * HOP], bank.samples(Clip("marimba", (76, 76), "slow"))]))
    assert uneven.tempo is None and "no tempo" in uneven.why
    drum = np.concatenate([two[: 8 * HOP], bank.samples(Clip("snare drum", (HIT,)))])
    assert judge(drum).notes == (76, None) and judge(drum).why == "notes and hits"
    with pytest.raises(ExportError, match=r"shape \(2, 100\); give one channel"):
        judge(np.zeros((2, 100), np.float32))


def test_a_sound_of_a_few_samples_is_heard_without_an_error(judge: SecondJudge, bank: FrameBank) -> None:
    samples = bank.samples(Clip("trumpet", (79, 79), "quick"))
    for length in (1, 100, HOP, 2 * HOP, 9 * HOP):
        judge(samples[:length])


@pytest.mark.parametrize("key", FIXTURE, ids=lambda key: f"{key[0]} {key[1]}")
@pytest.mark.parametrize("snr", [None, 35])
def test_a_real_render_is_heard_as_what_it_is(
    key: tuple[str, int], snr: int | None, judge: SecondJudge, bank: FrameBank
) -> None:
    rng = np.random.default_rng(0)
    for clip in (Clip(key[0], (key[1],)), Clip(key[0], (key[1],) * 3, "quick"), Clip(key[0], (key[1],) * 2, "slow")):
        samples = bank.samples(clip)
        if snr is not None:  # codec noise follows the level of the sound
            noise = rng.standard_normal(len(samples)) * np.sqrt(np.mean(samples**2)) * 10 ** (-snr / 20)
            samples = samples + (noise * (samples != 0)).astype(np.float32)
        assert agrees(clip, judge(samples)), (clip, judge(samples))


@pytest.mark.parametrize("name", [*INSTRUMENTS, *DRUMS])
def test_every_note_count_and_tempo_of_a_sound_of_the_soundfont_is_heard_right(
    name: str, judge: SecondJudge, soundfont_bank: FrameBank
) -> None:
    clips = repeated(name)
    wrong = [clip for clip in clips if not agrees(clip, judge(soundfont_bank.samples(clip)))]
    assert len(wrong) <= len(clips) // 50, f"{len(wrong)} of {len(clips)}: {wrong}"


@pytest.mark.parametrize("seed", range(6))
def test_of_ninety_random_sequences_of_the_soundfont_each_judge_mishears_one_at_most(
    seed: int, judge: SecondJudge, soundfont_bank: FrameBank
) -> None:
    rng, first = random.Random(seed), Judge()
    misheard, apart = [], []
    for _ in range(90):
        clip = random_clip(rng, counts=(0, 1, 1), drums=0.1)
        samples = soundfont_bank.samples(clip)
        heard, second = first(samples), judge(samples)
        if heard.clip != clip:
            misheard.append((clip, heard))
        if not agrees(clip, second) or not agreement(heard, second).whole:
            apart.append((clip, second))
    assert len(misheard) <= 1, misheard
    assert len(apart) <= 1, apart


def test_agreement_names_what_the_judges_heard_otherwise(bank: FrameBank) -> None:
    clip = Clip("trumpet", (79, 79), "quick")
    first = Judge()(bank.samples(clip))
    onsets = (0.0, 0.16)
    assert agreement(first, SecondHeard((79, 79), onsets, "quick")).whole
    other = agreement(first, SecondHeard((79, 77), onsets, "quick"))
    assert (other.count, other.tempo, other.notes, other.whole) == (True, True, False, False)
    other = agreement(first, SecondHeard((79, 79), (0.0, 0.44), "slow"))
    assert (other.count, other.tempo, other.notes, other.whole) == (True, False, True, False)
    other = agreement(first, SecondHeard((79,), (0.0,), "moderate"))
    assert (other.count, other.tempo, other.notes, other.whole) == (False, None, None, False)
    silence, many = Heard((), None, "silence"), Heard((), None, "4 onsets")
    none = SecondHeard((), (), None, "silence")
    five = SecondHeard((None,) * 5, (0.0, 0.1, 0.2, 0.3, 0.4), None, "5 onsets")
    assert agreement(silence, none).whole and agreement(many, five).whole
    assert not agreement(silence, five).whole and not agreement(many, none).whole


def test_a_clip_is_confirmed_by_count_notes_and_tempo_but_not_by_timbre() -> None:
    second = SecondHeard((79, 79), (0.0, 0.16), "quick")
    assert agrees(Clip("trumpet", (79, 79), "quick"), second) and agrees(Clip("oboe", (79, 79), "quick"), second)
    for other in (Clip("trumpet", (79,)), Clip("trumpet", (79, 77), "quick"), Clip("trumpet", (79, 79), "slow")):
        assert not agrees(other, second)
    hits = SecondHeard((None, None), (0.0, 0.16), "quick")
    assert agrees(Clip("cowbell", (HIT, HIT), "quick"), hits)
    assert not agrees(Clip("trumpet", (79, 79), "quick"), hits)
    assert not agrees(Clip("cowbell", (HIT, HIT), "quick"), SecondHeard((None, None), (0.0, 0.16), "quick", "off"))
    assert agrees(None, SecondHeard((), (), None, "silence")) and not agrees(None, hits)


def test_without_librosa_the_second_judge_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(ExportError, match=r"pip install \"\.\[judge\]\""):
        SecondJudge()
