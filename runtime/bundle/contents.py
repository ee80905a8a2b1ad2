"""Whether the files of a bundle fit together: every number of the manifest against its tables and graphs.

Hashes show that the files are those that were written, not that they belong to one model. Only headers (of the blob, of
each graph, of the golden vector) and a few small tables are compared here: opening remains a matter of milliseconds,
and a bundle that cannot work is one :class:`BundleError` before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..files.reading import MOST_SIZE, shown
from ..files.safetensors_reader import MappedTensors
from ..sound.limits import HIGHEST_RATE, LOWEST_RATE
from ..vocabulary import CHOOSABLE, SPECIALS, STREAMS
from .feature_spec import feature_rows
from .graphs import Graphs, refuse
from .manifest import Manifest
from .precision import STORED

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

_Shape = tuple[int, ...]


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
        Graphs(self._manifest, self._where, self._part, self._tables).check()

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
            self._refuse(f"model.heads = {model.heads} is not a multiple of model.kv_heads = {model.kv_heads}")
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
        refuse(where or self._where, why)


def _precision_field(role: str) -> str | None:
    """Field of ``Manifest.precision`` with the storage format of a part; None for the one that is always float32."""
    if role == "head.modality":
        return None
    if role == "backbone.prefill":
        return "prefill"
    kind = role.partition(".")[0]
    return {"head": "heads"}.get(kind, kind)
