"""The transformer body: one ONNX graph for prefill and decode, in two dialects of the KV section.

``standard``: TensorScatter + Slice + Attention with an explicit mask (ONNX opset 24), the form that TensorRT maps to
its own cache update. ``grouped``: ONNX Runtime's GroupQueryAttention, measured about twice as fast on the CPU for long
contexts; it takes head sizes that are multiples of 16. Everything else, and every weight, is shared.

Weights may be stored narrower than they are computed with (``dtype``); a graph's ``compute`` is the type in which
matrices are multiplied. Norms, the residual stream and the rotary angles stay float32: half precision is too coarse for
norms, and Qwen's residual stream exceeds float16's range.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...runtime.bundle.entries import Compute
from ...runtime.errors import ExportError
from ..formats.store import WeightStore
from ..quality.reference_body import RoundInput
from ..run.checkpoint import TensorSource
from ..run.qwen2 import BackboneShape
from .graph import Graph


class BackbonePlan:
    """Plans the body's tensors in the store and draws its graphs."""

    def __init__(
        self,
        source: TensorSource,
        shape: BackboneShape,
        store: WeightStore,
        dtype: str = "float32",
        prefill_dtype: str | None = None,
    ) -> None:
        self.source, self.shape, self.store = source, shape, store
        #: Name of a set of matrices -> dtype it is stored in. Prefill, which is bound by arithmetic, may have its own
        #: set.
        self.dtypes = {"backbone": dtype} | ({"prefill": prefill_dtype} if prefill_dtype else {})
        self.tensors = self._expected()
        for name, expected in self.tensors.items():
            if source.shape(name) != expected:
                raise ExportError(
                    f"tensor {name} has shape {list(source.shape(name))}, the backbone's config.json asks for "
                    f"{list(expected)}"
                )
        self._plan()

    def _expected(self) -> dict[str, tuple[int, ...]]:
        s = self.shape
        q, kv, h, f = s.heads * s.head_dim, s.kv_heads * s.head_dim, s.hidden_size, s.ffn_size
        names: dict[str, tuple[int, ...]] = {"model.norm.weight": (h,)}
        for i in range(s.layers):
            p = f"model.layers.{i}"
            names |= {f"{p}.input_layernorm.weight": (h,), f"{p}.post_attention_layernorm.weight": (h,)}
            for letter, size in (("q", q), ("k", kv), ("v", kv)):
                names |= {
                    f"{p}.self_attn.{letter}_proj.weight": (size, h),
                    f"{p}.self_attn.{letter}_proj.bias": (size,),
                }
            names[f"{p}.self_attn.o_proj.weight"] = (h, q)
            names |= {f"{p}.mlp.{part}_proj.weight": (f, h) for part in ("gate", "up")}
            names[f"{p}.mlp.down_proj.weight"] = (h, f)
        return names

    def _plan(self) -> None:
        s, add = self.shape, self.store.add
        h, f = s.hidden_size, s.ffn_size
        add("backbone.norm", (h,), lambda: self.source.read("model.norm.weight"))
        add("rope.inverse_frequencies", (s.head_dim // 2,), lambda: inverse_frequencies(s))
        for i in range(s.layers):
            p, o = f"model.layers.{i}", f"backbone.{i}"
            qkv = [f"{p}.self_attn.{letter}_proj" for letter in "qkv"]
            gate_up = [f"{p}.mlp.gate_proj", f"{p}.mlp.up_proj"]
            self._add_vector(f"{o}.input_norm", h, f"{p}.input_layernorm.weight")
            self._add_vector(f"{o}.post_norm", h, f"{p}.post_attention_layernorm.weight")
            self._add_matrix(f"{i}.qkv", (h, s.qkv_size), qkv)
            self._add_bias(f"{o}.qkv_bias", s.qkv_size, qkv)
            self._add_matrix(f"{i}.o", (s.heads * s.head_dim, h), [f"{p}.self_attn.o_proj"])
            self._add_matrix(f"{i}.gate_up", (h, 2 * f), gate_up)
            self._add_matrix(f"{i}.down", (f, h), [f"{p}.mlp.down_proj"])

    def _add_vector(self, name: str, size: int, tensor: str) -> None:
        self.store.add(name, (size,), lambda: self.source.read(tensor))

    def _add_bias(self, name: str, size: int, parts: list[str]) -> None:
        self.store.add(name, (size,), lambda: np.concatenate([self.source.read(f"{p}.bias") for p in parts]))

    def _add_matrix(self, name: str, shape: tuple[int, int], parts: list[str]) -> None:
        """Plan [in, out]: the transposed weights of ``parts`` side by side, so that one product serves all."""

        def make() -> np.ndarray:
            matrix = np.empty(shape, np.float32)
            column = 0
            for part in parts:
                weight = self.source.read(f"{part}.weight")
                matrix[:, column : column + len(weight)] = weight.T
                column += len(weight)
            return matrix

        for matrices, dtype in self.dtypes.items():
            self.store.add_matrix(f"{matrices}.{name}", shape, make, dtype)

    def graph(self, dialect: str, compute: Compute = "float32", matrices: str = "backbone") -> Graph:
        """The body in ``dialect`` "standard" or "grouped", multiplying in ``compute``, which is also the cache's type.

        ``matrices`` names the set of weights it uses.

        Inputs: ``embeddings`` float32 [B, S, H]; ``past_key.i``, ``past_value.i`` [B, kv_heads, capacity, head_dim],
        which the caller binds to the same memory as ``present_key.i``, ``present_value.i``.
        Output: ``hidden`` float32 [B, H], the final-norm hidden state of the last position.
        """
        s = self.shape
        grouped = dialect == "grouped"
        g = Graph(f"backbone_{dialect}", self.store, contrib=grouped, opset=23 if grouped else 24, compute=compute)
        x = g.input("embeddings", ["batch", "rows", s.hidden_size])
        attend = _GroupedAttention(g, s) if grouped else _StandardAttention(g, s)
        for i in range(s.layers):
            o, m = f"backbone.{i}", f"{matrices}.{i}"
            y = g.cast(self._norm(g, x, f"{o}.input_norm"), "float32", compute)
            qkv = g.linear(y, f"{m}.qkv", f"{o}.qkv_bias", name=f"{o}.qkv")
            y = attend(i, qkv)
            y = g.cast(g.linear(y, f"{m}.o", name=f"{o}.o"), compute, "float32")
            x = g.op("Add", x, y, name=f"{o}.attention_residual")
            y = g.cast(self._norm(g, x, f"{o}.post_norm"), "float32", compute)
            gate, up = g.op_n(
                "Split", 2, g.linear(y, f"{m}.gate_up", name=f"{o}.gate_up"), axis=-1, num_outputs=2, name=f"{o}.split"
            )
            gate = g.op("Mul", gate, g.op("Sigmoid", gate, name=f"{o}.sigmoid"), name=f"{o}.silu")
            y = g.linear(g.op("Mul", gate, up, name=f"{o}.gated"), f"{m}.down", name=f"{o}.down")
            x = g.op("Add", x, g.cast(y, compute, "float32"), name=f"{o}.ffn_residual")
        # only the last position is ever read: prefill would otherwise carry S rows through the last norm
        last = g.op("Gather", x, g.constant(-1, "int64"), axis=1, name="last_row")
        g.output(self._norm(g, last, "backbone.norm"), "hidden", ["batch", s.hidden_size])
        attend.finish()
        return g

    def _norm(self, g: Graph, x: str, weight: str) -> str:
        return g.op(
            "RMSNormalization", x, g.weight(weight), axis=-1, epsilon=self.shape.rms_norm_eps, name=f"{weight}.rms"
        )


class _Cache:
    """Declares the cache inputs and outputs of every layer."""

    def __init__(self, g: Graph, s: BackboneShape) -> None:
        self.g, self.s = g, s
        self.shape: list[int | str] = ["batch", s.kv_heads, "capacity", s.head_dim]
        self.outputs: list[tuple[str, str]] = []

    def past(self, i: int) -> tuple[str, str]:
        dtype = self.g.compute
        return self.g.input(f"past_key.{i}", self.shape, dtype), self.g.input(f"past_value.{i}", self.shape, dtype)

    def present(self, i: int, key: str, value: str) -> None:
        self.outputs += [(key, f"present_key.{i}"), (value, f"present_value.{i}")]

    def finish(self) -> None:
        for value, name in self.outputs:
            self.g.output(value, name, self.shape, self.g.compute)


class _GroupedAttention(_Cache):
    """Rotary embedding, cache write and attention in one contrib operator.

    Further inputs: ``last_position`` int32 [B] (position of the last row fed), ``total_rows`` int32 [] (rows in the
    cache after this call), ``cos`` and ``sin`` float32 [max_context, head_dim / 2].
    """

    def __init__(self, g: Graph, s: BackboneShape) -> None:
        super().__init__(g, s)
        self.last = g.input("last_position", ["batch"], "int32")
        self.total = g.input("total_rows", [], "int32")
        self.cos = g.input("cos", ["max_context", s.head_dim // 2])
        self.sin = g.input("sin", ["max_context", s.head_dim // 2])

    def __call__(self, i: int, qkv: str) -> str:
        key, value = self.past(i)
        y, present_key, present_value = self.g.op_n(
            "GroupQueryAttention",
            3,
            *(qkv, "", "", key, value, self.last, self.total, self.cos, self.sin),
            domain="com.microsoft",
            name=f"backbone.{i}.attention",
            num_heads=self.s.heads,
            kv_num_heads=self.s.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        self.present(i, present_key, present_value)
        return y


class _StandardAttention(_Cache):
    """Standard operators; the mask's last dimension is the number of rows in the cache.

    Further inputs: ``write_index`` int64 [B] (position of the first row fed), ``mask`` float32 [B, 1, S, total]
    (0 where a row may look, -inf or a large negative number elsewhere), ``cos`` and ``sin`` float32
    [B, S, head_dim / 2] of the rows fed.
    """

    def __init__(self, g: Graph, s: BackboneShape) -> None:
        super().__init__(g, s)
        self.index = g.input("write_index", ["batch"], "int64")
        angles: list[int | str] = ["batch", "rows", s.head_dim // 2]
        mask = g.input("mask", ["batch", 1, "rows", "total"])
        # the mask's and the angles' casts are shared by all layers
        self.mask = g.cast(mask, "float32", g.compute)
        self.cos, self.sin = (g.cast(g.input(name, angles), "float32", g.compute) for name in ("cos", "sin"))
        self.total = g.op("Shape", mask, start=3, end=4, name="total_rows")

    def __call__(self, i: int, qkv: str) -> str:
        g, s, o = self.g, self.s, f"backbone.{i}"
        q_size, kv_size = s.heads * s.head_dim, s.kv_heads * s.head_dim
        q, k, v = g.op_n("Split", 3, qkv, g.ints(q_size, kv_size, kv_size), axis=-1, name=f"{o}.qkv_split")
        q, k = self._rotate(q, s.heads, f"{o}.q"), self._rotate(k, s.kv_heads, f"{o}.k")
        v = self._by_head(v, s.kv_heads, f"{o}.v")
        held = []
        past = self.past(i)
        for letter, cache, new in (("k", past[0], k), ("v", past[1], v)):
            present = g.op("TensorScatter", cache, new, self.index, axis=2, mode="linear", name=f"{o}.{letter}_write")
            held.append((present, g.op("Slice", present, g.ints(0), self.total, g.ints(2), name=f"{o}.{letter}_held")))
        self.present(i, held[0][0], held[1][0])
        y = g.op("Attention", q, held[0][1], held[1][1], self.mask, name=f"{o}.attention")
        y = g.op("Transpose", y, perm=[0, 2, 1, 3], name=f"{o}.rows_first")
        return g.op("Reshape", y, g.ints(0, 0, q_size), name=f"{o}.merge_heads")

    def _by_head(self, x: str, heads: int, name: str) -> str:
        x = self.g.op("Reshape", x, self.g.ints(0, 0, heads, self.s.head_dim), name=f"{name}_heads")
        return self.g.op("Transpose", x, perm=[0, 2, 1, 3], name=f"{name}_by_head")

    def _rotate(self, x: str, heads: int, name: str) -> str:
        return self.g.op("RotaryEmbedding", self._by_head(x, heads, name), self.cos, self.sin, name=f"{name}_rotary")


def inverse_frequencies(shape: BackboneShape) -> np.ndarray:
    """RoPE frequencies ``theta^(-2i/d)``, float32 [head_dim / 2], rounded where transformers rounds.

    A frequency that is off by one unit in the last place turns a key at position 8000 by 4e-4 rad, more than our
    tolerance allows: hence torch's own float32 power, once, at export.
    """
    import torch

    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    return (1.0 / (shape.rope_theta**exponents)).numpy()


def null_branch_vectors(
    read: Callable[[str], np.ndarray], shape: BackboneShape, round_input: RoundInput = lambda name, x: x
) -> tuple[np.ndarray, np.ndarray]:
    """Un-rotated keys and values of the guidance null branch, each float32 [layers, kv_heads, head_dim].

    ``read`` returns the body's tensors by their names in the bundle, as stored, which is what an engine computes with;
    ``round_input`` rounds the inputs that they are multiplied with as an engine does.
    Every row of the null prefix has the zero embedding, so at each layer all positions hold the same value vector;
    attention over equal values returns that value for any weights. One row, computed without attention, therefore gives
    the whole prefix for any length.
    """
    s = shape
    q_size, kv_size = s.heads * s.head_dim, s.kv_heads * s.head_dim
    x = np.zeros(s.hidden_size, np.float32)
    keys, values = (np.empty((s.layers, s.kv_heads, s.head_dim), np.float32) for _ in range(2))

    def norm(name: str, vector: np.ndarray) -> np.ndarray:
        scale = np.sqrt(np.mean(np.square(vector, dtype=np.float64)) + s.rms_norm_eps)
        return read(name) * (vector / scale).astype(np.float32)

    def product(vector: np.ndarray, name: str) -> np.ndarray:
        return round_input(name, vector) @ read(name)

    for i in range(s.layers):
        o = f"backbone.{i}"
        qkv = product(norm(f"{o}.input_norm", x), f"{o}.qkv") + read(f"{o}.qkv_bias")
        keys[i] = qkv[q_size : q_size + kv_size].reshape(s.kv_heads, s.head_dim)
        values[i] = qkv[q_size + kv_size :].reshape(s.kv_heads, s.head_dim)
        x = x + product(np.repeat(values[i], s.heads // s.kv_heads, axis=0).reshape(-1), f"{o}.o")
        gate, up = np.split(product(norm(f"{o}.post_norm", x), f"{o}.gate_up"), 2)
        silu = gate * (0.5 * (1.0 + np.tanh(0.5 * gate)))  # x * sigmoid(x), in a form that cannot overflow
        x = x + product((silu * up).astype(np.float32), f"{o}.down")
    return keys, values
