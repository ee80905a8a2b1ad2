"""How well a bundle agrees with fp32: the figures that its export measured, each beside the gate of its format.

The figures are in the manifest (``quality``); the gates are those of docs/precision.md, between what sound exports of a
trained model reach and what damaged ones do (``ualm.bench.evidence.damage`` measures both).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Layers of the trained model that the gates come from.
MEASURED_LAYERS = 6


@dataclass(frozen=True)
class Gate:
    """What a format must reach.

    ``top1``: share of draws whose likeliest token is fp32's. ``audio_kl``, ``text_kl``: mean divergence of the guided
    distribution from fp32's, in nats, of a body of :data:`MEASURED_LAYERS`.
    """

    top1: float
    audio_kl: float
    text_kl: float

    def kl(self, modality: str, layers: int) -> float:
        """How far a body of ``layers`` may diverge: each layer adds its own rounding, and divergence grows with the
        square of their sum."""
        base = self.audio_kl if modality == "audio" else self.text_kl
        return base * max(1.0, layers / MEASURED_LAYERS)


#: By the backbone's format.
GATES = {
    "fp32": Gate(0.999, 1e-7, 1e-7),
    "bf16": Gate(0.97, 1e-5, 3e-5),
    "fp16": Gate(0.98, 2e-7, 2e-7),
    "fp8": Gate(0.94, 2e-3, 0.025),
    "int8": Gate(0.96, 2e-4, 1e-3),
    "int4": Gate(0.92, 3e-3, 0.03),
}
#: Least cosine of a row of sound features with fp32's, by the encoder's format; least signal-to-noise ratio of samples
#: in dB, by the codec's.
COSINE_GATES = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.99}
SNR_GATES = {"fp32": 80.0, "fp16": 35.0}

_TITLES = {
    ("audio", "top1"): "sound: same likeliest token",
    ("audio", "kl"): "sound: KL in nats",
    ("text", "top1"): "text: same likeliest token",
    ("text", "kl"): "text: KL in nats",
    ("features", "cosine_least"): "hearing: least cosine",
    ("pcm", "snr_db"): "samples: SNR in dB",
}


@dataclass(frozen=True)
class Verdict:
    """One figure of the agreement (a part of ``quality``, and a value of it) beside its gate.

    ``at_least``: whether the gate is a lower bound.
    """

    part: str
    figure: str
    value: float
    gate: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the gate is met; NaN meets none."""
        return self.value >= self.gate if self.at_least else self.value <= self.gate

    @property
    def clause(self) -> str:
        """How the gate is missed, for a message."""
        return {
            "top1": f"{self.part} top-1 {self.value:.3f} < {self.gate}",
            "kl": f"{self.part} KL {self.value:.3g} > {self.gate:.3g}",
            "cosine_least": f"feature cosine {self.value:.4f} < {self.gate}",
            "snr_db": f"sample SNR {self.value:.1f} dB < {self.gate:g} dB",
        }[self.figure]

    def row(self) -> tuple[str, str, str, str]:
        """For a table: what it is, the value, its gate, the verdict."""
        bound = f"{'at least' if self.at_least else 'at most'} {self.gate:.5g}"
        return _TITLES[self.part, self.figure], f"{self.value:.6g}", bound, "met" if self.met else "MISSED"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "met": self.met}


def divergence_verdicts(
    quality: Mapping[str, Mapping[str, Any]], backbone: str, layers: int = MEASURED_LAYERS
) -> Iterator[Verdict]:
    """Of the two modalities: "top1" and "kl" beside the gates of the backbone's format."""
    gate = GATES[backbone]
    for modality in ("audio", "text"):
        measured = quality[modality]
        yield Verdict(modality, "top1", measured["top1"], gate.top1, True)
        yield Verdict(modality, "kl", measured["kl"], gate.kl(modality, layers), False)


def verdicts(
    quality: Mapping[str, Mapping[str, Any]], precision: Mapping[str, str], layers: int = MEASURED_LAYERS
) -> Sequence[Verdict]:
    """Every figure that has a gate. ``layers``: of the body."""
    return [
        *divergence_verdicts(quality, precision["backbone"], layers),
        Verdict(
            "features", "cosine_least", quality["features"]["cosine_least"], COSINE_GATES[precision["encoder"]], True
        ),
        Verdict("pcm", "snr_db", quality["pcm"]["snr_db"], SNR_GATES[precision["codec"]], True),
    ]


def ungated(precision: Mapping[str, str]) -> str | None:
    """The first of a bundle's formats that has no gate, as a clause of a message; None where each has one."""
    for part, gates in (("backbone", GATES), ("encoder", COSINE_GATES), ("codec", SNR_GATES)):
        if (stored := precision[part]) not in gates:
            return f"precision.{part} = {stored!r} has no gate (those that have: {', '.join(gates)})"
    return None


def misses(
    quality: Mapping[str, Mapping[str, Any]], precision: Mapping[str, str], layers: int = MEASURED_LAYERS
) -> list[str]:
    """The gates that a bundle misses, each as a clause of a message."""
    return [each.clause for each in verdicts(quality, precision, layers) if not each.met]
