"""How far engines' arithmetic moves the golden logits, and how far damage does: the source of the tolerances.

``ualm bench arithmetic -o FILE.json [--layers 2 8] [--hidden 128 256] [--seeds 3]`` writes runs with random weights of
each size, computes the golden prompt in float32 and with the rounding of every arithmetic in
``runtime.engines.arithmetic``, and compares as ``runtime.diagnostics.golden`` does. No engine is needed: rounding is
emulated wherever a graph holds a narrow value. The same is done with damaged bodies, in float32, so that the file holds
both: the errors of a correct engine, and the errors that must be detected.
"""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.bench.evidence.arithmetic")

import argparse
import dataclasses
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...export.formats import float8
from ...export.formats.blocks import LIMITS, dequantize, quantize
from ...export.formats.precision import BACKBONE, FLOAT8, Precision
from ...export.formats.store import WeightStore
from ...export.parts.backbone import BackbonePlan
from ...export.parts.heads import HeadsPlan
from ...export.quality.golden import SEED, golden_rows, golden_sequences
from ...export.quality.input_scales import MARGIN
from ...export.quality.reference_body import RoundInput, RoundValue, hidden_states
from ...export.run.checkpoint import Checkpoint
from ...export.run.qwen2 import BackboneShape
from ...export.run.recipe import find_run, read_recipe
from ...runtime.bundle.precision import BLOCK
from ...runtime.diagnostics.machine import versions
from ...runtime.files.writing import check_place, replacing_file
from ...runtime.vocabulary import Vocabulary
from ..random_run.run import SHAPES, RunShape, write_random_run

#: Stored format -> types in which engines compute its body.
ARITHMETIC: dict[str, tuple[str, ...]] = {
    "fp16": ("float16",),
    "bf16": ("bfloat16",),
    "fp8": ("float8",),
    "int8": ("int8", "float16"),
    "int4": ("int8", "float16"),
}
_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8": torch.float16}

#: Returns a tensor of the body in float32 by its name in the bundle.
Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Body:
    """A body and its heads in float32, and the golden prompt's input embeddings."""

    shape: BackboneShape
    read: Read
    sequences: Sequence[np.ndarray]

    @classmethod
    def of_run(cls, run: Path) -> Body:
        """The body of a training run, read from its checkpoint as an export reads it."""
        files = find_run(run)
        recipe = read_recipe(files.config)
        checkpoint, store = Checkpoint(files.weights), WeightStore("unwritten.safetensors")
        shape = recipe.backbone
        BackbonePlan(checkpoint, shape, store)
        codebook = int(recipe.codec["codebook_size"])
        vocabulary = Vocabulary.in_order(recipe.vocabulary_order, recipe.text_size, codebook)
        HeadsPlan(checkpoint, vocabulary, shape.hidden_size, store, "float32")
        table = store.exact("embedding")
        rows, _ = golden_rows(vocabulary, np.random.default_rng(SEED))
        return cls(shape, functools.cache(store.exact), golden_sequences(vocabulary, table, rows))

    def stored(self, precision: str) -> Body:
        """The weights after a round trip through a stored format."""
        heads = BACKBONE[Precision.of(precision).heads]

        @functools.cache
        def read(name: str) -> np.ndarray:
            values = self.read(name)
            if values.ndim < 2 or name == "head.modality":
                return values
            return narrowed(values, heads if name.startswith("head.") else BACKBONE[precision])

        return dataclasses.replace(self, read=read)

    def logits(
        self, round_input: RoundInput = lambda name, x: x, round_value: RoundValue | None = None
    ) -> dict[str, np.ndarray]:
        """The golden logits: "modality" [1, 5], "audio" and "text" [2, n]."""
        states = hidden_states(self.read, self.shape, self.sequences, round_input=round_input, round_value=round_value)
        last = np.stack([each[-1] for each in states])
        found = {}
        for name, rows in (("modality", last[:1]), ("audio", last[1:3]), ("text", last[3:5])):
            rows = round_input(f"head.{name}", rows) if name != "modality" else rows
            bias = self.read("head.audio.bias") if name == "audio" else np.float32(0)
            found[name] = rows @ self.read(f"head.{name}") + bias
        return found


