"""The manifest: parsed once into types, every inner field by its name, and written again as it was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bundles import changed_manifest
from ualm.export.quality.calibration_set import CalibrationSet
from ualm.runtime.bundle.bundle import MANIFEST, WEIGHTS, Bundle
from ualm.runtime.bundle.entries import Calibration, PartEntry, SamplingDefaults
from ualm.runtime.bundle.feature_spec import OMNI
from ualm.runtime.bundle.manifest import digest_of, parse_manifest
from ualm.runtime.bundle.packaged import packaged_bundle
from ualm.runtime.errors import BundleError
from ualm.runtime.sampling import AudioSampling, TextSampling
from ualm.runtime.sound.sound import Sound

Document = dict[str, Any]
REMOVED = object()


def document_of(folder: Path) -> Document:
    document: Document = json.loads((folder / MANIFEST).read_text())
    return document


def edited(document: Document, keys: tuple[str, ...], value: object) -> Document:
    """The document with one inner field replaced, removed or added, signed again."""
    copy: Document = json.loads(json.dumps(document))
    place = copy
    for key in keys[:-1]:
        place = place[key]
    if value is REMOVED:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return copy | {"digest": digest_of(copy)}


@pytest.fixture(scope="module")
def packaged() -> Document:
    folder = packaged_bundle()
    assert folder is not None
    return document_of(folder)


def test_the_packaged_manifest_is_written_as_it_was_read(packaged: Document) -> None:
    """With the order of keys: a rewritten manifest differs from the old one in what was changed alone."""
    written = parse_manifest(Path(MANIFEST), packaged).to_json()
    assert json.dumps(written) == json.dumps(packaged)
    assert written["digest"] == packaged["digest"] == digest_of(packaged)


@pytest.mark.parametrize(
    "older",
    [
        ("parts", "codec", "compute"),
        ("parts", "codec", "weight_bytes"),
        ("precision", "prefill"),
        ("features", "silence_db"),
    ],
    ids=lambda keys: ".".join(keys),
)
def test_what_an_older_export_did_not_record_is_not_added(packaged: Document, older: tuple[str, ...]) -> None:
    document = edited(packaged, older, REMOVED)
    manifest = parse_manifest(Path(MANIFEST), document)
    assert json.dumps(manifest.to_json()) == json.dumps(document)
    assert manifest.parts["codec"].multiplies_in == "float32"


def test_a_manifest_of_every_optional_section_is_written_as_it_was_read(packaged: Document) -> None:
    document = {name: value for name, value in packaged.items() if name != "digest"}
    document["post_codec"] = {"kind": "resample", "sample_rate": 48000, "channels": 2, "delay": 9, "options": {"a": 1}}
    document["knows"] = {"about": "bells", "words": ["bell", "gong"]}
    document["calibration"] = {"source": None, "prompts": 3, "sounds": 1}
    document["digest"] = digest_of(document)
    manifest = parse_manifest(Path(MANIFEST), document)
    assert json.dumps(manifest.to_json()) == json.dumps(document)
    assert manifest.calibration == Calibration(None, prompts=3, sounds=1)


def test_each_section_is_a_type(tiny_bundle: Path) -> None:
    manifest = Bundle(tiny_bundle).manifest
    assert manifest.sampling == SamplingDefaults(AudioSampling(), TextSampling())
    assert (manifest.features.kind, manifest.features.sample_rate) == (OMNI, 16000)
    part = manifest.parts["head.modality"]
    assert part == PartEntry("head_modality.onnx", "fp32", "float32", part.weight_bytes) and part.weight_bytes
    assert manifest.golden.keys() == {"logits", "features", "pcm"}


def test_a_calibration_set_says_in_the_manifest_how_much_there_was() -> None:
    heard = [("user", Sound([0.0] * 100, 16000)), ("user", "What do you hear?")]
    assert CalibrationSet([[("user", "rain")], heard], "some").entry() == Calibration("some", prompts=1, sounds=1)


#: Inner fields -> a value that is none, and what the error says.
MALFORMED: list[tuple[tuple[str, ...], object, str]] = [
    (("model", "layers"), REMOVED, "model: missing ['layers'], unknown []"),
    (("model", "depth"), 3, "model: missing [], unknown ['depth']"),
    (("model", "heads"), "4", "model.heads = '4'"),
    (("vocabulary", "text_size"), True, "vocabulary.text_size = True"),
    (("vocabulary", "dialect"), 3, "vocabulary: missing [], unknown ['dialect']"),
    (("codec", "lookahead"), -1, "codec.lookahead = -1"),
    (("codec",), [], "codec = [] is not an object"),
    (("codec",), REMOVED, "codec is missing"),
    (("features", "kind"), "wav2vec", "features.kind: 'wav2vec' is unknown"),
    (("features", "n_mels"), "128", "features.n_mels: '128' is not of type int"),
    (("features", "n_fft"), REMOVED, "features: missing ['n_fft'], unknown []"),
    (("features",), 3, "features = 3 is not an object"),
    (("sampling", "audio"), None, "sampling.audio = None"),
    (("sampling", "text"), REMOVED, "sampling: missing ['text'], unknown []"),
    (("sampling", "video"), {}, "sampling: missing [], unknown ['video']"),
    (("sampling", "audio", "temperature"), "hot", "AudioSampling: temperature = 'hot'"),
    (("sampling", "text", "warmth"), 1, "TextSampling: unknown option 'warmth'"),
    (("parts", "codec"), None, "parts.codec = None is not an object"),
    (("parts", "codec", "file"), ["codec.onnx"], "parts.codec.file = ['codec.onnx']"),
    (("parts", "codec", "file"), REMOVED, "parts.codec: missing ['file'], unknown []"),
    (("parts", "codec", "precision"), REMOVED, "parts.codec: missing ['precision'], unknown []"),
    (("parts", "codec", "precision"), [], "parts.codec.precision = [] must be one of fp32, fp16"),
    (("parts", "codec", "compute"), "int4", "parts.codec.compute = 'int4' must be one of float32, float16"),
    (("parts", "codec", "compute"), ["float32"], "parts.codec.compute = ['float32'] must be one of float32"),
    (("parts", "codec", "weight_bytes"), "x", "parts.codec.weight_bytes = 'x'"),
    (("parts", "codec", "weight_bytes"), -1, "parts.codec.weight_bytes = -1"),
    (("parts", "codec", "speed"), 3, "parts.codec: missing [], unknown ['speed']"),
    (("precision", "codec"), 32, "precision.codec = 32"),
    (("precision", "other"), None, "precision.other = None"),
    (("golden", "pcm"), "0.1", "golden.pcm = '0.1' is not a valid tolerance"),
    (("golden", "pcm"), True, "golden.pcm = True is not a valid tolerance"),
    (("golden", "more"), 0, "golden.more = 0 is not a valid tolerance"),
    (("calibration",), {"source": None, "prompts": 1}, "calibration: missing ['sounds'], unknown []"),
    (("calibration",), 7, "calibration = 7 is not an object"),
    (("post_codec",), {"kind": "resample"}, "post_codec: missing ['channels', 'delay', 'options', 'sample_rate']"),
    (("files", WEIGHTS, "size"), "many", f"files.{WEIGHTS}.size = 'many'"),
    (("files", WEIGHTS, "sha256"), 3, f"files.{WEIGHTS}.sha256 = 3"),
    (("files", WEIGHTS), None, f"files.{WEIGHTS} = None is not an object"),
]


@pytest.mark.parametrize(
    ("keys", "value", "says"), MALFORMED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_malformed_inner_field_is_named_when_the_manifest_is_parsed(
    packaged: Document, keys: tuple[str, ...], value: object, says: str
) -> None:
    with pytest.raises(BundleError) as caught:
        parse_manifest(Path("some") / MANIFEST, edited(packaged, keys, value))
    message = str(caught.value)
    assert message.startswith(f"{Path('some') / MANIFEST}: field missing or malformed (") and "\n" not in message
    assert says in message and message.endswith("); export the run again")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["parts"]["codec"].pop("precision"),
        lambda document: document["parts"].update({"codec.later": {**document["parts"]["codec"], "compute": []}}),
        lambda document: document["precision"].update(later=3),
        lambda document: document["files"][WEIGHTS].update(sha256=3),
    ],
    ids=["precision gone", "compute of an unused part", "a format that is no text", "hash"],
)
def test_a_bundle_with_a_malformed_inner_field_does_not_open(
    tiny_bundle: Path, tmp_path: Path, change: Callable[[Document], None]
) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: field missing or malformed \("):
        Bundle(changed_manifest(tiny_bundle, tmp_path / "bundle", change), verify="never")
