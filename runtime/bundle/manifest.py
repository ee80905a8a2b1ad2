"""``manifest.json``, parsed once: what the model is, which files it has, and what each part is.

Types only, and the parsing of the document into them; :mod:`bundle` opens the folder around it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BundleError
from ..files.reading import MOST_SIZE, first_line, shown
from ..vocabulary import Vocabulary
from .compiled import EngineFile
from .entries import Calibration, PartEntry, SamplingDefaults, check_names, check_sizes
from .feature_spec import FeatureSpec
from .knowledge import Knowledge
from .templates import Templates

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Section = TypeVar("_Section", bound="DataclassInstance")

#: Version of the schema that this code writes and reads.
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: size in bytes and SHA-256 in hexadecimal."""

    size: int
    sha256: str

    @classmethod
    def from_json(cls, where: str, values: object) -> BundleFile:
        """Parse the manifest's entry; ValueError names the field."""
        entry = check_names(where, values, ("size", "sha256"))
        if type(entry["size"]) is not int or entry["size"] < 0:
            raise ValueError(f"{where}.size = {shown(entry['size'])}")
        if not isinstance(entry["sha256"], str):
            raise ValueError(f"{where}.sha256 = {shown(entry['sha256'])}")
        return cls(**entry)


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
    """A stage after the codec, see ``post_codec``: what it is, and the sound that it returns.

    ``delay``: samples of the codec that it holds back at most, until the sound ends. ``options`` are its own.
    """

    kind: str
    sample_rate: int
    channels: int
    delay: int
    options: Mapping[str, Any]

    @classmethod
    def from_json(cls, values: object) -> PostCodecIdentity:
        """Parse the manifest's entry; ValueError names the field."""
        stage = cls(**check_names("post_codec", values, _names(cls)))
        least = {"sample_rate": 1, "channels": 1, "delay": 0}
        for name, low in least.items():
            if type(value := getattr(stage, name)) is not int or value < low:
                raise ValueError(f"post_codec.{name} = {shown(value)}")
        if not isinstance(stage.kind, str) or not isinstance(stage.options, Mapping):
            raise ValueError(f"post_codec.kind = {shown(stage.kind)}, options = {shown(stage.options)}")
        return stage


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``, checked."""

    model: ModelIdentity
    vocabulary: Vocabulary
    codec: CodecIdentity
    features: FeatureSpec
    sampling: SamplingDefaults
    #: By role.
    parts: Mapping[str, PartEntry]
    #: Format of "backbone", "heads", "encoder", "codec" and "prefill" ("none" without such a part).
    precision: Mapping[str, str]
    #: Agreement with fp32, measured at export: see ``export/quality/agreement.py``. Part -> figure -> number, or a
    #: list of one per stream. No type of its own: which figures there are depends on the export's version, a bundle
    #: that is being written has none, and those of a comparison (``quality.verdicts`` judges both) are never stored.
    quality: Mapping[str, Mapping[str, Any]]
    #: Tolerance of each output of the golden vector, for versions of ualm that take it from here.
    golden: Mapping[str, float]
    #: Where the weights came from, for people.
    source: Mapping[str, Any]
    files: Mapping[str, BundleFile]
    created_by: str
    #: The prompts of the reasoning modes, see ``templates``.
    templates: Templates = field(default_factory=Templates)
    #: The stage after the codec, if there is one.
    post_codec: PostCodecIdentity | None = None
    #: What the model knows, if its training run says so.
    knows: Knowledge | None = None

    def __repr__(self) -> str:
        sizes = f"{self.model.layers} layers of {self.model.hidden_size}"
        return f"Manifest({sizes}, {self.precision['backbone']}, {len(self.parts)} parts, {len(self.files)} files)"

    #: Parts that were compiled for GPUs.
    engines: tuple[EngineFile, ...] = ()
    #: What the body was calibrated with at export, if it was.
    calibration: Calibration | None = None

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
            "features": self.features.to_json(),
            "sampling": self.sampling.to_json(),
            "templates": self.templates.to_json(),
            "parts": {role: part.to_json() for role, part in self.parts.items()},
            "precision": dict(self.precision),
            "quality": dict(self.quality),
            "golden": dict(self.golden),
            "source": dict(self.source),
            "files": {name: vars(file) for name, file in self.files.items()},
        }
        if self.knows is not None:
            document["knows"] = self.knows.to_json()
        if self.calibration is not None:
            document["calibration"] = self.calibration.to_json()
        if self.engines:
            document["engines"] = [engine.to_json() for engine in self.engines]
        return document | {"digest": digest_of(document)}


def digest_of(document: Mapping[str, Any]) -> str:
    body = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_manifest(path: Path, document: Mapping[str, Any]) -> Manifest:
    """The manifest of a document of this version; :class:`BundleError` names the field that is missing or wrong."""
    try:
        files = {name: BundleFile.from_json(f"files.{name}", each) for name, each in _object(document, "files").items()}
        parts = {role: PartEntry.from_json(f"parts.{role}", each) for role, each in _object(document, "parts").items()}
        for role, part in parts.items():
            if part.file not in files:
                raise ValueError(f"parts.{role}.file = {shown(part.file)} is not among the files")
        if not isinstance(created_by := _value(document, "created_by"), str):
            raise ValueError(f"created_by = {shown(created_by)}")
        manifest = Manifest(
            model=_sizes(ModelIdentity, "model", document),
            vocabulary=_sizes(Vocabulary, "vocabulary", document),
            codec=_sizes(CodecIdentity, "codec", document),
            post_codec=_post_codec(_value(document, "post_codec")),
            features=FeatureSpec.from_json(_value(document, "features")),
            sampling=SamplingDefaults.from_json("sampling", _value(document, "sampling")),
            parts=MappingProxyType(parts),
            precision=MappingProxyType(_precision(_object(document, "precision"))),
            quality=MappingProxyType(_quality(_object(document, "quality"))),
            golden=MappingProxyType(_tolerances(_object(document, "golden"))),
            source=MappingProxyType(_metadata("source", _object(document, "source"))),
            files=MappingProxyType(files),
            created_by=created_by,
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
        steps = PurePosixPath(name).parts
        if not steps or name.startswith("/") or ".." in steps or any(mark in name for mark in "\\:\0"):
            raise BundleError(f"{path}: files: {name!r} leads outside the bundle; refused, export the run again")
    return manifest


def _value(document: Mapping[str, Any], name: str) -> Any:
    if name not in document:
        raise ValueError(f"{name} is missing")
    return document[name]


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = _value(document, name)
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} = {shown(value)} is not an object")
    return value


def _names(section: type[DataclassInstance]) -> list[str]:
    return [each.name for each in fields(section)]


def _sizes(section: type[_Section], name: str, document: Mapping[str, Any]) -> _Section:
    return section(**check_sizes(name, _value(document, name), _names(section)))


def _post_codec(values: object) -> PostCodecIdentity | None:
    return None if values is None else PostCodecIdentity.from_json(values)


def _templates(values: object) -> Templates:
    try:
        return Templates.from_json(values)
    except ValueError as error:
        raise ValueError(f"templates: {error}") from error


def _knows(values: object) -> Knowledge | None:
    try:
        return None if values is None else Knowledge.from_json(values)
    except ValueError as error:
        raise ValueError(f"knows: {error}") from error


def _calibration(values: object) -> Calibration | None:
    return None if values is None else Calibration.from_json("calibration", values)


def _precision(formats: Mapping[str, Any]) -> Mapping[str, str]:
    for part, stored in formats.items():
        if not isinstance(stored, str):
            raise ValueError(f"precision.{part} = {shown(stored)}")
    return formats


def _tolerances(golden: Mapping[str, Any]) -> Mapping[str, float]:
    for name, value in golden.items():
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise ValueError(f"golden.{name} = {shown(value)} is not a valid tolerance")
    return golden


def _quality(quality: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Checked that each part has figures: numbers, or a list of them, one per stream. NaN passes no gate."""
    for part, figures in quality.items():
        if not isinstance(figures, Mapping):
            raise ValueError(f"quality.{part} = {shown(figures)}")
        for name, value in figures.items():
            streams = name.endswith("_by_stream") and isinstance(value, list)
            if not all(map(_is_figure, value if streams else [value])):
                raise ValueError(f"quality.{part}.{name} = {shown(value)}")
    return quality


def _is_figure(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= MOST_SIZE)


def _metadata(name: str, value: Any) -> Any:
    """Checked that it consists of words and numbers, in objects and lists."""
    if isinstance(value, (Mapping, list)):
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in inner:
            _metadata(f"{name}.{key}", each)
    elif not (value is None or isinstance(value, (str, bool)) or _is_figure(value)):
        raise ValueError(f"{name} = {shown(value)}")
    return value
