"""Input that the runtime cannot use is refused by name, and the model stays usable afterwards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from support.runs import make_run
from ualm.export.bundle import export_run
from ualm.runtime import (
    AudioSampling,
    ContextError,
    EngineError,
    InputError,
    ModalityError,
    Model,
    Sound,
    Speech,
    TextSampling,
    UalmError,
)

RATE = 16000
#: Greedily, the tiny model never ends a sound by itself.
ENDLESS = {"temperature": 0, "guidance": 1, "max_steps": 1000}
SHORT = {"text": TextSampling(max_steps=4), "audio": AudioSampling(max_steps=10), "max_segments": 1}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with Model.open(tiny_bundle, threads=1, max_context=256) as opened:
        yield opened


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


def refusal(kind: type[UalmError], call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message
    return message


def assert_usable(model: Model) -> None:
    """The model answers as if nothing had gone wrong before."""
    with Model.open(model.bundle.folder, threads=1, max_context=model.max_context) as fresh:
        expected = fresh.generate("A dog barks.", max_steps=12, seed=3)
    found = model.generate("A dog barks.", max_steps=12, seed=3)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.samples, expected.samples)


# ---- sounds ----


def _write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, content, RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        (b"", ["empty (0 bytes)", "copy it again"]),
        (np.zeros(0, np.float32), ["no samples", "at least one"]),
        (b"this is text, not sound\n" * 40, ["not a sound file", "ffmpeg"]),
        (bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8)), ["not a sound file", "ffmpeg"]),
        (b"RIFF\x24\x00\x00\x00WAVE", ["not a sound file", "ffmpeg"]),
        (np.array([0.1, np.nan, 0.2] * 4000, np.float32), ["nan", "index 1", "finite"]),
        (np.array([0.1, 0.2, -np.inf] * 4000, np.float32), ["-inf", "index 2", "finite"]),
    ],
    ids=["empty", "no_samples", "text", "random", "header_only", "nan", "infinity"],
)
@pytest.mark.parametrize(
    "mark", [lambda path: path, Speech, lambda path: Speech(str(path))], ids=["path", "speech", "str"]
)
def test_a_file_that_holds_no_sound_is_named(model, tmp_path, content, pieces, mark):
    path = _write(tmp_path / "a.wav", content)
    message = refusal(InputError, model.run, [("user", mark(path))], **SHORT)
    for piece in ["messages[0]", str(path), *pieces]:
        assert piece in message


@pytest.mark.parametrize(
    ("name", "piece"), [("none.wav", "no such file"), (".", "not a file"), ("none/a.wav", "no such file")]
)
def test_a_path_to_no_file_is_named(model, tmp_path, name, piece):
    message = refusal(InputError, model.ask, tmp_path / name, "What is it?", max_steps=2)
    assert f"messages[0]: {tmp_path / name}" in message and piece in message


@pytest.mark.parametrize("samples", [1, 479])
def test_a_sound_shorter_than_three_mel_frames_is_refused(model, samples):
    message = refusal(InputError, model.ask, Sound(noise(1)[:samples], RATE), "What?", max_steps=2)
    assert f"{samples / 16:.1f} ms is too short" in message and "30.0 ms are needed" in message
    assert isinstance(model.ask(Sound(noise(1)[:480], RATE), "What?", max_steps=2), str)


def test_a_sound_longer_than_the_encoder_takes_is_refused(model):
    too_long = Sound(np.zeros(300 * 8000 + 1, np.float32), 8000)
    message = refusal(InputError, model.ask, too_long, "What?", max_steps=2)
    assert "4800002 samples at 16000 Hz" in message and "300 s (4800000 samples)" in message and "cut it" in message


@pytest.mark.parametrize(
    ("samples", "rate", "piece"),
    [
        (np.zeros(9, np.int16), RATE, "int16"),
        ([], RATE, "no samples"),
        (np.zeros((2, 3, 4), np.float32), RATE, "(2, 3, 4)"),
        (np.zeros((2, 900), np.float32), RATE, "transpose"),
        (np.float32(1), RATE, "()"),
        (["a"], RATE, "full scale"),
        (None, RATE, "full scale"),
        (np.full(9, 1e300), RATE, "1e+300"),
        (np.zeros(9, np.complex64), RATE, "complex64"),
        (np.zeros(9, np.float32), 0, "sample_rate: 0"),
        (np.zeros(9, np.float32), -1, "sample_rate: -1"),
        (np.zeros(9, np.float32), 16000.0, "sample_rate: 16000.0"),
        (np.zeros(9, np.float32), True, "sample_rate: True"),
        (np.zeros(9, np.float32), None, "sample_rate: None"),
    ],
    ids=str,
)
def test_arrays_that_are_no_sound_are_refused(samples, rate, piece):
    assert piece in refusal(InputError, Sound, samples, rate)


@pytest.mark.parametrize("content", [None, 3, b"a.wav", noise(0.1)], ids=["none", "number", "bytes", "array"])
def test_speech_holds_a_sound_or_a_path(content):
    assert "give a Sound or the path" in refusal(InputError, Speech, content)


def test_speech_given_as_the_name_of_a_file_is_heard_and_not_read_as_text(model, tmp_path):
    path = _write(tmp_path / "a.wav", noise(0.5))
    heard = [model.run([("user", content)], modality="text", **SHORT)[0] for content in _speeches(path)]
    for other in heard[1:]:
        np.testing.assert_array_equal(other.rows, heard[0].rows)


def _speeches(path: Path) -> list[Speech]:
    return [Speech(Sound.from_file(path)), Speech(path), Speech(str(path))]


@pytest.mark.parametrize(
    ("codes", "piece"),
    [
        (np.zeros((0, 8), np.int16), "no frames"),
        (np.zeros((5, 7), np.int16), "[5, 7]"),
        (np.zeros(8, np.int16), "[8]"),
        (np.zeros((5, 8), np.float32), "float32"),
        (np.full((5, 8), 16), "16 is outside 0 .. 15"),
        (np.full((5, 8), -1), "-1 is outside 0 .. 15"),
    ],
    ids=str,
)
def test_codes_that_are_none_are_refused(model, codes, piece):
    assert piece in refusal(InputError, model.decode, codes)


# ---- texts and messages ----


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", ["text is empty", "write what"]),
        (b"rain", ["bytes of a sound: not a sound file", "of a text, give a str, not its bytes"]),
        (io.StringIO("rain"), ["opened as text"]),
        ("rain \udcff", ["not valid UTF-8", "character 5", r"'\udcff'", "decode the bytes"]),
        ("\ud83d", ["not valid UTF-8", "character 0"]),
        (3, ["content is a int", "give a str"]),
        (None, ["content is a NoneType", "give a str"]),
        (["rain"], ["content is a list", "give a str"]),
    ],
)
def test_a_text_that_is_none_is_refused(model, text, pieces):
    for message in (
        refusal(InputError, model.generate, text, max_steps=10),
        refusal(InputError, model.run, [("user", text)], **SHORT),
    ):
        for piece in ["messages[0]", *pieces]:
            assert piece in message


@pytest.mark.parametrize("text", [" ", "   \n\t ", "\0", "\u200b", "!", "é", "🐕" * 20], ids=ascii)
def test_odd_texts_are_taken(model, text):
    assert model.generate(text, max_steps=9).duration > 0


def test_all_messages_are_checked_before_a_sound_is_encoded(model, monkeypatch):
    monkeypatch.setattr(model.resources.features, "features", lambda sound: pytest.fail("encoded"))
    for second in (("user", ""), ("user", "\udc80"), ("guest", "hi"), ("user",)):
        assert "messages[1]" in refusal(InputError, model.run, [("user", Sound(noise(1), RATE)), second], **SHORT)


@pytest.mark.parametrize(
    "messages", ["hello", b"hello", [], (), None, 3, {}, {"user": "hi"}, Sound(noise(0.1), RATE)], ids=repr
)
def test_messages_that_are_no_list_are_refused(model, messages):
    assert "give a list of (role, content) pairs" in refusal(InputError, model.run, messages, **SHORT)


@pytest.mark.parametrize("message", ["hello", (), ("user",), ("user", "text", "hi"), None, {"user"}, b"hi"], ids=repr)
def test_a_message_that_is_no_pair_is_refused(model, message):
    said = refusal(InputError, model.run, [("user", "hi"), message], **SHORT)
    assert "messages[1]: a (role, content) pair" in said and repr(message) in said


@pytest.mark.parametrize("role", ["bot", "User", "", None, 5, [], {}], ids=repr)
def test_an_unknown_role_is_refused_with_the_known_ones(model, role):
    said = refusal(InputError, model.run, [(role, "hi")], **SHORT)
    assert f"messages[0]: role {role!r} is unknown" in said and "system, user, assistant" in said


# ---- options ----


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"temprature": 0.5}, ["unknown option 'temprature'", "temperature"]),
        ({"mode": "fixed"}, ["unknown option 'mode'"]),
        ({"seed": -1}, ["seed = -1", "from 0"]),
        ({"top_k": 0}, ["top_k = 0", "from 1"]),
        ({"max_steps": 7}, ["max_steps = 7", "at least 8"]),
        ({"guidance": 0.5}, ["guidance = 0.5", "from 1"]),
        ({"temperature": float("nan")}, ["temperature = nan"]),
    ],
    ids=str,
)
def test_options_of_generate_are_checked(model, options, pieces):
    message = refusal(InputError, model.generate, "rain", **options)
    for piece in ["AudioSampling", *pieces]:
        assert piece in message


def test_options_of_ask_are_checked(model):
    message = refusal(InputError, model.ask, Sound(noise(0.5), RATE), "What?", max_token=5)
    assert "TextSampling: unknown option 'max_token'" in message


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"mode": "best"}, "mode = 'best'"),
        ({"modality": "image"}, "modality = 'image'"),
        ({"modality": "speech"}, "modality = 'speech'"),
        ({"modality": ""}, "modality = ''"),
        ({"max_segments": 0}, "max_segments = 0"),
        ({"max_segments": True}, "max_segments = True"),
        ({"max_segments": 1.0}, "max_segments = 1.0"),
        ({"audio": {"seed": 3}}, "audio is a dict"),
        ({"audio": AudioSampling(max_steps=7)}, "max_steps = 7"),
    ],
    ids=str,
)
def test_options_of_run_are_checked(model, options, piece):
    assert piece in refusal(InputError, model.run, [("user", "hi")], **options)


@pytest.mark.parametrize("guidance", [1e38, 3e38])
def test_a_guidance_that_overflows_is_told_and_not_sampled(model, guidance):
    assert "logits" in refusal(EngineError, model.generate, "rain", guidance=guidance, max_steps=9)
    assert_usable(model)


# ---- opening ----


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_number_of_threads_that_is_none_is_refused(tiny_bundle, threads):
    assert f"threads = {threads!r}" in refusal(InputError, Model.open, tiny_bundle, threads=threads)


@pytest.mark.parametrize("engine", ["", "cuda", "OnnxRuntime", 3])
def test_an_unknown_engine_is_refused_with_the_known_ones(tiny_bundle, engine):
    message = refusal(EngineError, Model.open, tiny_bundle, engine)
    assert f"engine {engine!r}" in message and "onnxruntime" in message


@pytest.mark.parametrize("rows", [0, -1, 131073, 2.0, True, "256"])
def test_a_context_that_the_model_does_not_have_is_refused(tiny_bundle, rows):
    message = refusal(InputError, Model.open, tiny_bundle, max_context=rows)
    assert f"max_context = {rows!r}" in message and "131072" in message


# ---- context ----


def test_a_prompt_longer_than_the_context_is_refused(model):
    with pytest.raises(ContextError) as caught:
        model.generate("!" * 300, max_steps=9)
    rows = 1 + 2 + 300 + 1 + 1  # bos, role and modality, the text, eos, assistant
    assert f"needs {rows} rows" in str(caught.value) and "max_context = 256" in str(caught.value)
    assert "larger max_context" in str(caught.value)
    assert_usable(model)


def test_a_sound_longer_than_the_context_is_refused(model):
    with pytest.raises(ContextError, match="max_context = 256"):
        model.ask(Sound(noise(11), RATE), "What?", max_steps=2)
    assert_usable(model)


def test_a_prompt_that_fills_the_context_leaves_no_row_to_draw(tiny_bundle):
    with Model.open(tiny_bundle, threads=1, max_context=25) as model:
        model.run([("user", "!" * 19)], modality="text", text=TextSampling(max_steps=1), max_segments=1)
        with pytest.raises(ContextError, match=r"needs 26 rows \(25 held \+ 1 new\).*max_context = 25"):
            model.run([("user", "!" * 20)], modality="text", text=TextSampling(max_steps=1), max_segments=1)


def test_a_context_that_ends_while_a_sound_is_drawn_is_told(model):
    seen: list[int] = []
    with pytest.raises(ContextError, match=r"needs 257 rows \(256 held \+ 1 new\), but max_context = 256"):
        model.generate("rain", **ENDLESS, on_rows=lambda modality, rows: seen.append(rows))
    assert seen and max(seen) < 256
    assert_usable(model)


# ---- failures while running ----


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_of_the_caller_ends_the_call_and_nothing_else(model, error):
    def on_rows(modality: str, rows: int) -> None:
        if rows >= 20:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        model.generate("rain", **ENDLESS, on_rows=on_rows)
    with pytest.raises(error, match="stop"):
        model.ask(Sound(noise(0.5), RATE), "What?", max_steps=100, on_rows=on_rows)
    assert_usable(model)


def test_a_closed_model_says_so(tiny_bundle):
    model = Model.open(tiny_bundle, threads=1, max_context=256)
    model.generate("rain", max_steps=9)
    model.close()
    for call in (
        lambda: model.generate("rain", max_steps=9),
        lambda: model.ask(Sound(noise(0.5), RATE), "What?", max_steps=2),
        lambda: model.run([("user", "hi")], **SHORT),
        lambda: model.decode(np.zeros((20, 8), np.int16)),
    ):
        assert "the model is closed; open it again" in refusal(EngineError, call)
    model.close()


@pytest.mark.parametrize("modality", ["image", "video", "toolcall"])
def test_a_modality_that_the_model_has_no_parts_for_is_named(tmp_path, modality):
    make_run(tmp_path / "run", lean={modality: 12})
    with Model.open(export_run(tmp_path / "run", tmp_path / "bundle").bundle, threads=1, max_context=256) as model:
        message = refusal(ModalityError, model.run, [("user", "Draw a dog.")], **SHORT)
        assert f"answer with {modality!r}" in message and "modality='audio'" in message
        assert [segment.modality for segment in model.run([("user", "hi")], modality="text", **SHORT)] == ["text"]
        assert_usable(model)
