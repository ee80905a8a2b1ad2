"""What a bundle knows, in its own words: a sentence for people, and words that show whether a prompt is about it.

A training run states it in ``knows.json`` beside its ``train.yaml``, and the export copies it into the manifest. A
model answers anything it is asked; this makes it possible to warn beforehand that an answer will be something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..files.reading import shown
from ..shown import shortened

#: Most characters of :attr:`Knowledge.about` and of a word, and most words.
MOST_ABOUT, MOST_LETTERS, MOST_WORDS = 300, 40, 4096

#: A word, with hyphens and apostrophes inside: "hi-hat", "doesn't", "c5".
_WORD = re.compile("[^\\W_]+(?:[-'\u2019][^\\W_]+)*")
_APOSTROPHE = re.compile("['\u2019]")
#: Words that say nothing about the subject, including those that count things; of contractions the part before the
#: apostrophe counts. Single letters and digits are stop words as well.
STOP_WORDS = frozenset(
    """
    about after again all also am an and another any are as at be because been before being both but by can cannot
    could did do does doing don done down each eight either eleven every few first five for four from further get
    give go going had has have having he her here hers him his how if in into is isn it its itself just last let
    like ll make makes many may me might more most much must my next nine no nor not now of off on once one only or
    other our out over own please re really same second seven shall she should six so some something such tell ten
    than thank thanks that the their them then there these they thing things third this those three thrice through
    time times to too twelve twice two under until up upon us ve very want was we well were what when where which
    while who whom whose why will with would yes you your
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Knowledge:
    """``about``: what the model knows, as it follows "this model knows". ``words``: single words, of which a prompt
    about any of that has at least one; case does not matter, and a plural counts as its singular."""

    about: str
    words: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Knowledge({shortened(self.about)!r}, {len(self.words)} words)"

    def outside(self, prompt: str) -> bool:
        """Whether a prompt has content words and none of them is known; stop words count on neither side."""
        content = list(content_words(prompt))
        # hyphens are optional, so the parts of a hyphenated word count in a prompt
        parts = {part for word in content for part in (word, *word.split("-")) if part not in STOP_WORDS}
        return bool(content) and not any(self._known & _forms(part) for part in parts)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(form for word in self.words for found in content_words(word) for form in _forms(found))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return {"about": self.about, "words": list(self.words)}

    @classmethod
    def from_json(cls, values: object) -> Knowledge:
        """The inverse of :meth:`to_json`. ValueError names what is wrong."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{shown(values)} is not an object")
        if unknown := sorted(set(values) - {"about", "words"}, key=str):
            raise ValueError(f"{unknown[0]}: unknown; known: about, words")
        if missing := {"about", "words"} - set(values):
            raise ValueError(f"{min(missing)} is missing")
        return cls(_about(values["about"]), _words(values["words"]))


def content_words(text: str) -> Iterator[str]:
    """The words of a text that are not stop words, in lower case and without what follows an apostrophe."""
    for found in _WORD.findall(text.casefold()):
        word = _APOSTROPHE.split(found)[0]
        if word not in STOP_WORDS and not (len(word) == 1 and word.isascii()):
            yield word


def _forms(word: str) -> frozenset[str]:
    """A word and its possible singulars."""
    forms = {word}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            forms.add(word[:-2])
        if word.endswith("ies"):
            forms.add(word[:-3] + "y")
    return frozenset(forms)


def _about(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"about = {shown(value)} is not a text")
    if len(value) > MOST_ABOUT:
        raise ValueError(f"about has {len(value)} characters, and {MOST_ABOUT} are allowed")
    if not value.isprintable():  # it is printed on terminals, on one line
        raise ValueError(f"about = {shown(value)} has line breaks or control characters")
    return value.strip()


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"words = {shown(value)} is not a list of words")
    if len(value) > MOST_WORDS:
        raise ValueError(f"words: {len(value)} of them, and {MOST_WORDS} are allowed")
    for index, word in enumerate(value):
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            raise ValueError(f"words[{index}] = {shown(word)} is not a single word")
        if len(word) > MOST_LETTERS:
            raise ValueError(f"words[{index}] = {shown(word)} has {len(word)} letters, and {MOST_LETTERS} are allowed")
    return tuple(value)
