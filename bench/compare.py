"""Compares two bundles of one model: how well the second agrees with the first, sizes on disk, and speed.

Needs only the runtime's dependencies. The first bundle answers the built-in prompts of an export's agreement on the CPU
engine; the second is fed the very rows that it drew, and both sets of logits are compared where a token was drawn.
Speed is measured as by ``ualm bench decode``, in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..export.quality.agreement import (
    HeldSegment,
    cosine,
    default_sampling,
    held_codes,
    hold_rows,
    probe_sound,
    signal_to_noise,
    tally,
)
from ..runtime.audio.features import LogMelFrontend
from ..runtime.bundle.bundle import TOKENIZER, Bundle
from ..runtime.bundle.quality import Verdict, ungated, verdicts
from ..runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ..runtime.errors import InputError
from ..runtime.files.reading import shown
from ..runtime.process.cores import BY_OPTION, check_threads
from .harness.blocks import Progress
from .harness.measure import run_scenario
from .harness.subjects import Request, check_count
from .report.schema import Comparison
from .scenarios.decode import Decode

#: Most rows of a conversation of the prompts.
CONTEXT = 1024
#: The engine for both: only this one can be fed given rows.
ENGINE = "onnxruntime"


@dataclass(frozen=True)
class Speed:
    """Milliseconds per frame (medians), and how the blocks compare: ``ratio`` is how many times as fast B is, ``low``
    and ``high`` its interval, None if there were too few pairs."""

    a_ms: float
    b_ms: float
    context: int
    ratio: float
    low: float | None
    high: float | None
    p: float
    pairs: int
    verdict: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class Compared:
    """``quality``: as in a manifest, of B against A. ``sizes``: role -> bytes on disk of its graph and of the weights
    that it reads, in A and in B (0 if there is no such part); weights that parts share count for each of them.
    ``total``: all files. ``speed``: None if not requested."""

    a: Bundle
    b: Bundle
    quality: Mapping[str, Any]
    verdicts: Sequence[Verdict]
    sizes: Mapping[str, tuple[int, int]]
    total: tuple[int, int]
    speed: Speed | None

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: _about(bundle) for name, bundle in (("a", self.a), ("b", self.b))},
            "quality": dict(self.quality),
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "sizes": {role: {"a": a, "b": b} for role, (a, b) in self.sizes.items()},
            "bytes": dict(zip("ab", self.total, strict=True)),
            "speed": None if self.speed is None else self.speed.to_json(),
        }


def compare_bundles(
    first: Path,
    second: Path,
    *,
    threads: int | None = None,
    repeat: int | None = None,
    context: int = 256,
    speed: bool = True,
    quiet: bool = False,
    progress: Progress = lambda text: None,
) -> Compared:
    """Compare the bundle ``second`` with ``first``. ``repeat``, ``context``: frames measured, and rows held meanwhile.
    ``quiet``: print nothing about engines on standard error.

    Raises :class:`InputError`, naming the difference, for bundles that cannot be compared, and whatever opening a
    bundle raises.
    """
    check_threads(threads, *BY_OPTION)
    check_count("--repeat", repeat)
    a, b = Bundle(first), Bundle(second)
    check_comparable(a, b)
    if (why := ungated(b.manifest.precision)) is not None:
        raise InputError(f"{second}: {why}; export the run again in one of these")
    decode = Decode((context,))
    if speed:
        for bundle in (a, b):
            decode.settings(bundle)  # refuse first what cannot be measured
    progress(f"agreement: {first}")
    held, features, codes, samples = _reference(a, threads)
    progress(f"agreement: {second}")
    quality = _agreement(b, threads, held, features, codes, samples)
    judged = verdicts(quality, b.manifest.precision, b.manifest.model.layers)
    measured = None
    if speed:
        # B first: the ratio of a comparison is how many times as fast the first one is
        request = Request(second, ENGINE, threads, repeat, versus=str(first), quiet=quiet)
        measured = _speed(decode, request, context, progress)
    return Compared(a, b, quality, judged, _sizes(a, b), (_total(a), _total(b)), measured)


def check_comparable(a: Bundle, b: Bundle) -> None:
    """Raise :class:`InputError` if two bundles are not two forms of one model, so that figures would mean nothing."""
    mine, other = a.manifest, b.manifest
    sides: dict[str, tuple[Any, Any]] = {
        "vocabulary": (mine.vocabulary.to_json(), other.vocabulary.to_json()),
        "tokenizer": (mine.files[TOKENIZER].sha256, other.files[TOKENIZER].sha256),
        "templates": (mine.templates.to_json(), other.templates.to_json()),
        "model": (vars(mine.model), vars(other.model)),
        "codec": (vars(mine.codec), vars(other.codec)),
        "features": (mine.features.to_json(), other.features.to_json()),
    }
    for what, (ours, theirs) in sides.items():
        if ours == theirs:
            continue
        where = ""
        if isinstance(ours, Mapping):
            name = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
            where = f" ({name} = {shown(ours.get(name))} and {shown(theirs.get(name))})"
        raise InputError(
            f"{a.folder} and {b.folder}: their {what} differ{'' if what.endswith('s') else 's'}{where}, so they are "
            "not two forms of one model; give two exports of runs that differ only in weights or precision"
        )


def _reference(bundle: Bundle, threads: int | None) -> tuple[list[HeldSegment], np.ndarray, np.ndarray, np.ndarray]:
    """A's answers to the prompts, its features of the probe (float32 [n, H]), and its codes with the samples they
    decode to."""
    engine = OnnxRuntimeEngine(bundle, threads=threads, max_context=_context(bundle))
    try:
        held = hold_rows(engine, bundle)
        engine.unload("backbone", "head")
        codes = held_codes(held, bundle.manifest.vocabulary)
        return held, _features(engine), codes, engine.decode_latents(engine.codes_to_latents(codes))
    finally:
        engine.close()


def _agreement(
    bundle: Bundle,
    threads: int | None,
    held: Sequence[HeldSegment],
    features: np.ndarray,
    codes: np.ndarray,
    samples: np.ndarray,
) -> dict[str, Any]:
    """B's results for the same rows, sound and codes, compared with A's."""
    engine = OnnxRuntimeEngine(bundle, threads=threads, max_context=_context(bundle))
    try:
        sequence = engine.open_sequence()
        led = []
        for segment in held:
            sequence.truncate(0)
            sequence.prefill(segment.prompt)
            sampling = default_sampling(segment.modality, len(segment.rows))
            sequence.begin_segment(segment.modality, sampling, mode="fixed", segment=0)
            led.append(sequence.follow(segment.rows))
        found = tally(held, [segment.logits for segment in held], led, bundle.manifest.vocabulary)
        engine.unload("backbone", "head")
        heard = _features(engine)
        decoded = engine.decode_latents(engine.codes_to_latents(codes))
    finally:
        engine.close()
    return {
        **{modality: agreement.to_json() for modality, agreement in found.items()},
        "features": cosine(features, heard),
        "pcm": {"snr_db": signal_to_noise(samples, decoded)},
    }


def _features(engine: OnnxRuntimeEngine) -> np.ndarray:
    spec = engine.bundle.manifest.features
    heard = LogMelFrontend(spec, engine.bundle.table("encoder.mel_filters")).prepare(probe_sound(spec))
    return engine.encode(heard.inputs)[: heard.rows]


def _speed(decode: Decode, request: Request, context: int, progress: Progress) -> Speed:
    report = run_scenario(decode, request, progress)
    found: Comparison = report.comparisons[0]
    b, a = (measured.summary.p50 for measured in report.measurements)
    return Speed(
        a_ms=a,
        b_ms=b,
        context=context,
        ratio=found.speedup,
        low=found.low,
        high=found.high,
        p=found.p,
        pairs=found.pairs,
        verdict=found.verdict,
        notes=report.notes,
    )


def _context(bundle: Bundle) -> int:
    return min(CONTEXT, bundle.manifest.model.max_positions)


def _sizes(a: Bundle, b: Bundle) -> dict[str, tuple[int, int]]:
    roles = dict.fromkeys((*a.manifest.parts, *b.manifest.parts))
    return {role: (_size(a, role), _size(b, role)) for role in roles}


def _size(bundle: Bundle, role: str) -> int:
    part = bundle.manifest.parts.get(role)
    return 0 if part is None else bundle.manifest.files[part.file].size + (part.weight_bytes or 0)


def _total(bundle: Bundle) -> int:
    return sum(file.size for file in bundle.manifest.files.values())


def _about(bundle: Bundle) -> dict[str, Any]:
    return {
        "bundle": str(bundle.folder),
        "digest": bundle.digest,
        "precision": dict(bundle.manifest.precision),
    }
