"""The tiny model's tokenizer: byte-level BPE over its own phrases, in which a note is always one token."""

from __future__ import annotations

import random
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .domain import DRUMS, INSTRUMENTS, NOTES, SLOTS, random_clip
from .language import (
    ADVERBS,
    COUNTS,
    PHRASES,
    loose_prompt,
    question_and_answer,
    random_mood,
    review,
    rich_caption,
    text_only,
)

#: Text ids of the model; the tokenizer has no more.
TEXT_SIZE = 896
#: A note ("C5") and a time ("0.28") are separate words.
_WORDS = r" ?[A-G][0-9]| ?\p{L}+| ?[0-9]+(?:\.[0-9]+)?| ?[^\s\p{L}\p{N}]+|\s+"


def normalizer() -> normalizers.Normalizer:
    """Normalises typed text for the model: lower case except for notes, single spaces, no exclamation marks.

    So a prompt means the same in capitals, and nothing has to be learnt twice. The model's own texts are not changed.
    """
    steps = [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex("!+"), "")]
    steps += [normalizers.Replace(Regex(rf"\b{name.lower()}\b"), name) for name in NOTES.values()]
    steps += [normalizers.Replace(Regex(rf"(?:\{mark}\s*){{2,}}"), mark) for mark in ".?"]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps)


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """Train on examples of all texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer()
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=TEXT_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(random.Random(seed)), trainer)
    return tokenizer


def content_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that carry information about a sound: notes, names, numbers, tempo, and whether it matches."""
    words = {*NOTES.values(), *SLOTS, *filter(None, ADVERBS.values()), *COUNTS.values(), "once", "twice"}
    words |= {"matches", "differs", "unclear", "rising", "falling", "level", "turning", "yes", "no"}
    words |= {word for name in (*INSTRUMENTS, *DRUMS) for word in re.findall(r"[a-z]+", name)}
    words -= {"drum"}  # part of both "snare drum" and "kick drum"
    return frozenset(i for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i]).strip() in words)


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def _corpus(rng: random.Random) -> list[str]:
    texts: list[str] = [str(value) for value in _strings(PHRASES)]
    for _ in range(6000):
        clip, other = random_clip(rng), random_clip(rng)
        prompt, _ = loose_prompt(rng)
        question, answer = question_and_answer(clip, rng)
        texts += [rich_caption(clip), prompt, question, answer, review(other, clip)[0], *text_only(rng)]
        texts.append(random_mood(rng)[0])
    return texts


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [text for item in items for text in _strings(item)]  # type: ignore[attr-defined]
