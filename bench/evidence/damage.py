"""Figures that the agreement gates must separate: correct exports of a trained model, and damaged ones.

``ualm bench damage -o FILE.json [--bundle BUNDLE]`` takes a bundle's weights as the trained ones, stores them in every
narrow format, correctly and damaged in each of the ways in which a quantiser goes wrong, and compares each with the
weights themselves as an export does: on the rows that the bundle's engine draws for the built-in prompts. The bundle's
own rounding is hidden first: each weight is moved at random within its quantisation step, so that the exact weights lie
anywhere between two steps, as they did before they were rounded.
"""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.bench.evidence.damage")

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...export.formats import float8
from ...export.formats.blocks import LIMITS, dequantize, quantize
from ...export.formats.precision import BACKBONE, Precision
from ...export.quality.agreement import HELD, HeldSegment, branches, compare, hold_rows
from ...export.quality.gptq import gptq
from ...export.quality.input_scales import MARGIN
from ...export.quality.reference_body import hidden_states
from ...export.run.qwen2 import BackboneShape
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.packaged import packaged_bundle
from ...runtime.bundle.precision import BLOCK
from ...runtime.diagnostics.machine import versions
from ...runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ...runtime.errors import InputError
from ...runtime.files.safetensors_reader import widen
from ...runtime.files.writing import check_place, replacing_file
from .arithmetic import Read, narrowed, rounded_rows

