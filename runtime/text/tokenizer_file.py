"""Reading a ``tokenizer.json``, which is a small program: its output can be a thousand times as long as the text.

It is checked before the tokenizers library runs it: its size and depth, its ids, and how much its steps can lengthen a
text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from ..files.reading import MOST_TOKENIZER, MOST_TOKENIZER_VALUES, first_line, parse_json, read_bytes, shown

#: How many times as long a text may become through all steps of a tokenizer in a row; Qwen's may reach 12.
MOST_GROWTH = 256
#: Characters that a step may put into a text.
MOST_ADDED = 4096
#: The highest id of a token, plus 1.
MOST_IDS = 1 << 22

#: The most characters that a step makes of one. Unicode's own are those of its normalisation forms, and a byte-level
#: step makes a character of each byte.
_GROWTH = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 3,
    "BertNormalizer": 12,
    "BertPreTokenizer": 1,
    "ByteLevel": 4,
    "StripAccents": 1,
    "Strip": 1,
    "Nmt": 1,
    "Metaspace": 2,
    "Split": 1,
    "Digits": 1,
    "Punctuation": 1,
    "Whitespace": 1,
    "WhitespaceSplit": 1,
    "UnicodeScripts": 1,
    "CharDelimiterSplit": 1,
    "FixedLength": 1,
}


#: Expressions whose shortest match is evident: a word, and a character or kind of characters, repeated.
_WORD = re.compile(r"(?:\\b)?([A-Za-z0-9]+)(?:\\b)?")
_REPEATED = re.compile(r"(?:[A-Za-z0-9 !,;:_-]|\\[sSdDwW.?*+])\+")


def read_tokenizer(path: str | os.PathLike[str], ids: int = MOST_IDS) -> Tokenizer:
    """The tokenizer of a file. ValueError says what is wrong with it, OSError that it cannot be read.

    ``ids``: how many ids the model has rows for; a token beyond them is refused.
    """
    content = read_bytes(path, MOST_TOKENIZER)
    document = parse_json(content, MOST_TOKENIZER_VALUES)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ValueError("it has no field model")
    _check_growth(document)
    _check_ids(document, ids)
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except BaseException as error:
        if not of_the_library(error):
            raise
        raise ValueError(first_line(error)) from error
    for token in document.get("added_tokens") or ():
        # the library gives a token that is new to it the next id, regardless of the file
        if (found := tokenizer.token_to_id(token["content"])) != token["id"]:
            raise ValueError(f"added_tokens: {shown(token['content'])} has the id {token['id']}, and would get {found}")
    return tokenizer


def of_the_library(error: BaseException) -> bool:
    """Whether the tokenizers library raised this: bare exceptions, and panics, which are not an ``Exception``."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _check_growth(document: Mapping[str, Any]) -> None:
    growth = 1
    for section in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        for step in _steps(document.get(section)):
            kind = step.get("type")
            if section == "decoder" and kind != "Replace":
                continue  # none of the others lengthens its input by more than a character
            if section == "post_processor":
                growth *= _parts(step)
            elif kind == "Replace":
                growth *= _replaced(section, step)
            elif kind == "Prepend":
                _added(section, step.get("prepend"))
                growth *= 2  # for a text of one character
            elif isinstance(kind, str) and kind in _GROWTH:
                growth *= _GROWTH[kind]
            else:
                raise ValueError(f"{section}: type = {shown(kind)}: known are {', '.join(sorted(_GROWTH))}")
            if growth > MOST_GROWTH:
                raise ValueError(
                    f"{section}: its steps may make a text {growth} times as long; at most {MOST_GROWTH} is supported"
                )
        growth = growth if section == "normalizer" else 1  # decoding starts from another text


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a section, including those within sequences."""
    if not isinstance(step, Mapping):
        return
    inner = [step[name] for name in ("normalizers", "pretokenizers", "decoders", "processors") if name in step]
    if step.get("type") != "Sequence":
        yield step
    for steps in inner:
        for each in steps if isinstance(steps, list) else []:
            yield from _steps(each)


def _replaced(section: str, step: Mapping[str, Any]) -> int:
    """Characters that replace one."""
    content, pattern = _added(section, step.get("content")), step.get("pattern")
    found = _shortest(pattern) if isinstance(pattern, Mapping) else 0
    # a regular expression, or nothing at all, may be found between any two characters
    return max(1, -(-content // found)) if found else 1 + content


def _shortest(pattern: Mapping[str, Any]) -> int:
    """The fewest characters that a pattern replaces: 0 if it may match none, or its expression is not a simple one."""
    fixed, expression = pattern.get("String"), pattern.get("Regex")
    if isinstance(fixed, str):
        return len(fixed)
    if not isinstance(expression, str):
        return 0
    if word := _WORD.fullmatch(expression):
        return len(word[1])
    return 1 if _REPEATED.fullmatch(expression) else 0


def _added(section: str, content: object) -> int:
    if isinstance(content, str) and len(content) > MOST_ADDED:
        raise ValueError(f"{section}: a step writes {len(content)} characters; at most {MOST_ADDED} are supported")
    return len(content) if isinstance(content, str) else 0


def _parts(step: Mapping[str, Any]) -> int:
    """How often a template repeats the text, or how many tokens it puts beside it."""
    template, special = step.get("single"), step.get("special_tokens")
    tokens = special.values() if isinstance(special, Mapping) else ()
    each = max((len(token["ids"]) for token in tokens if isinstance(token, Mapping) and "ids" in token), default=1)
    return max(1, len(template)) * max(1, each) if isinstance(template, list) else 1


def _check_ids(document: Mapping[str, Any], ids: int) -> None:
    vocabulary = document["model"].get("vocab")
    if isinstance(vocabulary, Mapping):
        highest = max((index for index in vocabulary.values() if type(index) is int), default=-1)
        if highest >= ids:
            token = next(token for token, index in vocabulary.items() if index == highest)
            raise ValueError(f"model.vocab: token {shown(token)} has the id {shown(highest)}; there are {ids}")
    for token in document.get("added_tokens") or ():
        index = token.get("id") if isinstance(token, Mapping) else None
        if type(index) is not int or not 0 <= index < ids:
            raise ValueError(f"added_tokens: {shown(token)}: an id from 0 to {ids - 1} is expected")
