"""Messages to rows, compared with rows written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ualm.runtime import InputError, Sound, Speech
from ualm.runtime.bundle.bundle import TOKENIZER, Bundle
from ualm.runtime.conversation.prompt import check_messages, prompt_parts
from ualm.runtime.text.tokenizer import TextCodec
from ualm.runtime.vocabulary import Vocabulary

HEARD = np.full((3, 4), 0.5, np.float32)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle(tiny_bundle, verify="never")


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> TextCodec:
    return TextCodec(bundle.path(TOKENIZER))


def parts_of(bundle: Bundle, text: TextCodec, *messages: tuple[str, object]) -> list[np.ndarray]:
    vocabulary = bundle.manifest.vocabulary
    checked = check_messages(messages, vocabulary, text, lambda sound: None)  # type: ignore[arg-type]
    return prompt_parts(checked, vocabulary, lambda sound: HEARD)


def stream_0(part: np.ndarray) -> list[int]:
    assert part.dtype == np.int32 and not part[:, 1:].any()
    return part[:, 0].tolist()


def test_a_text_is_framed_by_role_modality_and_eos(bundle: Bundle, text: TextCodec) -> None:
    base = bundle.manifest.vocabulary.text_base
    ids = [base + i for i in text.encode("dog")]
    (part,) = parts_of(bundle, text, ("user", "dog"))
    assert stream_0(part) == [1, 5, 7, *ids, 2]


def test_messages_of_one_role_are_joined_by_eot(bundle: Bundle, text: TextCodec) -> None:
    sound = Sound(np.zeros(800, np.float32), 16000)
    first, heard, last = parts_of(bundle, text, ("system", "a"), ("user", sound), ("user", "dog"))
    assert stream_0(first)[-3:] == [2, 5, 8]
    assert heard is HEARD
    assert stream_0(last)[:3] == [3, 5, 7] and stream_0(last)[-1] == 2


def test_speech_is_tagged_as_speech(bundle: Bundle, text: TextCodec) -> None:
    first, _, last = parts_of(bundle, text, ("user", Speech(Sound(np.zeros(800, np.float32), 16000))))
    assert stream_0(first) == [1, 5, 9]
    assert stream_0(last) == [2]


def test_tokenizer_id_0_goes_in_as_pad(bundle: Bundle, text: TextCodec) -> None:
    assert text.encode("!") == [0]
    (part,) = parts_of(bundle, text, ("user", "!"))
    assert stream_0(part) == [1, 5, 7, 0, 2]
    assert text.decode([0]) == "!"


def test_a_sound_that_the_model_made_goes_back_in_as_its_codes(bundle: Bundle, text: TextCodec) -> None:
    vocabulary = bundle.manifest.vocabulary
    codes = np.arange(24, dtype=np.int16).reshape(3, 8) % vocabulary.codebook_size
    made = Sound(np.zeros(30, np.float32), 16000, codes)
    (part,) = parts_of(bundle, text, ("user", "dog"), ("assistant", made), ("user", "dog"))
    start = 3 + len(text.encode("dog")) + 1
    assert part[start : start + 2, 0].tolist() == [6, 8]
    spoken = part[start + 2 : start + 2 + 10]
    for row in range(10):
        for stream in range(8):
            frame = row - stream
            code = 1 + codes[frame, stream] if 0 <= frame < 3 else 0
            assert spoken[row, stream] == vocabulary.pads[stream] + code
    assert part[start + 12, 0] == 2


@pytest.mark.parametrize("wrap", [lambda sound: sound, Speech])
def test_an_assistants_sound_without_codes_is_refused(bundle: Bundle, text: TextCodec, wrap: type) -> None:
    with pytest.raises(InputError, match=r"messages\[1\].*assistant.*codes"):
        parts_of(bundle, text, ("user", "dog"), ("assistant", wrap(Sound(np.zeros(800, np.float32), 16000))))


def test_the_delay_pattern_is_undone(bundle: Bundle) -> None:
    vocabulary = Vocabulary(256, 40, 296, 5)
    codes = np.random.default_rng(0).integers(0, 5, (6, 8)).astype(np.int16)
    rows = vocabulary.delayed_rows(codes)
    assert rows.shape == (13, 8) and rows.max() < vocabulary.size
    np.testing.assert_array_equal(vocabulary.codes(rows), codes)
    rows[3, 2] = vocabulary.pads[2]  # a pad drawn in the middle of a sound
    assert vocabulary.codes(rows)[1, 2] == 0
    assert len(vocabulary.codes(rows[:7])) == 0
