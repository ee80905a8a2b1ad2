"""The prompts of the reasoning modes: data of the bundle, since each training has its own wording.

UALM's own templates are unpublished. An export takes those of the training run from ``templates.json`` beside its
``train.yaml``; fields that are left out there, or the whole file, take the defaults below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from ..files.reading import shown

_PLACE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class _Section:
    """Texts with places such as ``{prompt}`` that are filled in."""

    #: Places that a field's text may have.
    places: ClassVar[Mapping[str, frozenset[str]]] = {}
    #: Fields that may be None.
    optional: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_json(cls, name: str, values: object) -> Any:
        """The section called ``name``; ValueError names a field that is unknown or wrong."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{name} = {shown(values)} is not an object")
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(values) - known, key=str):
            raise ValueError(f"{name}.{unknown[0]}: unknown; known: {', '.join(sorted(known))}")
        return cls(**{key: _checked(cls, name, key, value) for key, value in values.items()})


def _checked(section: type[_Section], name: str, key: str, value: object) -> object:
    default = next(each.default for each in fields(section) if each.name == key)
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) and each.strip() for each in value):
            raise ValueError(f"{name}.{key} = {shown(value)} is not a list of texts")
        return tuple(value)
    if value is None and key in section.optional:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}.{key} = {shown(value)} is not a text")
    allowed = section.places.get(key, frozenset())
    if unknown := [place for place in _PLACE.findall(value) if place not in allowed]:
        known = ", ".join(f"{{{place}}}" for place in sorted(allowed)) or "none"
        raise ValueError(f"{name}.{key}: {{{unknown[0]}}} is not a known placeholder; known here: {known}")
    return value


@dataclass(frozen=True)
class EnrichTemplate(_Section):
    """``system``: a system message before it. ``request``: what the user says, answered with a caption. ``play``: what
    the user says next to a model whose turn ended with the caption; the answer is the sound."""

    places: ClassVar[Mapping[str, frozenset[str]]] = {
        "request": frozenset({"prompt"}),
        "play": frozenset({"prompt", "caption"}),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"system"})
    request: str = "{prompt}"
    play: str = "{caption}"
    system: str | None = None


@dataclass(frozen=True)
class DialogueTemplate(_Section):
    """``system``: a system message before it. ``request``: how each of the user's turns is phrased."""

    places: ClassVar[Mapping[str, frozenset[str]]] = {"request": frozenset({"prompt"})}
    optional: ClassVar[frozenset[str]] = frozenset({"system"})
    request: str = "{prompt}"
    system: str | None = None


@dataclass(frozen=True)
class ReflectTemplate(_Section):
    """``check``: what the user says after the sound, in the turn that lets the model hear it. ``agrees``, ``differs``:
    words that show the model's verdict in its answer, in any case. ``repair``: what the user says next if the model
    finds a difference and ended its turn without another sound; None: it is not asked."""

    places: ClassVar[Mapping[str, frozenset[str]]] = {
        "check": frozenset({"prompt", "caption"}),
        "repair": frozenset({"prompt", "caption", "review"}),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"repair"})
    check: str = (
        'Listen to it. Say what you hear, then "it matches the request" or "it differs", and why: the request was '
        '"{prompt}".'
    )
    agrees: tuple[str, ...] = ("it matches",)
    differs: tuple[str, ...] = ("it differs", "does not match", "doesn't match")
    repair: str | None = "{caption}"


@dataclass(frozen=True)
class Templates:
    """The manifest's field ``templates``: a section for each mode; "reflect" begins as "enrich" does."""

    enrich: EnrichTemplate = field(default_factory=EnrichTemplate)
    dialogue: DialogueTemplate = field(default_factory=DialogueTemplate)
    reflect: ReflectTemplate = field(default_factory=ReflectTemplate)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        sections = asdict(self)
        return {name: {key: _plain(value) for key, value in values.items()} for name, values in sections.items()}

    @classmethod
    def from_json(cls, values: object) -> Templates:
        """The inverse of :meth:`to_json`; what is missing takes its default. ValueError names what is wrong."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{shown(values)} is not an object")
        kinds: dict[str, type[_Section]] = {
            "enrich": EnrichTemplate,
            "dialogue": DialogueTemplate,
            "reflect": ReflectTemplate,
        }
        if unknown := sorted(set(values) - set(kinds), key=str):
            raise ValueError(f"{unknown[0]}: unknown; known: {', '.join(kinds)}")
        return cls(**{name: kinds[name].from_json(name, section) for name, section in values.items()})


def filled(template: str, **words: str) -> str:
    """``template`` with its places filled in; braces in the words are left as they are."""
    return _PLACE.sub(lambda match: words[match[1]], template)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
