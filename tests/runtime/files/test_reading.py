"""Files from outside are read within limits, and paths that are not files are refused without waiting for them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ualm.runtime.bundle.bundle import GOLDEN, MANIFEST, TOKENIZER, Bundle
from ualm.runtime.errors import BundleError
from ualm.runtime.files import reading
from ualm.runtime.files.reading import check_file, first_line, parse_json, read_bytes, read_json, shown
from ualm.runtime.files.safetensors_reader import MappedTensors
from ualm.runtime.text.tokenizer import TextCodec
from ualm.runtime.text.tokenizer_file import read_tokenizer


@contextmanager
def no_file(path: Path, kind: str) -> Iterator[None]:
    """Make something that is not a file at ``path``."""
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "named pipe":
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "socket":
            # the name of a socket has at most 107 bytes
            before = Path.cwd()
            os.chdir(path.parent)
            bound.bind(path.name)
            os.chdir(before)
        yield


KINDS = ["folder", "device", "named pipe", "socket"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, kind):
    with no_file(tmp_path / "a.json", kind):
        for read in (check_file, read_json):
            with pytest.raises(ValueError, match=f"it is a {kind}, not a file"):
                read(tmp_path / "a.json")


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="it has 5 bytes, and at most 4 are read"):
        read_bytes(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", 4)


def test_json_has_limits_for_values_and_levels():
    deepest = b"[" * reading.MOST_DEPTH + b"]" * reading.MOST_DEPTH
    assert parse_json(deepest)
    for deeper in (b"[" + deepest + b"]", b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(ValueError, match=f"deeper than {reading.MOST_DEPTH} levels"):
            parse_json(deeper)
    assert parse_json(b"[1,2,3]", 3) == [1, 2, 3]
    with pytest.raises(ValueError, match="it has some 4 values, and at most 3 are read"):
        parse_json(b"[1,2,3,4]", 3)


@pytest.mark.parametrize("text", [",,,,,,", '",[{",[{', "\\", "\\,[{", '\\",[{', "a\n,[{", "\u00fc,[{"], ids=ascii)
@pytest.mark.parametrize("plain", [True, False])
def test_values_are_counted_and_not_what_is_within_texts(text: str, plain: bool) -> None:
    values = [text, {text: text}, text]
    content = json.dumps(values, ensure_ascii=plain).encode()
    assert parse_json(content, 4) == values
    with pytest.raises(ValueError, match="some 4 values, and at most 3"):
        parse_json(content, 3)
    with pytest.raises(ValueError, match="values, and at most 4"):
        parse_json(content + b"," * 5, 4)


def test_what_is_shown_of_a_value_is_short_whatever_it_holds():
    laugh: Any = "ha"
    for _ in range(60):
        laugh = [laugh] * 10
    for value in (laugh, "x" * 10**7, 16**10**6, {"a": laugh}, [10**5000], {i: i for i in range(10**5)}):
        assert 0 < len(shown(value)) <= reading.MOST_SHOWN
    for value in ("a", 'it\'s "so"', None, [1, 2.5], {"type": "yarn", "factor": 4.0}, -(10**60)):
        assert shown(value) == repr(value)
    assert "\n" not in shown("a\nb") and first_line(ValueError("a\n  b\x1b[0m")) == "a b?[0m"


# ---- a bundle's files ----


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [MANIFEST, TOKENIZER, GOLDEN, "encoder.onnx"])
def test_what_is_no_file_in_a_bundle_is_refused(bundle, name, kind):
    (bundle / name).unlink()
    with (
        no_file(bundle / name, kind),
        pytest.raises(BundleError, match=rf"{name}: .*(it is a {kind}, not a file|leads outside)"),
    ):
        Bundle(bundle)


def test_a_manifest_that_is_nested_too_deep_is_refused(bundle):
    (bundle / MANIFEST).write_bytes(b"[" * 100_000)
    with pytest.raises(BundleError, match=r"manifest.json: not readable \(its values are nested deeper than 64 levels"):
        Bundle(bundle)


def safetensors(path: Path, header: Any, data: bytes = b"\0" * 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("dtype", ["F33", "f32", "", None, 3, ["F32"], {"F32": 1}, "F32" * 1000, "C64"], ids=str)
def test_a_dtype_that_is_none_is_named_with_its_tensor(tmp_path, dtype):
    entry = {"dtype": dtype, "shape": [16], "data_offsets": [0, 64]}
    tensors = MappedTensors(safetensors(tmp_path / "a.safetensors", {"model.norm": entry}))
    with pytest.raises(BundleError, match=r"a.safetensors: tensor 'model.norm' cannot be read") as caught:
        tensors["model.norm"]
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    if isinstance(dtype, str):
        assert "dtype = " in str(caught.value) and "known are F32" in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [10**4000], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": "16", "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [16], "data_offsets": [0, 10**30]},
    ],
    ids=["number", "empty", "overflow", "huge", "text", "offset"],
)
def test_an_entry_that_is_none_is_named(tmp_path, entry):
    tensors = MappedTensors(safetensors(tmp_path / "a.safetensors", {"a": entry}))
    for use in (tensors.__getitem__, tensors.stored_as) if not entry or entry == 3 else (tensors.__getitem__,):
        with pytest.raises(BundleError, match="tensor 'a'"):
            use("a")


@pytest.mark.parametrize("header", [b'{"a":' * 50_000, b"[" + b"1," * reading.MOST_HEADER_VALUES], ids=["deep", "many"])
def test_a_header_beyond_the_limits_is_refused(tmp_path, header):
    with pytest.raises(BundleError, match=r"not a readable safetensors file \(its? "):
        MappedTensors(safetensors(tmp_path / "a.safetensors", header))


# ---- tokenizers ----


def tokenizer_with(bundle: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads((bundle / TOKENIZER).read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _sequence(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": steps}


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("normalizer", _sequence([_replace("a", "a" * 10)] * 9), "normalizer: its steps may make a text 1000 times"),
        ("normalizer", _sequence([_sequence([_replace("a", "a" * 10)])] * 9), "1000 times as long"),
        ("normalizer", _replace("", "a" * 300), "301 times as long"),
        ("normalizer", _replace("a", "a" * 10**5), "a step writes 100000 characters; at most 4096"),
        ("normalizer", {"type": "Unheard"}, "normalizer: type = 'Unheard'"),
        ("normalizer", {"type": ["NFC"]}, "normalizer: type = ['NFC']"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 20}, "pre_tokenizer"),
        ("decoder", {"type": "Sequence", "decoders": [_replace("a", "a" * 10)] * 9}, "decoder: its steps"),
        (
            "post_processor",
            {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 300},
            "post_processor",
        ),
        ("added_tokens", [{"id": 10**7, "content": "a"}], "an id from 0 to"),
        ("model", None, "no field model"),
    ],
)
def test_a_tokenizer_that_multiplies_a_text_is_refused(tiny_bundle, tmp_path, section, value, said):
    path = tokenizer_with(tiny_bundle, tmp_path / TOKENIZER, lambda document: document.update({section: value}))
    with pytest.raises(BundleError, match=r"tokenizer.json: not a readable tokenizer") as caught:
        TextCodec(path)
    assert said in str(caught.value)


def test_steps_that_are_in_use_are_read(tiny_bundle, tmp_path):
    steps = [{"type": "NFKC"}, _replace(" ", "\u2581"), {"type": "Prepend", "prepend": "\u2581"}, {"type": "Lowercase"}]
    path = tokenizer_with(
        tiny_bundle, tmp_path / TOKENIZER, lambda document: document.update(normalizer=_sequence(steps[:3]))
    )
    assert isinstance(read_tokenizer(path), Tokenizer)


def test_simple_expressions_lengthen_by_what_they_replace(tiny_bundle, tmp_path):
    def read(word: str, content: str) -> Tokenizer:
        steps = [{"type": "Replace", "pattern": {"Regex": word}, "content": content} for _ in range(9)]
        path = tokenizer_with(
            tiny_bundle, tmp_path / TOKENIZER, lambda document: document.update(normalizer=_sequence(steps))
        )
        return read_tokenizer(path)

    for word, content in ((r"\bc5\b", "C5"), (r"\s+", " "), (r"\.+", "."), ("!+", "")):
        read(word, content)
    for word, content in ((r"\bc\b", "C5"), (r"c5|d", "C5"), (r"\s*", " "), (r"c5?", "C5"), (r"(?=c5)", "C5")):
        with pytest.raises(ValueError, match="times as long; at most 256"):
            read(word, content)


def test_an_id_that_the_model_has_no_row_for_is_refused(tiny_bundle, tmp_path):
    def change(document: dict[str, Any]) -> None:
        document["model"]["vocab"]["h"] = 10**6

    path = tokenizer_with(tiny_bundle, tmp_path / TOKENIZER, change)
    with pytest.raises(BundleError, match=r"model.vocab: token 'h' has the id 1000000; there are 500"):
        TextCodec(path, 500)


def test_a_pattern_that_gives_up_on_a_text_is_told(tiny_bundle, tmp_path):
    from ualm.runtime.errors import InputError

    def change(document: dict[str, Any]) -> None:
        document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+$"}

    text = TextCodec(tokenizer_with(tiny_bundle, tmp_path / TOKENIZER, change))
    with pytest.raises(InputError, match="the tokenizer gives up on it"):
        text.encode("a" * 40 + "b")