def narrowed(matrix: np.ndarray, dtype: str) -> np.ndarray:
    """``matrix`` float32 [in, out] after a round trip through ``dtype``."""
    if dtype in LIMITS:
        return dequantize(*quantize(matrix, dtype))
    if dtype == FLOAT8:
        return float8.round_values(matrix, float8.scale_of(float(np.abs(matrix).max())))
    return torch.from_numpy(np.array(matrix)).to(getattr(torch, dtype)).float().numpy()


def computed(body: Body, arithmetic: str) -> dict[str, np.ndarray]:
    """The golden logits with the rounding of an engine of this arithmetic."""
    if arithmetic == "int8":
        return body.logits(lambda name, x: rounded_rows(x))
    if arithmetic in ("float16", "bfloat16"):
        return body.logits(round_value=to_half(_HALF[arithmetic]))
    scales = input_scales(body)

    def to_float8(name: str, x: np.ndarray) -> np.ndarray:
        return x if name.startswith("head.") else float8.round_values(x, scales[name])

    # the heads beside an fp8 body are int8, multiplied with rows in 8 bits on the CPU
    return body.logits(to_float8, to_half(torch.float16))


def to_half(dtype: torch.dtype) -> RoundValue:
    return lambda value: value.to(dtype).float()


def rounded_rows(x: np.ndarray) -> np.ndarray:
    """Rows float32 [n, in] in 8 bits, with a scale for every 32 values, as ONNX Runtime's CPU products round them."""
    blocks = x.reshape(len(x), -1, BLOCK)
    scale = np.maximum(np.abs(blocks).max(-1, keepdims=True) / np.float32(127), np.float32(1e-30))
    return (np.rint(blocks / scale) * scale).reshape(x.shape)


def input_scales(body: Body) -> dict[str, float]:
    """Input scales of float8 matrices, found as in an export, from the golden prompt."""
    peaks: dict[str, float] = {}

    def look(name: str, x: torch.Tensor) -> None:
        peaks[name] = float(x.abs().max())

    hidden_states(body.read, body.shape, body.sequences, on_product=look)
    return {name: float8.scale_of(MARGIN * peak) for name, peak in peaks.items()}


