"""Whether a bundle computes here what it computed at its export: its golden vector, recomputed and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..audio.features import LogMelFrontend
from ..bundle.bundle import GOLDEN, Bundle
from ..bundle.contents import GOLDEN_CONTEXT as GOLDEN_CONTEXT
from ..bundle.contents import GOLDEN_TENSORS
from ..engines.arithmetic import logits_tolerance, part_tolerance
from ..engines.protocol import Engine
from ..errors import BundleError, EngineError, UalmError
from ..sampling import AudioSampling, TextSampling
from ..sound.sound import Sound


@dataclass(frozen=True)
class Check:
    """One output of the golden vector.

    ``error``: largest difference relative to the largest expected value, None where nothing could be compared;
    ``problem`` then says why.
    """

    name: str
    error: float | None
    tolerance: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.tolerance


def check_golden(bundle: Bundle, engine: Engine) -> list[Check]:
    """Recompute the bundle's golden vector: logits of all heads and both branches, sound, features.

    The null branch was recorded with a dense prefill of zeros; the engine computes it in its own way. "pcm (streamed)"
    compares a longer sound that the engine decodes in pieces with the same sound decoded at once. Tolerances follow
    from what the engine computes in; those in the bundle's manifest are for an older ualm. ``engine`` must hold
    :data:`GOLDEN_CONTEXT` rows. A part that fails or gives NaN is a failed check, not an exception; an incomplete
    golden vector is a :class:`BundleError`.
    """
    golden = bundle.golden_vector()
    missing = [name for name in GOLDEN_TENSORS if name not in golden]
    if missing:
        raise BundleError(f"{bundle.folder / GOLDEN}: lacks {', '.join(missing)}; export the run again")
    tolerances = _tolerances(bundle, engine)
    checks: list[Check] = []

    def compare(name: str, compute: Callable[[], np.ndarray], branches: tuple[str, ...] = ()) -> None:
        names = [f"{name} ({branch})" for branch in branches] or [name]
        compare_with(lambda: golden[name], tolerances[name], names, compute, bool(branches))

    def compare_with(
        expect: Callable[[], np.ndarray],
        tolerance: float,
        names: list[str],
        compute: Callable[[], np.ndarray],
        branches: bool,
    ) -> None:
        try:
            expected, found = expect(), compute()
            if found.shape != expected.shape:
                raise EngineError(f"the shape is {list(found.shape)}, expected was {list(expected.shape)}")
        except UalmError as error:
            checks.extend(Check(each, None, tolerance, str(error)) for each in names)
            return
        scale = float(np.abs(expected).max()) or 1.0
        pairs = zip(names, found, expected, strict=True) if branches else [(names[0], found, expected)]
        for each, mine, theirs in pairs:
            worst = float(np.abs(mine.astype(np.float64) - theirs).max()) / scale
            finite = bool(np.isfinite(worst))
            checks.append(Check(each, worst if finite else None, tolerance, None if finite else "NaN or infinity"))

    def logits(modality: str) -> np.ndarray:
        sequence = engine.open_sequence()
        sequence.prefill([golden["rows"]])
        if modality == "modality":
            return sequence.modality_logits()[None]
        options = AudioSampling(guidance=2.0) if modality == "audio" else TextSampling(guidance=2.0)
        sequence.begin_segment(modality, options, mode="fixed", segment=0)  # type: ignore[arg-type]
        sequence.run_frames(1)
        return sequence.logits

    first = bundle.manifest.codec.first_frames

    def long_latents() -> np.ndarray:
        return engine.codes_to_latents(np.resize(golden["codes"], (2 * first + 9, golden["codes"].shape[1])))

    def streamed() -> np.ndarray:
        stream, pieces = engine.open_codec_stream(), np.split(long_latents(), [first, first + 1, 2 * first])
        return np.concatenate([stream.decode(piece, last=piece is pieces[-1]) for piece in pieces])

    def features() -> np.ndarray:
        spec = bundle.manifest.features
        heard = LogMelFrontend(spec, bundle.table("encoder.mel_filters")).prepare(
            Sound(golden["sound"], spec.sample_rate)
        )
        return engine.encode(heard.inputs)[: heard.rows]

    compare("logits.modality", partial(logits, "modality"))
    for modality in ("audio", "text"):
        compare(f"logits.{modality}", partial(logits, modality), ("conditional", "null"))
    compare("pcm", lambda: engine.decode_latents(engine.codes_to_latents(golden["codes"])))
    compare_with(
        lambda: engine.decode_latents(long_latents()), tolerances["pcm"], ["pcm (streamed)"], streamed, branches=False
    )
    compare("features", features)
    return checks


def _tolerances(bundle: Bundle, engine: Engine) -> dict[str, float]:
    """The tolerance of each output of the golden vector."""
    computes, model = engine.arithmetic, bundle.manifest.model
    body, heads, size = computes["body"], computes["heads"], (model.layers, model.hidden_size)
    spoken = logits_tolerance(body, heads, *size)
    return {
        "logits.modality": logits_tolerance(body, heads, *size, few=True),
        "logits.audio": spoken,
        "logits.text": spoken,
        "pcm": part_tolerance(computes["codec"]),
        "features": part_tolerance(computes["encoder"]),
    }
