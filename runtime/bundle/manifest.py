"""``manifest.json``, parsed once: what the model is, which files it has, and what each part is.

Types only, and the parsing of the document into them; :mod:`bundle` opens the folder around it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from ..errors import BundleError
from ..files.reading import MOST_SIZE, first_line, shown
from ..sampling import AudioSampling, TextSampling, check_options
from ..vocabulary import Vocabulary
from .compiled import EngineFile
from .knowledge import Knowledge
from .templates import Templates

#: Version of the schema that this code writes and reads.
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: size in bytes and SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ModelIdentity:
    """Sizes of the transformer body."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int


@dataclass(frozen=True)
class CodecIdentity:
    """Sizes of the codec: Hz, samples a frame, width of a latent frame, frames needed on each side of a frame.

    ``lookahead``: while a sound goes on, this many samples at the end of its frames are not certain yet.
    """

    sample_rate: int
    hop_length: int
    latent_size: int
    context_left: int
    context_right: int
    lookahead: int

    @property
    def first_frames(self) -> int:
        """The fewest frames that make a sample certain."""
        return self.lookahead // self.hop_length + 1


@dataclass(frozen=True)
class PostCodecIdentity:
    """A stage behind the codec, see ``post_codec``: what it is, and the sound that it returns.

    ``delay``: samples of the codec that it holds back at most, until the sound ends. ``options`` are its own.
    """

    kind: str
    sample_rate: int
    channels: int
    delay: int
    options: Mapping[str, Any]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> PostCodecIdentity:
        """Parse the manifest's entry; ValueError, KeyError or TypeError if it is invalid."""
        stage = cls(**entry)
        least = {"sample_rate": 1, "channels": 1, "delay": 0}
        for name, low in least.items():
            if type(value := getattr(stage, name)) is not int or value < low:
                raise ValueError(f"post_codec.{name} = {value!r}")
        if not isinstance(stage.kind, str) or not isinstance(stage.options, Mapping):
            raise ValueError(f"post_codec.kind = {stage.kind!r}, options = {stage.options!r}")
        return stage


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``, checked."""

    model: ModelIdentity
    vocabulary: Vocabulary
    codec: CodecIdentity
    #: Settings of the sound features, see ``feature_spec.FeatureSpec``.
    features: Mapping[str, Any]
    #: Sampling defaults per modality, see ``sampling``.
    sampling: Mapping[str, Mapping[str, Any]]
    #: Role of each ONNX part -> {"file", "precision", "compute" (what matrices are multiplied in), "weight_bytes" (of
    #: the blob, read by one run)}.
    parts: Mapping[str, Mapping[str, Any]]
    #: Format of "backbone", "heads", "encoder" and "codec".
    precision: Mapping[str, str]
    #: Agreement with fp32, measured at export: see ``export/quality/agreement.py``.
    quality: Mapping[str, Any]
    #: Tolerances of the golden vector, see ``golden.safetensors``.
    golden: Mapping[str, Any]
    #: Where the weights came from, for people.
    source: Mapping[str, Any]
    files: Mapping[str, BundleFile]
    created_by: str
    #: The prompts of the reasoning modes, see ``templates``.
    templates: Templates = field(default_factory=Templates)
    #: The stage behind the codec, if there is one.
    post_codec: PostCodecIdentity | None = None
    #: What the model knows, if its training run says so.
    knows: Knowledge | None = None

    def __repr__(self) -> str:
        sizes = f"{self.model.layers} layers of {self.model.hidden_size}"
        return f"Manifest({sizes}, {self.precision['backbone']}, {len(self.parts)} parts, {len(self.files)} files)"

    #: Parts that were compiled for GPUs.
    engines: tuple[EngineFile, ...] = ()
    #: What the body was calibrated with at export, if it was: {"source" (a name, None for the export's own prompts),
    #: "prompts", "sounds"}.
    calibration: Mapping[str, Any] | None = None

    @property
    def sound_rate(self) -> int:
        """Hz of the sounds that the model makes."""
        return self.codec.sample_rate if self.post_codec is None else self.post_codec.sample_rate

    @property
    def sound_channels(self) -> int:
        """Channels of the sounds that the model makes."""
        return 1 if self.post_codec is None else self.post_codec.channels

    def to_json(self) -> dict[str, Any]:
        """The document as written, with its own digest."""
        document = {
            "format": "ualm-bundle",
            "version": SCHEMA_VERSION,
            "created_by": self.created_by,
            "model": vars(self.model),
            "vocabulary": self.vocabulary.to_json(),
            "codec": vars(self.codec),
            "post_codec": None if self.post_codec is None else vars(self.post_codec),
            "features": dict(self.features),
            "sampling": {name: dict(values) for name, values in self.sampling.items()},
            "templates": self.templates.to_json(),
            "parts": {name: dict(values) for name, values in self.parts.items()},
            "precision": dict(self.precision),
            "quality": dict(self.quality),
            "golden": dict(self.golden),
            "source": dict(self.source),
            "files": {name: vars(file) for name, file in self.files.items()},
        }
        if self.knows is not None:
            document["knows"] = self.knows.to_json()
        if self.calibration is not None:
            document["calibration"] = dict(self.calibration)
        if self.engines:
            document["engines"] = [engine.to_json() for engine in self.engines]
        return document | {"digest": digest_of(document)}


def digest_of(document: Mapping[str, Any]) -> str:
    body = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_manifest(path: Path, document: Mapping[str, Any]) -> Manifest:
    try:
        for section in ("model", "vocabulary", "codec"):
            for name, value in document[section].items():
                if type(value) is not int or value < 0:
                    raise ValueError(f"{section}.{name} = {value!r}")
        defaults = document["sampling"]
        check_options(
            "fixed", AudioSampling.from_mapping(defaults["audio"]), TextSampling.from_mapping(defaults["text"])
        )
        for name in ("features", "sampling", "parts", "precision", "quality", "golden", "source", "files"):
            if not isinstance(document[name], dict):
                raise ValueError(f"{name} = {shown(document[name])}")
        for role, part in document["parts"].items():
            if part["file"] not in document["files"]:
                raise ValueError(f"parts.{role}.file = {part['file']!r} is not among the files")
        if not isinstance(document["created_by"], str):
            raise ValueError(f"created_by = {shown(document['created_by'])}")
        _check_quality(document["quality"])
        _check_told("source", document["source"])
        files = {name: BundleFile(**values) for name, values in document["files"].items()}
        manifest = Manifest(
            model=ModelIdentity(**document["model"]),
            vocabulary=Vocabulary.from_json(document["vocabulary"]),
            codec=CodecIdentity(**document["codec"]),
            post_codec=None if (stage := document["post_codec"]) is None else PostCodecIdentity.from_json(stage),
            features=MappingProxyType(document["features"]),
            sampling=MappingProxyType(document["sampling"]),
            parts=MappingProxyType(document["parts"]),
            precision=MappingProxyType(document["precision"]),
            quality=MappingProxyType(document["quality"]),
            golden=MappingProxyType(document["golden"]),
            source=MappingProxyType(document["source"]),
            files=MappingProxyType(files),
            created_by=document["created_by"],
            templates=_templates(document.get("templates", {})),  # older bundles have the defaults
            knows=_knows(document.get("knows")),
            engines=tuple(EngineFile.from_json(entry) for entry in document.get("engines", ())),
            calibration=_calibration(document.get("calibration")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{path}: field missing or malformed ({first_line(error)}); export the run again") from error
    for engine in manifest.engines:
        if engine.file not in files:
            raise BundleError(f"{path}: engines: {engine.file!r} is not among the files; export the run again")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or any(mark in name for mark in "\\:\0"):
            raise BundleError(f"{path}: files: {name!r} leads outside the bundle; refused, export the run again")
    return manifest


def _templates(values: object) -> Templates:
    try:
        return Templates.from_json(values)
    except ValueError as error:
        raise ValueError(f"templates: {error}") from error


def _calibration(values: object) -> Mapping[str, Any] | None:
    if values is None:
        return None
    if not isinstance(values, Mapping) or not {"source", "prompts", "sounds"} <= set(values):
        raise ValueError(f"calibration = {shown(values)}")
    if not (values["source"] is None or isinstance(values["source"], str)):
        raise ValueError(f"calibration.source = {shown(values['source'])}")
    for name in ("prompts", "sounds"):
        if type(values[name]) is not int or not 0 <= values[name] <= MOST_SIZE:
            raise ValueError(f"calibration.{name} = {shown(values[name])}")
    return MappingProxyType(values)


def _check_quality(quality: Mapping[str, Any]) -> None:
    """ValueError unless each part has figures: numbers, or a list of them, one per stream. NaN passes no gate."""
    for part, figures in quality.items():
        if not isinstance(figures, Mapping):
            raise ValueError(f"quality.{part} = {shown(figures)}")
        for name, value in figures.items():
            streams = name.endswith("_by_stream") and isinstance(value, list)
            if not all(map(_is_figure, value if streams else [value])):
                raise ValueError(f"quality.{part}.{name} = {shown(value)}")


def _is_figure(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= MOST_SIZE)


def _check_told(name: str, value: object) -> None:
    """ValueError unless it consists of words and numbers for people, in objects and lists."""
    if isinstance(value, (Mapping, list)):
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in inner:
            _check_told(f"{name}.{key}", each)
    elif not (value is None or isinstance(value, (str, bool)) or _is_figure(value)):
        raise ValueError(f"{name} = {shown(value)}")


def _knows(values: object) -> Knowledge | None:
    try:
        return None if values is None else Knowledge.from_json(values)
    except ValueError as error:
        raise ValueError(f"knows: {error}") from error
