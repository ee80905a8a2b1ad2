"""Opening bundles: damaged, foreign or newer ones are refused with the file's name and the fix."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ualm.runtime import Model
from ualm.runtime.bundle.bundle import GOLDEN, MANIFEST, TOKENIZER, WEIGHTS, Bundle, describe_file
from ualm.runtime.bundle.manifest import SCHEMA_VERSION, digest_of
from ualm.runtime.errors import BundleError, InputError
from ualm.runtime.files.safetensors_reader import MappedTensors
from ualm.runtime.text.tokenizer import TextCodec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of remembered verifications; each test starts with none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit; the file keeps its size, and within the clock's resolution its time changes."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def flip_unseen(path: Path) -> None:
    """Change one bit in place and restore the time."""
    info = path.stat()
    with open(path, "r+b") as file:
        file.seek(info.st_size // 2)
        byte = file.read(1)[0]
        file.seek(info.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def rewrite_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and recompute its digest, as an attacker could."""
    document = json.loads((folder / MANIFEST).read_text())
    edit(document)
    document["digest"] = digest_of(document)
    (folder / MANIFEST).write_text(json.dumps(document))


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_bundle_opens_and_lists_all_its_files(tiny_bundle):
    opened = Bundle(tiny_bundle)
    assert sorted([*opened.manifest.files, MANIFEST]) == files_of(tiny_bundle)
    assert {WEIGHTS, GOLDEN, TOKENIZER} < set(opened.manifest.files)
    assert opened.table("embedding").shape == (opened.manifest.vocabulary.size, opened.manifest.model.hidden_size)
    with pytest.raises(ValueError, match="read-only"):
        opened.table("embedding")[0, 0] = 1.0


# ---- damage ----


def test_a_flipped_bit_in_any_file_is_found_at_the_first_load(bundle):
    for name in files_of(bundle):
        whole = (bundle / name).read_bytes()
        flip(bundle / name)
        message = refusal(bundle)
        assert str(bundle / name) in message and "copy the bundle again" in message
        (bundle / name).write_bytes(whole)
    Bundle(bundle)


def test_a_flipped_bit_is_found_after_a_verified_load(bundle, cache):
    Bundle(bundle)
    assert len(list(cache.rglob("*.json"))) == 1
    for name in files_of(bundle):
        whole = (bundle / name).read_bytes()
        flip(bundle / name)
        assert str(bundle / name) in refusal(bundle)
        (bundle / name).write_bytes(whole)
    Bundle(bundle)


def test_the_first_load_is_remembered_and_always_is_not_content_with_that(bundle):
    Bundle(bundle)
    flip_unseen(bundle / WEIGHTS)
    Bundle(bundle)  # same size, time and inode: taken as verified
    assert str(bundle / WEIGHTS) in refusal(bundle, verify="always")


def test_a_copy_is_verified_anew(bundle, tmp_path):
    Bundle(bundle)
    flip_unseen(bundle / GOLDEN)
    shutil.copytree(bundle, tmp_path / "copy")
    assert str(tmp_path / "copy" / GOLDEN) in refusal(tmp_path / "copy")


def test_never_checks_no_hashes_but_sizes_and_the_manifest(bundle, cache):
    flip(bundle / WEIGHTS)
    flip(bundle / GOLDEN)
    Bundle(bundle, verify="never")
    assert not cache.exists()
    flip(bundle / MANIFEST)
    assert str(bundle / MANIFEST) in refusal(bundle, verify="never")


def test_an_unknown_verify_is_refused(bundle):
    with pytest.raises(InputError, match=r"verify = 'sometimes'.*always"):
        Bundle(bundle, verify="sometimes")  # type: ignore[arg-type]


@pytest.mark.parametrize("verify", ["first", "always", "never"])
def test_a_missing_file_is_named(bundle, verify):
    for name in files_of(bundle):
        (bundle / name).rename(bundle.parent / "away")
        message = refusal(bundle, verify=verify)
        assert name in message and "missing" in message
        (bundle.parent / "away").rename(bundle / name)


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 5000, -1])
@pytest.mark.parametrize("verify", ["first", "never"])
def test_truncated_weights_are_refused_with_both_sizes(bundle, kept, verify):
    path = bundle / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    message = refusal(bundle, verify=verify)
    assert str(path) in message and f"{len(whole[:kept])} bytes" in message and str(len(whole)) in message


