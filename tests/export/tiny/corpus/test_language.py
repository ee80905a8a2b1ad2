from __future__ import annotations

import random

import pytest

from ualm.export.tiny.corpus.domain import DRUMS, HIT, Clip, random_clip
from ualm.export.tiny.corpus.language import (
    Wish,
    describe,
    difference,
    exact_prompt,
    loose_prompt,
    parse_caption,
    parse_description,
    question_and_answer,
    review,
    rich_caption,
    text_only,
)


def _clips(count: int, seed: int = 0) -> list[Clip]:
    rng = random.Random(seed)
    return [random_clip(rng, drums=0.3) for _ in range(count)]


def test_a_description_parses_back() -> None:
    assert all(parse_description(describe(clip)) == clip for clip in _clips(500))


def test_a_rich_caption_parses_back() -> None:
    assert all(parse_caption(rich_caption(clip)) == clip for clip in _clips(500))


def test_a_caption_whose_parts_disagree_does_not_parse() -> None:
    caption = rich_caption(Clip("trumpet", (72, 76), "slow"))
    assert caption == (
        "keywords: trumpet, two notes, slow, rising. layout: 0.00 C5, 0.44 E5, end 0.96. "
        "description: a trumpet plays C5 and E5 slowly."
    )
    for wrong in ("trumpet, two", "oboe, two"), ("0.44 E5", "0.44 D5"), ("rising", "falling"), ("slowly", "quickly"):
        assert parse_caption(caption.replace(*wrong)) is None, wrong
    assert parse_caption(caption) == Clip("trumpet", (72, 76), "slow")


@pytest.mark.parametrize(
    "text", ["", "a kazoo plays C5", "a piano plays H5", "a piano hits twice", "rain on a tin roof"]
)
def test_any_other_text_is_no_description(text: str) -> None:
    assert parse_description(text) is None


def test_an_exact_prompt_names_everything_that_the_clip_holds() -> None:
    rng = random.Random(1)
    for clip in _clips(300, seed=1):
        prompt = exact_prompt(clip, rng)
        assert clip.sound in prompt
        assert not {"quickly": "quick", "slowly": "slow"}.get(prompt.split()[-1]) or clip.tempo in ("quick", "slow")
        found = [word.strip(",:") for word in prompt.split() if word[0] in "ABCDEFG" and word[1:2].isdigit()]
        if not clip.is_drum:
            assert len(found) == len(clip.notes)


def test_a_clip_drawn_for_a_loose_prompt_obeys_it() -> None:
    rng = random.Random(2)
    for _ in range(500):
        prompt, wish = loose_prompt(rng)
        clip = wish.sample(rng)
        assert wish.met_by(clip), (prompt, wish, clip)


def test_a_wish_refuses_what_it_does_not_ask_for() -> None:
    sad = Wish("oboe", tempo="slow", direction="falling", least=2)
    assert sad.met_by(Clip("oboe", (79, 76), "slow"))
    assert not sad.met_by(Clip("piano", (79, 76), "slow"))
    assert not sad.met_by(Clip("oboe", (79, 76), "quick"))
    assert not sad.met_by(Clip("oboe", (76, 79), "slow"))
    assert not sad.met_by(Clip("oboe", (79,)))
    assert Wish("drum").met_by(Clip("cowbell", (HIT,)))
    assert not Wish("drum").met_by(Clip("steel drum", (72,)))
    assert not Wish("piano", register="high").met_by(Clip("piano", (81, 79)))
    assert not Wish("piano", register="low").met_by(Clip("piano", (77,)))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Clip("oboe", (72, 76), "slow"), "it is an oboe, not a trumpet"),
        (Clip("trumpet", (72,)), "it has one note, not two notes"),
        (Clip("trumpet", (72, 74), "slow"), "note 2 is D5, not E5"),
        (Clip("trumpet", (72, 76), "quick"), "it is quick, not slow"),
        (None, "the sound is unclear"),
        (Clip("trumpet", (72, 76), "slow"), ""),
    ],
)
def test_the_difference_of_two_sounds_is_told_in_words(found: Clip | None, reason: str) -> None:
    wanted = Clip("trumpet", (72, 76), "slow")
    assert difference(found, wanted) == reason
    text, matches = review(found, wanted)
    assert matches == (not reason) and text.startswith("heard: ")
    assert reason in text and (matches or describe(wanted) in text)


def test_answers_about_a_heard_clip_are_its_own() -> None:
    rng, clip = random.Random(3), Clip("marimba", (84, 72), "quick")
    answers = {t: question_and_answer(clip, rng, t)[1] for t in ("what", "sound", "count", "tempo", "first", "last")}
    assert answers == {
        "what": "a marimba plays C6 and C5 quickly",
        "sound": "a marimba",
        "count": "two",
        "tempo": "quick",
        "first": "C6",
        "last": "C5",
    }
    drum = Clip(next(iter(DRUMS)), (HIT,))
    assert question_and_answer(drum, rng, "first")[1] == "none, it is a kick drum"
    assert question_and_answer(drum, rng, "tempo")[1] == "there is only one sound"


def test_text_only_questions_have_one_answer() -> None:
    rng, known = random.Random(4), {}
    for _ in range(2000):
        question, answer = text_only(rng)
        assert known.setdefault(question, answer) == answer
    assert known["which note is higher, C6 or B5?"] == "C6"
    assert known["spell a C major chord"] == "C5, E5 and G5"
    assert known["which note comes after E5?"] == "F5"
