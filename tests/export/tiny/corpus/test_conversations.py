"""Training examples have exactly the rows that the runtime reads and writes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ualm.export.tiny.corpus.attempts import drifted
from ualm.export.tiny.corpus.conversations import TASKS, apply_change, changes, make_example
from ualm.export.tiny.corpus.domain import HOP, TAIL, Clip, held_out, random_clip
from ualm.export.tiny.corpus.language import parse_description
from ualm.export.tiny.corpus.writer import AUDIO, FEATURES, MODALITY, TEXT, Studio, Writer
from ualm.runtime.audio.features import audible_range
from ualm.runtime.bundle import Bundle
from ualm.runtime.bundle.feature_spec import feature_rows
from ualm.runtime.bundle.packaged import packaged_bundle
from ualm.runtime.conversation.prompt import prompt_parts
from ualm.runtime.sound.sound import Sound
from ualm.runtime.vocabulary import EOS, EOT, MODALITIES, ROLES


def _heard(rows: int) -> Sound:
    return Sound(np.zeros(640 * rows, np.float32), 16000)


def test_a_conversation_has_the_rows_of_the_runtime(studio: Studio) -> None:
    clip, other = Clip("oboe", (72, 76), "slow"), Clip("piano", (84,))
    w = Writer(studio, random.Random(0), "any")
    w.user("play something")
    w.says("on what?")
    w.user_sound(studio.bank.ids(other))
    w.user("on this")
    w.says("a caption")
    w.plays(studio.bank.ids(clip))
    example = w.example()
    v = studio.vocabulary
    sound = Sound(np.zeros(1, np.float32), 16000, studio.codes[studio.bank.ids(clip)].astype(np.int16))
    messages = [
        ("user", "text", studio.encode("play something")),
        ("assistant", "text", studio.encode("on what?")),
        ("user", "audio", _heard(1)),
        ("user", "text", studio.encode("on this")),
        ("assistant", "text", studio.encode("a caption")),
        ("assistant", "audio", sound),
    ]
    rows = len(studio.bank.ids(other)) // 2
    parts = prompt_parts(messages, v, lambda sound: np.zeros((rows, 4), np.float32))
    expected = np.concatenate([part if part.dtype == np.int32 else np.zeros((rows, 8), np.int32) for part in parts])
    assert np.array_equal(example.rows, expected)
    assert [(h.start, h.rows) for h in example.heard] == [(len(parts[0]), rows)]


def test_a_turn_of_two_segments_joins_them_with_eot(studio: Studio) -> None:
    example = make_example(studio, "enriched", random.Random(1))
    first, stop = example.sounds[0]
    assert example.rows[first - 2, 0] == EOT
    assert example.rows[first - 1, 0] == ROLES["assistant"]
    assert example.rows[first, 0] == MODALITIES["audio"]
    assert example.rows[stop - 1, 0] == EOS and stop == len(example.rows)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_learnt_is_what_the_model_says(studio: Studio, task: str) -> None:
    v = studio.vocabulary
    for seed in range(20):
        example = make_example(studio, task, random.Random(seed))
        role = 0
        for row, kind in zip(example.rows, example.kinds, strict=True):
            role = int(row[0]) if row[0] in ROLES.values() else role
            assert kind == 0 or role == ROLES["assistant"]
            if kind == TEXT:
                assert row[0] in (EOS, EOT) or v.text_base <= row[0] < v.text_base + v.text_size
            elif kind == AUDIO:
                assert row[0] in (EOS, EOT) or row[0] >= v.audio_base
            elif kind == MODALITY:
                assert row[0] in (MODALITIES["text"], MODALITIES["audio"])
        assert (example.weights.any(axis=1) == (example.kinds > 0)).all()


def test_the_sounds_of_an_example_span_from_the_modality_row_to_the_stop_row(studio: Studio) -> None:
    for seed in range(40):
        example = make_example(studio, "dialogue", random.Random(seed))
        for first, stop in example.sounds:
            assert example.rows[first, 0] == MODALITIES["audio"]
            codes = studio.vocabulary.codes(example.rows[first + 1 : stop - 1])
            assert len(codes) == stop - first - 2 - 7
            assert {tuple(code) for code in codes} <= {tuple(code) for code in studio.codes}


def test_equal_seeds_make_equal_examples(studio: Studio) -> None:
    for task in TASKS:
        a, b = (make_example(studio, task, random.Random(5)) for _ in range(2))
        assert np.array_equal(a.rows, b.rows) and np.array_equal(a.weights, b.weights)
        assert all(np.array_equal(x.samples, y.samples) for x, y in zip(a.heard, b.heard, strict=True))


def test_no_held_out_sequence_is_ever_said_or_played(studio: Studio) -> None:
    rng = random.Random(6)
    held = {tuple(studio.bank.ids(random_clip(rng, counts=(0, 1, 1), drums=0, held=True))) for _ in range(3000)}
    code_of = {tuple(code): number for number, code in enumerate(studio.codes)}
    played = 0
    for seed in range(400):
        for task in ("direct", "enriched", "dialogue", "reflection"):
            example = make_example(studio, task, random.Random(seed))
            for first, stop in example.sounds:
                codes = studio.vocabulary.codes(example.rows[first + 1 : stop - 1])
                assert tuple(code_of[tuple(code)] for code in codes) not in held
                played += 1
    assert played > 1000


def test_about_half_of_the_first_tries_of_reflection_are_wrong_and_are_not_learnt(studio: Studio) -> None:
    learnt = 0
    for seed in range(200):
        example = make_example(studio, "reflection", random.Random(seed))
        start = example.heard[0].start
        learnt += any(stop <= start for _, stop in example.sounds)
    assert 70 < learnt < 130


def test_a_sound_that_strays_is_made_of_the_domains_frames_and_is_seldom_right(studio: Studio) -> None:
    rng, right, other, unclear = random.Random(7), 0, 0, 0
    for _ in range(100):
        wanted = random_clip(rng)
        ids = studio.bank.ids(wanted)
        frames = drifted(studio.bank, ids, rng)
        assert TAIL < len(frames) <= len(ids) and not frames[-TAIL:].any()
        assert frames.min() >= 0 and frames.max() < len(studio.bank.frames)
        found = studio.judge(studio.bank.frames[frames].reshape(-1)).clip
        right, other, unclear = right + (found == wanted), other + (found not in (wanted, None)), unclear + (not found)
    assert right < 25 and other > 0 and unclear > 50


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("slower", Clip("oboe", (72, 79), "moderate")),
        ("backwards", Clip("oboe", (79, 72), "quick")),
        ("again", Clip("oboe", (72, 79), "quick")),
    ],
)
def test_a_change_gives_the_clip_asked_for(change: str, expected: Clip) -> None:
    clip = Clip("oboe", (72, 79), "quick")
    assert change in changes(clip) and "faster" not in changes(clip)
    assert apply_change(clip, change) == expected
    assert apply_change(clip, "sound", "piano") == Clip("piano", (72, 79), "quick")


def test_descriptions_in_the_examples_are_of_trained_clips() -> None:
    clip = parse_description("a trumpet plays C5 and E5")
    assert clip is not None and not held_out(clip), "the README's first command must not be a held-out sequence"


def test_what_is_heard_in_training_is_cut_as_the_bundle_cuts_it(studio: Studio) -> None:
    long = 0
    for seed in range(40):
        w = Writer(studio, random.Random(seed), "hearing")
        clip = Clip("piano", (72, 76), "quick")
        w.user_sound(studio.bank.ids(clip), padded=True)
        (heard,) = w.example().heard
        assert audible_range(heard.samples, FEATURES) == (0, len(heard.samples))
        assert heard.rows == len(heard.classes) == len(heard.onsets) == feature_rows(len(heard.samples) // 160)
        long += len(heard.samples) > len(studio.bank.samples(clip)) + 20 * HOP
    assert 0 < long < 12, "only where there is noise in it does long silence stay"


def test_the_bundle_that_ualm_brings_hears_as_training_did() -> None:
    folder = packaged_bundle()
    assert folder is not None and Bundle(folder, verify="never").manifest.features == FEATURES