def test_a_folder_in_place_of_a_file_is_refused(bundle):
    (bundle / TOKENIZER).unlink()
    (bundle / TOKENIZER).mkdir()
    assert str(bundle / TOKENIZER) in refusal(bundle)


def test_an_unreadable_tokenizer_is_named_even_without_verification(bundle):
    (bundle / TOKENIZER).write_bytes(b" " * (bundle / TOKENIZER).stat().st_size)
    with pytest.raises(BundleError, match="not a readable tokenizer") as caught:
        Model.open(bundle, threads=1, verify="never")
    assert str(bundle / TOKENIZER) in str(caught.value)


def test_what_a_tokenizer_quotes_is_one_short_line(bundle):
    document = json.loads((bundle / TOKENIZER).read_text())
    document["model"]["merges"][0] = ["x" * 5000 + "\n", "y"]
    (bundle / TOKENIZER).write_text(json.dumps(document))
    with pytest.raises(BundleError, match="not a readable tokenizer") as caught:
        TextCodec(bundle / TOKENIZER)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


# ---- folders that are no bundle, or a newer one ----


@pytest.mark.parametrize(
    ("made", "why"), [("nothing", "no such folder"), ("empty", f"{MANIFEST} is missing"), ("file", "it is a file")]
)
def test_what_is_no_bundle_is_told_how_to_make_one(tmp_path, made, why):
    place = tmp_path / "place"
    if made == "empty":
        place.mkdir()
    elif made == "file":
        place.write_text("bundle")
    message = refusal(place)
    assert f"{place}: no bundle here ({why})" in message and "ualm export RUN" in message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"{}", b'{"format": "onnx"}', b"\xff\xfe", b'"ualm-bundle"'], ids=str
)
def test_a_manifest_of_something_else_is_refused(bundle, content):
    (bundle / MANIFEST).write_bytes(content)
    assert str(bundle / MANIFEST) in refusal(bundle)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 1, 0, -1, "2", 2.0, None, True])
def test_another_schema_version_is_refused(bundle, version):
    rewrite_manifest(bundle, lambda document: document.update(version=version))
    message = refusal(bundle)
    assert f"version = {version!r}" in message and f"reads {SCHEMA_VERSION}" in message
    assert "export the run again" in message


def test_a_newer_version_is_told_before_its_unknown_fields(bundle):
    (bundle / MANIFEST).write_text(json.dumps({"format": "ualm-bundle", "version": 99, "chapters": []}))
    assert "version = 99" in refusal(bundle)


def test_a_manifest_edited_by_hand_is_refused(bundle):
    document = json.loads((bundle / MANIFEST).read_text())
    document["model"]["layers"] = 1
    (bundle / MANIFEST).write_text(json.dumps(document))
    message = refusal(bundle, verify="never")
    assert str(bundle / MANIFEST) in message and "digest" in message


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document.pop("codec"),
        lambda document: document["model"].pop("layers"),
        lambda document: document["model"].update(depth=3),
        lambda document: document["vocabulary"].update(text_size="many"),
        lambda document: document.update(files=[]),
        lambda document: document["files"].update({WEIGHTS: None}),
        lambda document: document.update(sampling=None),
        lambda document: document["sampling"].pop("text"),
        lambda document: document["sampling"]["audio"].update(temperature=-1),
        lambda document: document["parts"]["codec"].pop("file"),
        lambda document: document["parts"]["codec"].update(file="other.onnx"),
        lambda document: document["codec"].update(hop_length="x"),
        lambda document: document["model"].update(heads=-1),
    ],
    ids=range(13),
)
def test_a_manifest_without_a_field_is_refused(bundle, edit):
    rewrite_manifest(bundle, edit)
    message = refusal(bundle)
    assert str(bundle / MANIFEST) in message and "export the run again" in message


