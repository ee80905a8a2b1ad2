"""Text decoded piece by piece equals, when joined, text decoded at once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from ualm.runtime.bundle.bundle import TOKENIZER
from ualm.runtime.text.stream import TextStream
from ualm.runtime.text.tokenizer import TextCodec


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_bundle / TOKENIZER))


@pytest.fixture(scope="module")
def codec(tiny_bundle: Path) -> TextCodec:
    return TextCodec(tiny_bundle / TOKENIZER)


@pytest.fixture(scope="module")
def byte_ids(tokenizer: Tokenizer) -> list[int]:
    """The token of each byte."""
    alphabet = {}
    for byte in range(256):
        # a byte-level tokenizer spells each byte as one letter: a two-byte character shows those of its two bytes
        if byte < 128:
            alphabet[byte] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
                chr(byte)
            )[0][0]
    unused = iter(range(256, 512))
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    for byte in range(256):
        letter = chr(byte) if byte in printable else chr(next(unused))
        assert alphabet.get(byte, letter) == letter
        alphabet[byte] = letter
    return [tokenizer.token_to_id(alphabet[byte]) for byte in range(256)]


#: Patterns of clean-up, whole and in parts, their neighbours, characters of 2 to 4 bytes, and broken ones.
_BITS = [b" ", b"  ", b"'", b" ' ", b" '", b"' ", b"n", b"n't", b" n't", b" n", b"t", b"s", b"'s", b" 's", b"m", b"v"]
_BITS += [b"ve", b"'ve", b" 've", b"re", b"r", b"e", b".", b" .", b"?", b"!", b",", b" ,", b"word", b"1", b"\n", b"a"]
_BITS += ["é".encode(), "€".encode(), "🐕".encode(), b"\xf0\x9f", b"\x90", b"\xe2", b"\xff", "\ufffd".encode()]


def streamed(codec: TextCodec, ids: list[int], cuts: list[int]) -> tuple[list[str], str]:
    """Deltas of the pushes, with ids cut at ``cuts``, and the rest from ``finish``."""
    stream = TextStream(codec)
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    deltas = [stream.push(ids[first:last]) for first, last in pairwise(edges)]
    return deltas, stream.finish()


def assert_never_contradicted(codec: TextCodec, ids: list[int], cuts: list[int]) -> None:
    whole = codec.decode(ids)
    deltas, rest = streamed(codec, ids, cuts)
    said = ""
    for delta in deltas:
        said += delta
        assert whole.startswith(said)
    assert said + rest == whole


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 345), max_size=40), cuts=st.lists(st.integers(0, 40), max_size=40))
def test_deltas_of_any_tokens_join_to_the_text(codec: TextCodec, ids: list[int], cuts: list[int]) -> None:
    """345 is beyond the tokenizer: a model may draw ids without text."""
    assert_never_contradicted(codec, ids, cuts)


@settings(max_examples=1500, deadline=None)
@given(bits=st.lists(st.sampled_from(_BITS), max_size=14), cuts=st.one_of(st.none(), st.lists(st.integers(0, 60))))
@example(bits=[b"x  ' ve"], cuts=None)
@example(bits=[b"x n ' t y"], cuts=None)
@example(bits=[b"do n't  ' s   ."], cuts=None)
@example(bits=["🐕".encode()[:3], b"a", "🐕".encode()], cuts=None)
def test_what_clean_up_and_utf8_would_change_is_held_back(
    codec: TextCodec, byte_ids: list[int], bits: list[bytes], cuts: list[int] | None
) -> None:
    """Byte by byte, so that every pattern and every character is cut everywhere; or cut at random places."""
    ids = [byte_ids[byte] for byte in b"".join(bits)]
    assert_never_contradicted(codec, ids, list(range(len(ids))) if cuts is None else cuts)


def test_a_character_comes_whole_or_not_at_all(codec: TextCodec, byte_ids: list[int]) -> None:
    ids = [byte_ids[byte] for byte in "aé€🐕b".encode()]
    deltas, rest = streamed(codec, ids, list(range(len(ids))))
    assert [delta for delta in deltas if delta] == ["a", "é", "€", "🐕", "b"] and rest == ""
    assert streamed(codec, ids[:-2], [2]) == (["aé"[:1], "é€"], "\ufffd")  # the ids end within a character


@pytest.mark.parametrize("text", ["dog 's", "is n't", "a . b", "x ' y", "we 've , they 're", "  ' ve", "🐕 .", "don't"])
def test_the_bytes_of_a_text_decode_to_its_clean_up(codec: TextCodec, byte_ids: list[int], text: str) -> None:
    ids = [byte_ids[byte] for byte in text.encode()]
    assert codec.decode(ids) == codec.clean_up(text)


#: Words that no clean-up pattern begins with: a lone "n" may become " n't" and waits for a word that rules it out.
_WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789é-", min_size=1, max_size=8).filter(lambda word: word != "n")


@settings(max_examples=200, deadline=None)
@given(words=st.lists(_WORD, min_size=1))
def test_a_word_is_out_when_the_next_one_begins(codec: TextCodec, byte_ids: list[int], words: list[str]) -> None:
    """For any length: lists of numbers and short words must stream too."""
    stream, said = TextStream(codec), ""
    for count, word in enumerate(words):
        said += stream.push([byte_ids[byte] for byte in (" " * (count > 0) + word).encode()])
        assert said.startswith(" ".join(words[:count]))


def test_a_lone_n_waits_for_what_follows(codec: TextCodec, byte_ids: list[int]) -> None:
    deltas, rest = streamed(codec, [byte_ids[byte] for byte in b"0 n n x"], list(range(7)))
    assert "".join(deltas) == "0 n n x" and rest == ""
    assert [delta for delta in deltas if delta] == ["0", " n n x"]


def test_a_text_without_anything_to_clean_up_is_out_at_once(codec: TextCodec, byte_ids: list[int]) -> None:
    deltas, rest = streamed(codec, [byte_ids[byte] for byte in b"1 2 3: go"], list(range(9)))
    assert [delta for delta in deltas if delta] == ["1", " 2", " 3", ":", " g", "o"] and rest == ""
