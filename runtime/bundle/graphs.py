"""Whether the graphs of a bundle fit its manifest and its blob: inputs, outputs, arithmetic, and where weights lie.

Only their headers are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from ..errors import BundleError
from ..files.reading import MOST_SIZE, shown
from ..files.safetensors_reader import MappedTensors
from ..vocabulary import CHOOSABLE
from .feature_spec import AF_WHISPER, feature_rows
from .graph_header import MOST_FIELDS, Declared, GraphHeader, read_graph_header
from .manifest import Manifest

#: Parts whose products are integer products.
_INTEGER = ("backbone.prefill", "encoder.integer")
#: Types as safetensors and as graphs name them; int4, two to a byte, is stored in the blob as bytes.
_AS_DECLARED = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "I8": "int8",
    "U8": "uint8",
}
_AS_STORED = {"int4": "uint8"}
#: Types that a cache is stored in.
_FLOATS = ("float32", "float16", "bfloat16")
#: Sizes of a graph's input that a message shows.
_MOST_SHOWN = 8


_Sides = dict[str, Declared]


def refuse(where: Path, why: str) -> NoReturn:
    """The error of a file that does not fit the others."""
    raise BundleError(f"{where}: {why}; export the run again")


class Graphs:
    """The graphs of a bundle, by role. ``where``: the manifest's path; ``part``: the path of a role's graph."""

    def __init__(self, manifest: Manifest, where: Path, part: Callable[[str], Path], tables: MappedTensors) -> None:
        self._manifest, self._where, self._part, self._tables = manifest, where, part, tables

    def check(self) -> None:
        """Compare all of them; :class:`BundleError` names the first mismatch."""
        graphs = self._read()
        self._check_sides(graphs)
        for role, graph in graphs.items():
            self._check_weights(role, graph)
        self._check_codec(graphs["codec.stream"])

    def _read(self) -> dict[str, GraphHeader]:
        """The header of each part's graph. A file that plays several parts is read once."""
        read: dict[Path, GraphHeader] = {}
        for path in map(self._part, self._manifest.parts):
            if path not in read:
                left = MOST_FIELDS - sum(graph.fields for graph in read.values())
                read[path] = read_graph_header(path, left)
        return {role: read[self._part(role)] for role in self._manifest.parts}

    def _check_weights(self, role: str, graph: GraphHeader) -> None:
        """Each weight of a graph must be the tensor of that name, at its place in the blob."""
        path, total = self._part(role), 0
        for name, weight in graph.weights.items():
            if weight.location != self._tables.path.name:
                self._refuse(
                    f"weight {shown(name)} is stored in {shown(weight.location)}, which is not the file of weights",
                    path,
                )
            if name not in self._tables:
                self._refuse(f"weight {shown(name)} is not in {self._tables.path.name}", path)
            tensor, stored = self._tables[name], self._tables.stored_as(name)
            if (weight.offset, weight.length) != self._tables.place(name):
                self._refuse(f"weight {shown(name)} is not where {self._tables.path.name} has it", path)
            packed = 2 if weight.dtype == "int4" else 1  # two numbers of a row in a byte
            shape = (*tensor.shape[:-1], tensor.shape[-1] * packed) if packed > 1 and tensor.shape else tensor.shape
            if weight.shape != shape or _AS_DECLARED.get(stored) != _AS_STORED.get(weight.dtype, weight.dtype):
                self._refuse(
                    f"weight {shown(name)} is {weight.dtype} {shown(list(weight.shape))}, but "
                    f"{stored} {shown(list(shape))} in {self._tables.path.name}",
                    path,
                )
            total += weight.length
        recorded = self._manifest.parts[role].weight_bytes
        if recorded is not None and recorded != total:
            self._refuse(f"parts.{role}.weight_bytes = {shown(recorded)}, but its graph reads {total} bytes of weights")

    def _check_sides(self, graphs: Mapping[str, GraphHeader]) -> None:
        hidden, vocabulary = self._manifest.model.hidden_size, self._manifest.vocabulary
        columns = {
            "head.modality": len(CHOOSABLE),
            "head.text": 2 + vocabulary.text_size,
            "head.audio": vocabulary.head_columns("audio"),
        }
        for role, graph in graphs.items():
            compute = self._manifest.parts[role].multiplies_in
            wanted = "float32" if role not in _INTEGER else "int8"
            if _kind(role) == "backbone":
                inputs, outputs, number = self._body(role, graph)
                wanted = number if role not in _INTEGER else "int8"
            elif role in columns:
                inputs, outputs = {"hidden": _floats(None, hidden)}, {"logits": _floats(None, columns[role])}
            elif _kind(role) == "encoder":
                inputs, outputs = self._encoder()
            elif role == "codec":
                inputs = {"latents": _floats(1, self._manifest.codec.latent_size, None)}
                outputs = {"pcm": _floats(1, None)}
            elif role == "codec.stream":
                inputs, outputs = self._codec_stream(graph)
            else:
                continue  # a part that this version does not use
            self._check_side(role, "input", inputs, graph.inputs)
            self._check_side(role, "output", outputs, graph.outputs)
            if compute != wanted:
                self._refuse(f"parts.{role}.compute = {shown(compute)}, but its graph computes in {wanted}")

    def _check_side(self, role: str, side: str, expected: _Sides, found: Mapping[str, Declared]) -> None:
        path = self._part(role)
        for name in expected:
            if name not in found:
                self._refuse(f"has no {side} {name!r}", path)
            if found[name] != expected[name]:
                self._refuse(
                    f"{side} {name!r} is {_shown(found[name])}, and the manifest asks for {_shown(expected[name])}",
                    path,
                )
        if extra := [name for name in found if name not in expected]:
            self._refuse(f"{side} {shown(extra[0])} is not one that the manifest asks for", path)

    def _body(self, role: str, graph: GraphHeader) -> tuple[_Sides, _Sides, str]:
        """Inputs, outputs, and the type that the cache is stored in."""
        model = self._manifest.model
        half = model.head_dim // 2
        number = "float32"
        if role == "backbone" and "past_key.0" in graph.inputs:  # that for GPUs: its cache has the computing type
            number = graph.inputs["past_key.0"].dtype
            if number not in _FLOATS:
                self._refuse(f"its cache is stored in {number}; choose {', '.join(_FLOATS)}", self._part(role))
        inputs: _Sides = {"embeddings": _floats(None, None, model.hidden_size)}
        if "write_index" in graph.inputs:
            inputs |= {
                "write_index": Declared("int64", (None,)),
                "mask": _floats(None, 1, None, None),
                "cos": _floats(None, None, half),
                "sin": _floats(None, None, half),
            }
        else:
            inputs |= {
                "last_position": Declared("int32", (None,)),
                "total_rows": Declared("int32", ()),
                "cos": _floats(None, half),
                "sin": _floats(None, half),
            }
        cache = Declared(number, (None, model.kv_heads, None, model.head_dim))
        layers = range(model.layers)
        inputs |= {f"past_{each}.{layer}": cache for layer in layers for each in ("key", "value")}
        outputs: _Sides = {"hidden": _floats(None, model.hidden_size)}
        outputs |= {f"present_{each}.{layer}": cache for layer in layers for each in ("key", "value")}
        return inputs, outputs, number

    def _encoder(self) -> tuple[_Sides, _Sides]:
        spec, hidden = self._manifest.features, self._manifest.model.hidden_size
        if spec.kind == AF_WHISPER:
            rows = feature_rows(spec.fixed_frames)
            return {"mel": _floats(1, spec.n_mels, spec.fixed_frames)}, {"features": _floats(rows, hidden)}
        size = spec.window_frames
        inputs = {
            "mel": _floats(None, spec.n_mels, size),
            "frame_mask": _floats(None, 1, size),
            "attention_bias": _floats(None, 1, 1, size // 2),
        }
        return inputs, {"features": _floats(None, hidden)}

    def _codec_stream(self, graph: GraphHeader) -> tuple[_Sides, _Sides]:
        """States are declared with fixed shapes, the same as inputs and as outputs."""
        flag = Declared("int64", (1,))
        states = {name: found for name, found in graph.inputs.items() if name.startswith("left.")}
        for name, found in states.items():
            if len(found.shape) != 3 or None in found.shape or found.dtype != "float32" or found.shape[0] != 1:
                self._refuse(f"input {shown(name)} is {_shown(found)}, not a state", self._part("codec.stream"))
        nexts = {f"next.{name.removeprefix('left.')}": found for name, found in states.items()}
        if list(graph.outputs) != ["pcm", *nexts]:  # they are passed on by their order
            self._refuse("its states come out in another order than they go in", self._part("codec.stream"))
        latents = _floats(1, self._manifest.codec.latent_size, None)
        return {"latents": latents, "first": flag, "last": flag, **states}, {"pcm": _floats(1, None), **nexts}

    def _check_codec(self, graph: GraphHeader) -> None:
        """How far a frame reaches follows from the convolutions, which ``export/parts/codec/layers.py`` explains."""
        codec = self._manifest.codec
        first = last = 0
        hop = 1
        for name, declared in graph.inputs.items():
            layer = name.removeprefix("left.")
            if layer == name:
                continue
            if f"codec.{layer}.weight" not in self._tables:
                self._refuse(f"state {shown(name)} belongs to no layer of the codec", self._part("codec.stream"))
            kernel = (self._tables[f"codec.{layer}.weight"].shape or (0,))[-1]
            if not 1 < kernel + (not layer.endswith(".conv_t1")) <= MOST_SIZE:
                self._refuse(f"codec.{layer}.weight has a kernel of {kernel}", self._tables.path)
            if layer.endswith(".conv_t1"):  # kernel 2r, stride r, padding ceil(r / 2)
                stride = kernel // 2
                first = first * stride - math.ceil(stride / 2)
                last = last * stride - math.ceil(stride / 2) + kernel - 1
                hop *= stride
            else:
                reach = int(declared.shape[2] or 0) // 2
                first, last = first - reach, last + reach
        expected = {
            "hop_length": hop,
            "context_left": max(last // hop, 0),
            "context_right": max((hop - 1 - first) // hop, 0),
            "lookahead": -first,
        }
        for field, value in expected.items():
            if getattr(codec, field) != value:
                self._refuse(f"codec.{field} = {getattr(codec, field)}, but its layers make it {value}")

    def _refuse(self, why: str, where: Path | None = None) -> NoReturn:
        refuse(where or self._where, why)


def _kind(role: str) -> str:
    return role.partition(".")[0]


def _floats(*shape: int | None) -> Declared:
    return Declared("float32", shape)


def _shown(declared: Declared) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in declared.shape[:_MOST_SHOWN])
    return f"{declared.dtype} [{sizes}{', ...' if len(declared.shape) > _MOST_SHOWN else ''}]"