#: Returns a matrix as it is stored, from its name and its exact values float32 [in, out].
Store = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Trained:
    """A bundle, its weights as if they had never been rounded, and its answers."""

    bundle: Bundle
    shape: BackboneShape
    read: Read
    held: list[HeldSegment]

    @classmethod
    def of_bundle(cls, bundle: Bundle, seed: int = 0) -> Trained:
        model, source = bundle.manifest.model, bundle.manifest.source
        shape = BackboneShape(
            hidden_size=model.hidden_size,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            ffn_size=bundle.table("backbone.0.down").shape[0],
            rms_norm_eps=float(source["rms_norm_eps"]),
            rope_theta=float(source["rope_theta"]),
            max_positions=model.max_positions,
        )

        @functools.cache
        def read(name: str) -> np.ndarray:
            stored = bundle.table(name)
            if stored.dtype != np.int8:
                return np.array(widen(stored))
            scales = bundle.table(f"{name}.scale")
            random = np.random.default_rng([seed, *name.encode()])
            steps = np.repeat(scales.astype(np.float32), len(stored) // len(scales), axis=0)
            return dequantize(stored, scales) + steps * random.uniform(-0.5, 0.5, stored.shape).astype(np.float32)

        engine = OnnxRuntimeEngine(bundle, max_context=min(1024, model.max_positions))
        try:
            held = hold_rows(engine, bundle, HELD)
        finally:
            engine.close()
        return cls(bundle, shape, read, held)

    def agreement(self, precision: str, store: Store) -> dict[str, Any]:
        """As ``agreement.compare`` of a bundle in this format, its matrices stored by ``store``."""
        rounds_rows = precision in ("int8", "int4")
        heads = BACKBONE[Precision.of(precision).heads]

        @functools.cache
        def read(name: str) -> np.ndarray:
            values = self.read(name)
            return store(name, values) if values.ndim == 2 and name.startswith("backbone.") else values

        embedding = self.bundle.table("embedding")
        sequences = [sequence for each in self.held for sequence in branches(each, embedding)]
        scales: dict[str, float] = {}
        if precision == "fp8":
            peaks: dict[str, float] = {}
            hidden_states(read, self.shape, sequences, lambda name, x: peaks.update({name: float(x.abs().max())}))
            scales = {name: float8.scale_of(MARGIN * peak) for name, peak in peaks.items()}

        def round_input(name: str, x: np.ndarray) -> np.ndarray:
            if rounds_rows:
                return rounded_rows(x)
            return float8.round_values(x, scales[name]) if name in scales else x

        hidden = iter(hidden_states(read, self.shape, sequences, round_input=round_input))
        found = []
        for segment in self.held:
            head = narrowed(self.read(f"head.{segment.modality}"), heads)
            bias = self.read("head.audio.bias") if segment.modality == "audio" else np.float32(0)
            states = [next(hidden)[len(segment.prefix) - 1 :] for _ in range(segment.logits.shape[1])]
            rows = [rounded_rows(each) if heads == "int8" else each for each in states]
            found.append(replace(segment, logits=np.stack([each @ head + bias for each in rows], axis=1)))
        agreements = compare(found, self.read, self.shape, self.bundle.manifest.vocabulary, embedding)
        return {
            modality: {key: counted.to_json()[key] for key in ("top1", "kl")}
            for modality, counted in agreements.items()
        }

    def importance(self) -> Mapping[str, torch.Tensor]:
        """The inputs of each matrix on the held rows, float32 [rows, in]."""
        seen: dict[str, torch.Tensor] = {}
        sequences = [each for segment in self.held for each in branches(segment, self.bundle.table("embedding"))]
        hidden_states(self.read, self.shape, sequences, lambda name, x: seen.update({name: x.clone()}))
        return seen


def sound(precision: str) -> Store:
    return lambda name, matrix: narrowed(matrix, BACKBONE[precision])


def damages(precision: str, layers: int) -> Iterator[tuple[str, Store]]:
    """Ways in which an export in this format goes wrong, each on all matrices unless it says otherwise."""
    dtype = BACKBONE[precision]
    if precision in ("int8", "int4"):
        low, high = LIMITS[dtype]

        def damaged(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Store:
            return lambda name, matrix: dequantize(*change(*quantize(matrix, dtype)))

        yield "scales of neighbouring blocks swapped", damaged(lambda q, s: (q, _swapped(s, 0)))
        yield "scales of neighbouring outputs swapped", damaged(lambda q, s: (q, _swapped(s, 1)))
        yield "scales one block further", damaged(lambda q, s: (q, np.roll(s, 1, axis=0)))
        yield (
            "zero point off by one",
            damaged(lambda q, s: (np.clip(q.astype(np.int16) + 1, low, high).astype(np.int8), s)),
        )
        yield "rounded towards zero", lambda name, matrix: _truncated(matrix, dtype)
        yield "one bit fewer", lambda name, matrix: _in_bits(matrix, 7 if precision == "int8" else 3)
        yield "two bits fewer", lambda name, matrix: _in_bits(matrix, 6 if precision == "int8" else 2)
        yield "one scale a column", lambda name, matrix: _in_bits(matrix, 8 if precision == "int8" else 4, len(matrix))
        if precision == "int4":
            yield "nibbles swapped", damaged(lambda q, s: (_swapped(q, 1), s))
    elif precision == "fp8":
        yield "two bits of fraction for three", lambda name, matrix: _with_fraction(matrix, 2)
        yield "scales half as large, cut off", lambda name, matrix: _float8_scaled(matrix, 0.5)
        yield "scales sixty-four times as large", lambda name, matrix: _float8_scaled(matrix, 64.0)
    else:
        yield (
            "two bits of fraction fewer",
            lambda name, matrix: _with_fraction(matrix, {"fp16": 8, "bf16": 5}[precision]),
        )
    for layer in (0, layers - 1):
        tensor = f"backbone.{layer}.qkv"
        smaller = _elsewhere_sound(precision, tensor, lambda matrix: matrix * np.float32(0.9))
        yield f"qkv of layer {layer} a tenth smaller", smaller
        yield f"two blocks of qkv of layer {layer} swapped", _elsewhere_sound(precision, tensor, _blocks_swapped)


def _elsewhere_sound(precision: str, tensor: str, change: Callable[[np.ndarray], np.ndarray]) -> Store:
    keep = sound(precision)
    return lambda name, matrix: change(keep(name, matrix)) if name == tensor else keep(name, matrix)


def _swapped(values: np.ndarray, axis: int) -> np.ndarray:
    """Swap neighbours along an axis; a last one without a neighbour stays."""
    order = np.arange(values.shape[axis])
    pairs = len(order) // 2 * 2
    order[:pairs] ^= 1
    return np.take(values, order, axis=axis)


def _blocks_swapped(matrix: np.ndarray) -> np.ndarray:
    return np.concatenate([matrix[BLOCK : 2 * BLOCK], matrix[:BLOCK], matrix[2 * BLOCK :]])


def _truncated(matrix: np.ndarray, dtype: str) -> np.ndarray:
    _, scales = quantize(matrix, dtype)
    steps = np.repeat(scales.astype(np.float32), BLOCK, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.nan_to_num(np.trunc(matrix / steps))
    return np.clip(whole, *LIMITS[dtype]) * steps


def _in_bits(matrix: np.ndarray, bits: int, block: int = BLOCK) -> np.ndarray:
    """Symmetric integers with so many bits, rounded to nearest, with a scale for each ``block`` inputs."""
    high = 2 ** (bits - 1) - 1
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    steps = np.maximum(np.abs(blocks).max(1, keepdims=True) / high, np.float32(1e-30))
    return (np.rint(blocks / steps) * steps).reshape(matrix.shape).astype(np.float32)


def _with_fraction(matrix: np.ndarray, bits: int) -> np.ndarray:
    fraction, exponent = np.frexp(matrix)
    return np.ldexp(np.rint(fraction * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent).astype(np.float32)


def _float8_scaled(matrix: np.ndarray, factor: float) -> np.ndarray:
    return float8.round_values(matrix, factor * float8.scale_of(float(np.abs(matrix).max())))


def measure(trained: Trained, precisions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All formats, each correct and damaged."""
    for precision in precisions:
        yield {"precision": precision, "export": "sound"} | trained.agreement(precision, sound(precision))
        if precision == "int4":
            rows = trained.importance()

            def by_gptq(name: str, matrix: np.ndarray, rows: Mapping[str, torch.Tensor] = rows) -> np.ndarray:
                return dequantize(*gptq(matrix, rows[name], "int4"))

            yield {"precision": precision, "export": "sound, GPTQ"} | trained.agreement(precision, by_gptq)
        if precision != "fp32":  # whose weights are exact
            for name, store in damages(precision, trained.shape.layers):
                yield {"precision": precision, "export": name} | trained.agreement(precision, store)


def main(arguments: Sequence[str] | None = None, program: str = "python -m ualm.bench.evidence.damage") -> None:
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="one with int8 weights; by default the model within ualm")
    parser.add_argument("--precisions", nargs="+", choices=BACKBONE, default=list(BACKBONE))
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args(arguments)
    check_place(given.output)
    folder = given.bundle or packaged_bundle()
    if folder is None:
        raise InputError("--bundle: this ualm came without a model; name one with int8 weights")
    torch.set_num_threads(1)  # matrices are small
    bundle = Bundle(folder, verify="never")
    results = []
    for seed in range(given.seeds):
        for each in measure(Trained.of_bundle(bundle, seed), given.precisions):
            results.append({"seed": seed} | each)
            print(each, file=sys.stderr, flush=True)
    about = {"bundle": bundle.digest, "seeds": given.seeds, "versions": versions()}
    lines = ",\n".join(f"  {json.dumps(each)}" for each in results)
    with replacing_file(given.output) as temporary:
        temporary.write_text(f'{json.dumps(about, indent=1)[:-2]},\n "results": [\n{lines}\n ]\n}}\n')
