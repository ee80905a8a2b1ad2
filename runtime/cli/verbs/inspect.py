"""``ualm inspect``: what a bundle is, read from its manifest and its golden vector without loading an engine."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ...bundle.bundle import Bundle
from ...bundle.manifest import SCHEMA_VERSION
from ...bundle.quality import Verdict, verdicts
from ...conversation.resources import DEFAULT_CONTEXT
from ...shown import in_bytes
from ...terminal.report import report
from ...terminal.tables import table, terminal_columns
from ...vocabulary import BOS, EOS, EOT, MODALITIES, ROLES, SPECIALS, STREAMS
from ..options import JsonOption, QuietOption, named_or_packaged

#: Width of the words that a model knows, and of the columns before them; a narrow terminal has less room.
_WORDS_WIDTH, _BEFORE_WORDS = 100, 14


def inspect(
    bundle: Annotated[
        Path | None,
        typer.Argument(envvar="UALM_BUNDLE", help="Folder made by `ualm export`; by default ualm's own model."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hashes of all files too.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle is: sizes, parts, files, defaults, where it came from. Loads no engine."""
    opened = Bundle(named_or_packaged(bundle, quiet=quiet), verify="always" if verify else "never")
    about = describe(opened)
    about["verified"] = verify
    report(as_json, about, _plain(about))


def describe(bundle: Bundle) -> dict[str, Any]:
    """Everything that the manifest says and what follows from it, as JSON values."""
    manifest = bundle.manifest
    model, vocabulary, codec = manifest.model, manifest.vocabulary, manifest.codec
    # keys and values, of the conditional and the null branch
    row = 2 * 2 * model.layers * model.kv_heads * model.head_dim * np.dtype(np.float32).itemsize
    context = min(DEFAULT_CONTEXT, model.max_positions)
    audio_size = vocabulary.audio_size
    parts = {role: {**part.to_json(), "size": manifest.files[part.file].size} for role, part in manifest.parts.items()}
    return {
        "bundle": str(bundle.folder),
        "digest": bundle.digest,
        "version": SCHEMA_VERSION,
        "created_by": manifest.created_by,
        "source": dict(manifest.source),
        "model": vars(model),
        "vocabulary": {
            "size": vocabulary.size,
            "special": [0, SPECIALS],
            "text": [vocabulary.text_base, vocabulary.text_base + vocabulary.text_size],
            "audio": [vocabulary.audio_base, vocabulary.audio_base + audio_size],
            "streams": STREAMS,
            "codebook_size": vocabulary.codebook_size,
        },
        "knows": None if manifest.knows is None else manifest.knows.to_json(),
        "post_codec": None if manifest.post_codec is None else vars(manifest.post_codec),
        "codec": vars(codec) | {"frames_per_second": codec.sample_rate / codec.hop_length},
        "features": manifest.features.to_json(),
        "parts": parts,
        "precision": dict(manifest.precision),
        "quality": dict(manifest.quality),
        "verdicts": [verdict.to_json() for verdict in _verdicts(bundle)],
        "calibration": None if manifest.calibration is None else manifest.calibration.to_json(),
        "engines": [engine.to_json() for engine in manifest.engines],
        "files": {name: vars(file) for name, file in manifest.files.items()},
        "bytes": sum(file.size for file in manifest.files.values()),
        "sampling": manifest.sampling.to_json(),
        "golden": {
            "tensors": {
                name: {"dtype": str(values.dtype), "shape": list(values.shape)}
                for name, values in bundle.golden_vector().items()
            },
            "tolerances": dict(manifest.golden),
        },
        "templates": {
            "conversation": "bos, then per message: role, modality, content, then eot before the same role, else eos",
            "ids": {"bos": BOS, "eos": EOS, "eot": EOT, **ROLES, **MODALITIES},
            **manifest.templates.to_json(),
        },
        "cache": {"bytes_per_row": row, "rows": context, "bytes": row * context},
    }