@pytest.mark.parametrize("what", ["file", "part"])
def test_what_the_manifest_does_not_list_is_named(bundle, what):
    if what == "part":
        with pytest.raises(BundleError, match=r"manifest\.json: lists no part 'oracle'"):
            Bundle(bundle).part("oracle")
    else:
        rewrite_manifest(bundle, lambda document: document["files"].pop(WEIGHTS))
        assert f"lists no file {WEIGHTS!r}" in refusal(bundle)


# ---- paths ----


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "..", "", "/etc/hostname", "..\\secret", "C:secret", "a\0b"]
)
def test_a_path_that_leads_outside_is_refused(bundle, name):
    secret = bundle.parent / "secret"
    secret.write_text("secret")
    rewrite_manifest(bundle, lambda document: document["files"].update({name: vars(describe_file(secret))}))
    message = refusal(bundle)
    assert str(bundle / MANIFEST) in message and repr(name) in message and "outside" in message


def test_a_link_that_leads_outside_is_refused(bundle):
    (bundle / GOLDEN).rename(bundle.parent / "elsewhere")
    (bundle / GOLDEN).symlink_to(bundle.parent / "elsewhere")
    message = refusal(bundle)
    assert str(bundle / GOLDEN) in message and "outside" in message


def test_a_linked_folder_that_leads_outside_is_refused(bundle):
    (bundle.parent / "elsewhere").mkdir()
    (bundle.parent / "elsewhere" / "file").write_text("a")
    (bundle / "folder").symlink_to(bundle.parent / "elsewhere")
    described = vars(describe_file(bundle / "folder" / "file"))
    rewrite_manifest(bundle, lambda document: document["files"].update({"folder/file": described}))
    assert "outside" in refusal(bundle)


def test_links_in_a_circle_are_refused(bundle):
    (bundle / GOLDEN).unlink()
    (bundle / GOLDEN).symlink_to(GOLDEN)
    assert str(bundle / GOLDEN) in refusal(bundle)


def test_a_bundle_reached_through_a_link_opens(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    Bundle(tmp_path / "link")


# ---- the memory of a verification ----


def test_a_cache_that_cannot_be_written_costs_only_the_check(bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Bundle(bundle)
    flip_unseen(bundle / WEIGHTS)
    assert str(bundle / WEIGHTS) in refusal(bundle)  # not remembered, so found


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"null"])
def test_a_damaged_memory_is_not_believed(bundle, cache, content):
    Bundle(bundle)
    next(cache.rglob("*.json")).write_bytes(content)
    flip_unseen(bundle / WEIGHTS)
    assert str(bundle / WEIGHTS) in refusal(bundle)


# ---- tensors ----


def _safetensors(header: object, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the first number is aligned
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def tensor_file(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    def write(content: bytes) -> Path:
        (tmp_path / "a.safetensors").write_bytes(content)
        return tmp_path / "a.safetensors"

    yield write


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\xff" * 64,
        _safetensors(b"{"),
        _safetensors([]),
        _safetensors(3),
        (2**63).to_bytes(8, "little") * 2,
    ],
    ids=["empty", "short", "ones", "cut", "list", "number", "huge"],
)
def test_a_file_that_is_no_safetensors_is_named(tensor_file, content):
    path = tensor_file(content)
    with pytest.raises(BundleError, match="not a readable safetensors file") as caught:
        MappedTensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [16], "data_offsets": [0, 68]},
        {"dtype": "F32", "shape": [17], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]},
        {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [16.0], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [16], "data_offsets": [0.0, 64.0]},
        {"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]},
        {"dtype": "F32", "shape": [16], "data_offsets": [64]},
        {"dtype": "F8_E5M2", "shape": [64], "data_offsets": [0, 64]},
        {"dtype": [], "shape": [16], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 64]},
        {"shape": [16], "data_offsets": [0, 64]},
        [],
        None,
    ],
    ids=str,
)
def test_a_malformed_tensor_is_named(tensor_file, entry):
    tensors = MappedTensors(tensor_file(_safetensors({"good": _GOOD, "bad": entry})))
    np.testing.assert_array_equal(tensors["good"], np.zeros((4, 4), np.float32))
    with pytest.raises(BundleError, match="tensor 'bad' cannot be read"):
        tensors["bad"]


_GOOD = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
