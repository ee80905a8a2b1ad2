"""Whether the files of a bundle fit together: every number of the manifest against its tables and graphs.

Hashes show that the files are those that were written, not that they belong to one model. Only headers (of the blob, of
each graph, of the golden vector) and a few small tables are compared here: opening remains a matter of milliseconds,
and a bundle that cannot work is one :class:`BundleError` before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import BundleError
from ..files.reading import MOST_SIZE, shown
from ..files.safetensors_reader import MappedTensors
from ..sound.limits import HIGHEST_RATE, LOWEST_RATE
from ..vocabulary import CHOOSABLE, SPECIALS, STREAMS
from .entries import STORED
from .feature_spec import AF_WHISPER, feature_rows
from .graph_header import MOST_FIELDS, Declared, GraphHeader, read_graph_header
from .manifest import Manifest

#: Parts that every bundle has.
ROLES = ("backbone", "head.text", "head.audio", "head.modality", "encoder", "codec", "codec.stream")
#: Tensors of the golden vector.
GOLDEN_TENSORS = ("rows", "codes", "sound", "logits.modality", "logits.audio", "logits.text", "pcm", "features")
#: A matrix of each part that shows what its weights are stored in.
_MATRICES = {
    "backbone": "backbone.0.qkv",
    "backbone.prefill": "prefill.0.qkv",
    "head.text": "head.text",
    "head.audio": "head.audio",
    "head.modality": "head.modality",
    "encoder": "encoder.adaptor.weight",
    "codec": "codec.conv1.weight",
}
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
#: Rows of cache that the check of the golden vector needs: its prompt, a modality row, a drawn row, and some to spare.
GOLDEN_CONTEXT = 64
#: Layers of a body, each with tables and inputs to check; the largest dense models have some 130.
MOST_LAYERS = 1024
#: Graphs that a manifest may list; ten are in use.
MOST_PARTS = 64
#: Angles are computed in float32, which counts exactly up to here.
MOST_POSITIONS = 1 << 24
#: No turn of a conversation holds that much sound.
MOST_HEARD_SECONDS = 3600
#: Channels of a stage after the codec, which itself has one.
MOST_CHANNELS = 64
#: How far the sum of a mel filter, which is 1 except for being sampled at few bins, is off in Whisper's banks.
_FILTER_SUM = 0.05

#: Sizes of a graph's input that a message shows.
_MOST_SHOWN = 8

_Shape = tuple[int, ...]
_Sides = dict[str, Declared]


def check_contents(
    manifest: Manifest, where: Path, part: Callable[[str], Path], tables: MappedTensors, golden: MappedTensors | None
) -> None:
    """Compare everything; :class:`BundleError` names the first mismatch.

    ``where``: the manifest's path. ``part``: the path of a role's graph. ``golden``: None while an export is in
    progress, which opens what it has so far.
    """
    contents = _Contents(manifest, where, part, tables)
    contents.check()
    if golden is not None:
        contents.check_finite()
        contents.check_golden(golden)


class _Contents:
    def __init__(self, manifest: Manifest, where: Path, part: Callable[[str], Path], tables: MappedTensors) -> None:
        self._manifest, self._where, self._part, self._tables = manifest, where, part, tables
        self._features = manifest.features

    def check(self) -> None:
        self._check_sizes()
        self._tables.check_whole()
        self._check_formats()
        self._check_tables()
        graphs = self._read_graphs()
        self._check_graphs(graphs)
        for role, graph in graphs.items():
            self._check_weights(role, graph)
        self._check_codec(graphs["codec.stream"])

    def _read_graphs(self) -> dict[str, GraphHeader]:
        """The header of each part's graph. A file that plays several parts is read once."""
        read: dict[Path, GraphHeader] = {}
        for path in map(self._part, self._manifest.parts):
            if path not in read:
                left = MOST_FIELDS - sum(graph.fields for graph in read.values())
                read[path] = read_graph_header(path, left)
        return {role: read[self._part(role)] for role in self._manifest.parts}

    # ---- the manifest in itself ----

    def _check_sizes(self) -> None:
        manifest = self._manifest
        model, vocabulary, codec = manifest.model, manifest.vocabulary, manifest.codec
        sections: dict[str, object] = {"model": model, "vocabulary": vocabulary, "codec": codec}
        if (stage := manifest.post_codec) is not None:
            sections["post_codec"] = stage
        for section, values in sections.items():
            may_be_zero = ("context_left", "context_right", "lookahead", "delay")
            for name, value in vars(values).items():
                if type(value) is not int:
                    continue
                if value < 1 and name not in may_be_zero:
                    self._refuse(f"{section}.{name} = {value} must be positive")
                if value > (most := MOST_LAYERS if name == "layers" else MOST_SIZE):
                    self._refuse(f"{section}.{name} = {shown(value)}: at most {most} is supported")
        if (parts := len(manifest.parts)) > MOST_PARTS:
            self._refuse(f"parts: {parts} of them, and {MOST_PARTS} are the most")
        if model.heads % model.kv_heads:
            self._refuse(f"model.heads = {model.heads} is no multiple of model.kv_heads = {model.kv_heads}")
        if model.head_dim % 2:
            self._refuse(f"model.head_dim = {model.head_dim} is odd; halves of a head are turned against each other")
        if model.max_positions > MOST_POSITIONS:
            self._refuse(f"model.max_positions = {model.max_positions} is more than {MOST_POSITIONS}")
        text, audio = vocabulary.text_size, vocabulary.audio_size
        bases = (vocabulary.text_base, vocabulary.audio_base)
        if bases not in ((SPECIALS, SPECIALS + text), (SPECIALS + audio, SPECIALS)):
            self._refuse(
                f"vocabulary: text_base = {bases[0]} and audio_base = {bases[1]} do not lay {text} ids of text and "
                f"{audio} of sound side by side behind the {SPECIALS} special ones"
            )
        if not LOWEST_RATE <= codec.sample_rate <= HIGHEST_RATE:
            self._refuse(f"codec.sample_rate = {codec.sample_rate} is outside {LOWEST_RATE} to {HIGHEST_RATE} Hz")
        if (longest := self._features.max_samples / self._features.sample_rate) > MOST_HEARD_SECONDS:
            self._refuse(f"features.max_samples = {self._features.max_samples} are {longest:.0f} s of sound")
        if stage is not None:
            limits = {"sample_rate": HIGHEST_RATE, "channels": MOST_CHANNELS, "delay": codec.sample_rate}
            for name, high in limits.items():
                if (value := getattr(stage, name)) > high:
                    self._refuse(f"post_codec.{name} = {value}, and {high} is the most")

    def _check_formats(self) -> None:
        parts, precision = self._manifest.parts, self._manifest.precision
        if missing := [role for role in ROLES if role not in parts]:
            self._refuse(f"parts: {', '.join(missing)} missing")
        for role, part in parts.items():
            stored, field = part.precision, _precision_field(role)
            if field is not None and precision.get(field) != stored:
                recorded = precision.get(field)
                self._refuse(f"parts.{role}.precision = {stored!r}, but precision.{field} = {shown(recorded)}")
            if role in _MATRICES:
                name = _MATRICES[role]
                if (found := self._stored_as(name)) != STORED[stored]:
                    self._refuse(f"parts.{role}.precision = {stored!r}, but {name} is stored as {found}")
        if precision.get("prefill", "none") != "none" and "backbone.prefill" not in parts:
            self._refuse(f"precision.prefill = {shown(precision['prefill'])}, but there is no part backbone.prefill")

    # ---- the blob ----

    def _stored_as(self, name: str) -> str:
        if name not in self._tables:
            self._refuse(f"lacks {name}", self._tables.path)
        return self._tables.stored_as(name)

    def _check_tables(self) -> None:
        manifest, model, codec = self._manifest, self._manifest.model, self._manifest.codec
        heads = model.heads + 2 * model.kv_heads
        null = (model.layers, model.kv_heads, model.head_dim)
        expected: dict[str, tuple[str, _Shape]] = {
            "embedding": ("F32 BF16", (manifest.vocabulary.size, model.hidden_size)),
            "rope.inverse_frequencies": ("F32", (model.head_dim // 2,)),
            "null.keys": ("F32", null),
            "null.values": ("F32", null),
            "codec.rvq_table": ("F32 F16 BF16", (STREAMS, manifest.vocabulary.codebook_size, codec.latent_size)),
            "codec.rvq_bias": ("F32", (codec.latent_size,)),
            "encoder.mel_filters": ("F32", (self._features.n_fft // 2 + 1, self._features.n_mels)),
        }
        for name, (dtypes, shape) in expected.items():
            self._check_tensor(self._tables, name, dtypes, shape)
        for layer in range(model.layers):  # null.keys has room for that many
            self._check_tensor(self._tables, f"backbone.{layer}.input_norm", "F32", (model.hidden_size,))
            self._check_tensor(self._tables, f"backbone.{layer}.qkv_bias", "F32", (heads * model.head_dim,))
        if f"backbone.{model.layers}.input_norm" in self._tables:
            self._refuse(f"model.layers = {model.layers}, but {self._tables.path.name} holds more")
        # a filter's area is 1 Hz times 2: its sum, times the Hz of a bin, does not depend on the rate
        sums = self._tables["encoder.mel_filters"].sum(axis=0, dtype=np.float64)
        hertz = self._features.sample_rate / self._features.n_fft
        if not abs(float(np.median(sums)) * hertz - 1) <= _FILTER_SUM:
            self._refuse(
                f"features.sample_rate = {self._features.sample_rate} and n_fft = {self._features.n_fft} are not what "
                "encoder.mel_filters was made for"
            )

    def check_finite(self) -> None:
        """The small tables, whose values enter every row."""
        for name in ("rope.inverse_frequencies", "null.keys", "null.values", "codec.rvq_bias", "encoder.mel_filters"):
            if not np.isfinite(self._tables[name]).all():
                self._refuse(f"{name} holds NaN or infinity", self._tables.path)

    def _check_tensor(self, tensors: MappedTensors, name: str, dtypes: str, shape: _Shape) -> None:
        if name not in tensors:
            self._refuse(f"lacks {name}", tensors.path)
        found = tensors[name]  # checks its place and its alignment too
        stored = tensors.stored_as(name)
        if stored not in dtypes.split() or found.shape != shape:
            self._refuse(
                f"{name} is {stored} {shown(list(found.shape))}, and the manifest asks for "
                f"{' or '.join(dtypes.split())} {list(shape)}",
                tensors.path,
            )

    # ---- the graphs ----

    def _check_weights(self, role: str, graph: GraphHeader) -> None:
        """Each weight of a graph must be the tensor of that name, at its place in the blob."""
        path, total = self._part(role), 0
        for name, weight in graph.weights.items():
            if weight.location != self._tables.path.name:
                self._refuse(f"weight {shown(name)} lies in {shown(weight.location)}, no file of weights", path)
            if name not in self._tables:
                self._refuse(f"weight {shown(name)} is none of {self._tables.path.name}", path)
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

    def _check_graphs(self, graphs: Mapping[str, GraphHeader]) -> None:
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
                self._refuse(f"its cache is {number}, none of {', '.join(_FLOATS)}", self._part(role))
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
        spec, hidden = self._features, self._manifest.model.hidden_size
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

    # ---- the golden vector ----

    def check_golden(self, golden: MappedTensors) -> None:
        manifest, hidden = self._manifest, self._manifest.model.hidden_size
        golden.check_whole()
        if missing := [name for name in GOLDEN_TENSORS if name not in golden]:
            self._refuse(f"lacks {', '.join(missing)}", golden.path)
        lengths = {name: (golden[name].shape or (0,))[0] for name in ("rows", "codes", "sound")}
        heard = feature_rows(lengths["sound"] // self._features.hop_length)
        vocabulary, codec = manifest.vocabulary, manifest.codec
        expected: dict[str, tuple[str, _Shape]] = {
            "rows": ("I32", (lengths["rows"], STREAMS)),
            "codes": ("I16", (lengths["codes"], STREAMS)),
            "sound": ("F32", (lengths["sound"],)),
            "logits.modality": ("F32", (1, len(CHOOSABLE))),
            "logits.audio": ("F32", (2, vocabulary.head_columns("audio"))),
            "logits.text": ("F32", (2, 2 + vocabulary.text_size)),
            "pcm": ("F32", (lengths["codes"] * codec.hop_length,)),
            "features": ("F32", (heard, hidden)),
        }
        for name, (dtype, shape) in expected.items():
            self._check_tensor(golden, name, dtype, shape)
        if not 1 <= lengths["rows"] <= GOLDEN_CONTEXT - 2 or not lengths["codes"]:
            self._refuse(f"{lengths['rows']} rows and {lengths['codes']} frames of codes are not a prompt", golden.path)
        if not self._features.min_samples <= lengths["sound"] <= self._features.max_samples:
            self._refuse(f"its sound of {lengths['sound']} samples cannot be heard", golden.path)
        for name, end in (("rows", vocabulary.size), ("codes", vocabulary.codebook_size)):
            if golden[name].min() < 0 or golden[name].max() >= end:
                self._refuse(f"{name} holds ids outside 0 .. {end - 1}", golden.path)
        for name in set(GOLDEN_TENSORS) - {"rows", "codes"}:
            if not np.isfinite(golden[name]).all():
                self._refuse(f"{name} holds NaN or infinity", golden.path)

    def _refuse(self, why: str, where: Path | None = None) -> NoReturn:
        raise BundleError(f"{where or self._where}: {why}; export the run again")


def _kind(role: str) -> str:
    return role.partition(".")[0]


def _precision_field(role: str) -> str | None:
    """Field of ``Manifest.precision`` with the storage format of a part; None for the one that is always float32."""
    if role == "head.modality":
        return None
    if role == "backbone.prefill":
        return "prefill"
    return {"head": "heads"}.get(_kind(role), _kind(role))


def _floats(*shape: int | None) -> Declared:
    return Declared("float32", shape)


def _shown(declared: Declared) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in declared.shape[:_MOST_SHOWN])
    return f"{declared.dtype} [{sizes}{', ...' if len(declared.shape) > _MOST_SHOWN else ''}]"