def _plain(about: Mapping[str, Any]) -> str:
    vocabulary, codec, cache, source = about["vocabulary"], about["codec"], about["cache"], about["source"]
    verified = "verified" if about["verified"] else "not verified (--verify reads all files and checks them)"
    identity = [
        ("digest", about["digest"]),
        ("schema version", about["version"]),
        ("created by", about["created_by"]),
        ("hashes", verified),
    ]
    spans = [
        (name, f"{first} to {end - 1}") for name in ("special", "text", "audio") for first, end in [vocabulary[name]]
    ]
    rates = [
        ("sample rate", f"{codec['sample_rate']} Hz"),
        ("frames", f"{codec['frames_per_second']:g} a second, {codec['hop_length']} samples each"),
        ("codebooks", f"{vocabulary['streams']} of {vocabulary['codebook_size']}"),
        ("latent size", codec["latent_size"]),
        ("frames around", f"{codec['context_left']} before, {codec['context_right']} after"),
        ("look-ahead", f"{codec['lookahead']} samples"),
        ("stage after it", _stage(about["post_codec"])),
    ]
    parts = [(role, part["file"], part["precision"], in_bytes(part["size"])) for role, part in about["parts"].items()]
    files = [(name, in_bytes(file["size"]), file["sha256"][:12]) for name, file in about["files"].items()]
    tensors = [
        (name, tensor["dtype"], "x".join(map(str, tensor["shape"])))
        for name, tensor in about["golden"]["tensors"].items()
    ]
    tolerances = [
        ("tolerance", name, f"{value:g} of the largest value") for name, value in about["golden"]["tolerances"].items()
    ]
    memory = [
        ("a row", f"{cache['bytes_per_row']} bytes"),
        (f"{cache['rows']} rows", in_bytes(cache["bytes"]).strip()),
    ]
    sections = [
        table(about["bundle"], identity),
        table("source", _flat(source)),
        *([] if about["knows"] is None else [table("knows", _knows(about["knows"]))]),
        table("templates", _templates(about)),
        table("model", _flat(about["model"])),
        table(f"vocabulary, {vocabulary['size']} ids", spans),
        table("codec", rates),
        table("encoder and its features", _flat(about["features"])),
        table("parts (their weights are in weights.safetensors)", parts),
        table("agreement with fp32, measured at export", _agreement(about)),
        table("calibration", _flat(about["calibration"] or {"": "none"})),
        table("engines for GPUs", _engines(about)),
        table(f"files, {in_bytes(about['bytes']).strip()} (size, start of SHA-256)", files),
        *(table(f"sampling of {name}", _flat(values)) for name, values in about["sampling"].items()),
        table("golden vector", [*tensors, *tolerances]),
        table("cache of a conversation (float32, both branches)", memory),
    ]
    return "\n\n".join(sections)


def _flat(values: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Rows of a mapping; an inner mapping adds its own rows."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}.{inner}", found) for inner, found in _flat(value)]
        else:
            rows.append((name.replace("_", " "), "none" if value is None else value))
    return rows


def _templates(about: Mapping[str, Any]) -> list[tuple[str, object]]:
    values = about["templates"] | {"ids": _ids(about)}
    rows = _flat(values)
    return [(name, " | ".join(value) if isinstance(value, list) else value) for name, value in rows]


def _knows(knows: Mapping[str, Any]) -> list[tuple[str, object]]:
    columns = terminal_columns() or _WORDS_WIDTH + _BEFORE_WORDS
    lines = textwrap.wrap(", ".join(knows["words"]), max(min(_WORDS_WIDTH, columns - _BEFORE_WORDS), 1))
    return [("about", knows["about"]), (f"{len(knows['words'])} words", lines[0]), *(("", line) for line in lines[1:])]


def _verdicts(bundle: Bundle) -> Sequence[Verdict]:
    """The figures beside their gates; none for a bundle whose formats have no gates in this version."""
    manifest = bundle.manifest
    try:
        return verdicts(manifest.quality, manifest.precision, manifest.model.layers)
    except (KeyError, TypeError):
        return ()


def _agreement(about: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        Verdict(*(each[name] for name in ("part", "figure", "value", "gate", "at_least"))).row()
        for each in about["verdicts"]
    ]
    return rows or [("not known",)]


def _engines(about: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        (each["role"], each["engine"], each["library_version"], ",".join(f"sm{sm}" for sm in each["sms"]), each["file"])
        for each in about["engines"]
    ]
    return rows or [("none; the CPU engine takes the parts as they are",)]


def _stage(stage: Mapping[str, Any] | None) -> str:
    if stage is None:
        return "none"
    sound = f"{stage['sample_rate']} Hz, {stage['channels']} channels, {stage['delay']} samples behind"
    return f"{stage['kind']} {json.dumps(stage['options'])}: {sound}"


def _ids(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in about["templates"]["ids"].items())
