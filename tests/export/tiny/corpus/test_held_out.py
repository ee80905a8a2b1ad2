"""The gates ask for what training never draws: examples from the training generator itself are parsed and checked."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from tokenizers import Tokenizer

from ualm.export.tiny.corpus.attempts import reflection_held_out
from ualm.export.tiny.corpus.conversations import apply_change, change_held_out, opening_and_sound, random_change
from ualm.export.tiny.corpus.domain import DRUMS, HIT, INSTRUMENTS, NOTES, SLOTS, Clip, held_out, random_clip
from ualm.export.tiny.corpus.language import (
    PHRASES,
    held_out_prompts,
    loose_prompt,
    parse_caption,
    parse_description,
    text_only,
)
from ualm.export.tiny.corpus.writer import Example, Studio
from ualm.export.tiny.training.loop import Recipe, step_examples
from ualm.runtime.vocabulary import EOS, EOT, MODALITIES, ROLES, Vocabulary

#: Training steps that are drawn: more than half of them from the tuning, which has another mix.
STEPS = (*range(0, 2800, 70), *range(2800, 5000, 38))
_ROLE = {token: name for name, token in ROLES.items()}
#: (role, text), or (role, None) for a sound.
Message = tuple[str, str | None]


def _messages(example: Example, v: Vocabulary, tokenizer: Tokenizer) -> Iterator[Message]:
    rows = example.rows[:, 0]
    at = 1
    while at < len(rows):
        role, modality = _ROLE[int(rows[at])], int(rows[at + 1])
        end = at + 2
        while rows[end] not in (EOS, EOT):
            end += 1
        text = None
        if modality == MODALITIES["text"]:
            text = tokenizer.decode([int(i) - v.text_base if i else 0 for i in rows[at + 2 : end]])
        yield role, text
        at = end + 1


@pytest.fixture(scope="module")
def drawn(studio: Studio, tokenizer: Tokenizer) -> dict[str, list[list[Message]]]:
    """Conversations of each task, drawn as in training."""
    found: dict[str, list[list[Message]]] = defaultdict(list)
    for step in STEPS:
        for example in step_examples(studio, Recipe(), step):
            found[example.task].append(list(_messages(example, studio.vocabulary, tokenizer)))
    return found


def _bare(text: str) -> str:
    """A prompt without the additions of ``language.worded``."""
    return text.rstrip(".? ").removesuffix(", please")


def _singles_and_drums() -> list[Clip]:
    found = [Clip(sound, (note,)) for sound in INSTRUMENTS for note in NOTES]
    return found + [
        Clip(drum, (HIT,) * n, t) for drum in DRUMS for n in (1, 2, 3) for t in (SLOTS if n > 1 else ["moderate"])
    ]


def test_enough_is_held_out_and_enough_is_trained() -> None:
    rng = random.Random(0)
    assert len({loose_prompt(rng, held=True)[0] for _ in range(5000)}) > 100
    assert len({text_only(rng, held=True)[0] for _ in range(5000)}) > 80
    assert len([prompt for clip in _singles_and_drums() for prompt in held_out_prompts(clip)]) > 40
    assert 0.1 < np.mean([reflection_held_out(clip) for clip in _singles_and_drums()]) < 0.3
    clips = [random_clip(rng) for _ in range(300)]
    assert np.mean([random_change(clip, rng, held=True) is not None for clip in clips]) > 0.7


def test_no_held_out_prompt_or_question_is_drawn(drawn: dict[str, list[list[Message]]]) -> None:
    rng = random.Random(1)
    kept = {loose_prompt(rng, held=True)[0] for _ in range(5000)} | {text_only(rng, held=True)[0] for _ in range(5000)}
    kept |= {prompt for clip in _singles_and_drums() for prompt in held_out_prompts(clip)}
    # only the first text: "a marimba" is held out as a prompt, but is also an answer in a dialogue
    asked = [said[0][1] or "" for task in drawn.values() for said in task]
    assert len([text for text in asked if text]) > 1000
    bare = {prompt.lower().rstrip("?") for prompt in kept}
    drawn_all_the_same = {_bare(text).lower() for text in asked} & bare
    assert not drawn_all_the_same


def test_no_clip_that_reflection_holds_out_is_wanted_or_heard(drawn: dict[str, list[list[Message]]]) -> None:
    clips = []
    for said in drawn["reflection"]:
        texts = [text for role, text in said if role == "assistant" and text]
        clips.append(parse_caption(texts[0]))
        for text in texts[1:]:
            heard = text.removeprefix("heard: ").split(". ")[0]
            clips.append(parse_description(heard) if heard != PHRASES["unclear"] else None)
    known = [clip for clip in clips if clip is not None]
    assert len(known) > 400 and not [clip for clip in known if reflection_held_out(clip)]


def test_no_change_that_is_held_out_is_asked_for(drawn: dict[str, list[list[Message]]]) -> None:
    words = {phrase: change for change, phrases in PHRASES["change"].items() if change != "sound" for phrase in phrases}
    changes = 0
    for said in drawn["dialogue"]:
        clip: Clip | None = None
        asked = ""
        for role, text in said:
            if role == "user":
                asked = _bare(text or "")
                continue
            made = parse_caption(text) if text else None
            if made is None:
                continue
            if clip is not None and asked not in PHRASES["recall"]:
                change = words.get(asked) or words.get(f"{asked}, please") or "sound"
                assert made == apply_change(clip, change, made.sound if change == "sound" else ""), (clip, asked, made)
                assert not change_held_out(clip, change, made.sound if change == "sound" else ""), (clip, asked)
                changes += 1
            clip = made
    assert changes > 100


def test_no_opening_is_answered_with_the_instrument_that_is_held_out(drawn: dict[str, list[list[Message]]]) -> None:
    rng = random.Random(2)
    kept = {opening_and_sound(rng, held=True) for _ in range(1000)}
    seen = set()
    for said in drawn["dialogue"]:
        texts = [text or "" for _, text in said]
        if len(texts) > 3 and texts[1] == PHRASES["ask_both"]:
            clip = parse_caption(texts[3])
            assert clip is not None
            seen.add((_bare(texts[0]), clip.sound))
    assert len(seen) > 15 and not seen & kept


def test_no_held_out_sequence_is_described(drawn: dict[str, list[list[Message]]]) -> None:
    texts = [text for task in drawn.values() for said in task for _, text in said if text]
    clips = [parse_caption(text) or parse_description(_bare(text)) for text in texts]
    known = [clip for clip in clips if clip is not None]
    assert len(known) > 1000 and not [clip for clip in known if held_out(clip)]