def errors(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each head, relative to the largest expected value."""
    return {
        name: float(np.abs(found[name].astype(np.float64) - values).max() / np.abs(values).max())
        for name, values in expected.items()
    }


def damages(shape: BackboneShape) -> Iterator[tuple[str, Callable[[Read], Read]]]:
    """What an incorrect engine, or an incorrect bundle, computes instead."""
    middle, last = shape.layers // 2, shape.layers - 1
    for layer in sorted({0, middle, last}):
        for part in ("qkv", "o", "gate_up", "down"):
            tensor = f"backbone.{layer}.{part}"
            yield f"{part} of layer {layer} left out", functools.partial(_scaled, tensor, 0.0)
            yield f"{part} of layer {layer} half as large", functools.partial(_scaled, tensor, 0.5)
            yield f"{part} of layer {layer} a tenth smaller", functools.partial(_scaled, tensor, 0.9)
            yield f"one weight of {part} of layer {layer} is 3", functools.partial(_one_is_three, tensor)
        yield f"qkv_bias of layer {layer} left out", functools.partial(_scaled, f"backbone.{layer}.qkv_bias", 0.0)
    yield "two layers swapped", functools.partial(_swapped, middle - 1, middle)
    yield "rope with a tenth of its base", _slower
    yield "rope left out", functools.partial(_scaled, "rope.inverse_frequencies", 0.0)
    yield "all biases left out", _without_biases


def _scaled(tensor: str, share: float, read: Read) -> Read:
    return lambda name: read(name) * np.float32(share) if name == tensor else read(name)


def _one_is_three(tensor: str, read: Read) -> Read:
    def altered(name: str) -> np.ndarray:
        values = read(name)
        if name == tensor:
            values = values.copy()
            values[0, 0] = 3.0
        return values

    return altered


def _without_biases(read: Read) -> Read:
    return lambda name: np.zeros_like(read(name)) if name.endswith("qkv_bias") else read(name)


def _swapped(one: int, other: int, read: Read) -> Read:
    turned = {f"backbone.{one}.": f"backbone.{other}.", f"backbone.{other}.": f"backbone.{one}."}

    def swapped(name: str) -> np.ndarray:
        for old, new in turned.items():
            if name.startswith(old):
                return read(new + name.removeprefix(old))
        return read(name)

    return swapped


def _slower(read: Read) -> Read:
    def slower(name: str) -> np.ndarray:
        values = read(name)
        if name != "rope.inverse_frequencies":
            return values
        return (values.astype(np.float64) * 10 ** np.linspace(0, 1, len(values), endpoint=False)).astype(np.float32)

    return slower


def sized(hidden: int, layers: int) -> RunShape:
    """A shape for random runs of this width, with heads of 64 and about the proportions of Qwen2.5."""
    heads = hidden // 64
    kv_heads = max(heads // 4, 1)
    return dataclasses.replace(
        SHAPES["tiny"], hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, ffn=5 * hidden
    )


def with_gain(body: Body, gain: float) -> Body:
    """The body with matrices scaled so that their product with a row of size one has size ``gain``, which sets how much
    a layer adds to the residual stream. Random runs have 0.23 at a width of 128, 0.78 at 1536."""

    @functools.cache
    def read(name: str) -> np.ndarray:
        values = body.read(name)
        if values.ndim < 2 or not name.startswith("backbone."):
            return values
        return values * np.float32(gain / (values.std() * len(values) ** 0.5))

    return dataclasses.replace(body, read=read)


def measure(body: Body) -> Iterator[dict[str, Any]]:
    """The errors of every format in every arithmetic."""
    for precision, arithmetics in ARITHMETIC.items():
        stored = body.stored(precision)
        expected = stored.logits()
        for arithmetic in arithmetics:
            found = errors(expected, computed(stored, arithmetic))
            yield {"stored": precision, "arithmetic": arithmetic, "errors": found}


def measure_damage(body: Body) -> Iterator[dict[str, Any]]:
    """The errors of every kind of damage, in float32."""
    expected = body.logits()
    for name, damage in damages(body.shape):
        damaged = dataclasses.replace(body, read=damage(body.read))
        yield {"damage": name, "errors": errors(expected, damaged.logits())}


def main(arguments: Sequence[str] | None = None, program: str = "python -m ualm.bench.evidence.arithmetic") -> None:
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 28])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--gains", type=float, nargs="+", default=[0.4, 0.8, 1.2])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    check_place(given.output)
    torch.set_num_threads(1)  # matrices are small
    results: list[dict[str, Any]] = []
    sizes = itertools.product(given.hidden, given.layers, range(given.seeds))
    for hidden, layers, seed in sizes:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            write_random_run(run, sized(hidden, layers), seed=seed)
            plain = Body.of_run(run)
            for gain in given.gains:
                body, about = with_gain(plain, gain), {"hidden": hidden, "layers": layers, "seed": seed, "gain": gain}
                results += [about | each for each in measure(body)]
                if seed == 0 and hidden == min(given.hidden):
                    results += [about | each for each in measure_damage(body)]
        print(f"width {hidden}, {layers} layers, seed {seed}", file=sys.stderr, flush=True)
    for each in results:
        each["errors"] = {name: float(f"{error:.3g}") for name, error in each["errors"].items()}
    settings = {name: values for name, values in vars(given).items() if name != "output"}
    lines = ",\n".join(f"  {json.dumps(each)}" for each in results)
    head = json.dumps({"settings": settings, "versions": versions()}, indent=1)[:-2]
    with replacing_file(given.output) as temporary:
        temporary.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n')
