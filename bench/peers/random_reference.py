"""The published algorithm with random weights of a shape, made on the device: only torch is needed, and no file.

The body is Qwen2's, in the operations of transformers: RMS norms in float32, rotary positions, torch's scaled dot
product attention over a growing cache, a gated SiLU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from ...runtime.vocabulary import STREAMS, Vocabulary
from ..random_run.shapes import RunShape
from .published import PublishedAlgorithm

#: Of the published configurations.
CODEBOOK, RMS_EPSILON, ROPE_THETA = 1024, 1e-6, 1e6


def cuda_problem() -> str | None:
    """Why torch cannot compute on a GPU here, a sentence; None if it can."""
    if torch.cuda.is_available():
        return None
    why = "was built without CUDA" if torch.version.cuda is None else f"of CUDA {torch.version.cuda} finds no GPU"
    return f"torch {torch.__version__} {why}"


@dataclass
class Layer:
    """Weights of a layer; those of queries, keys and values in this order."""

    attention_norm: torch.Tensor
    projections: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    biases: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    output: torch.Tensor
    feed_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class Cache:
    """Keys and values [B, kv_heads, rows, head_dim] of each layer, which grow by concatenation."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def rows(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a layer, the new ones last."""
        if layer == len(self.layers):
            self.layers.append((keys, values))
        else:
            held = self.layers[layer]
            self.layers[layer] = torch.cat([held[0], keys], 2), torch.cat([held[1], values], 2)
        return self.layers[layer]


class RandomReference(PublishedAlgorithm):
    """Weights drawn on ``device`` from ``seed``, as :mod:`random_run` draws them. ``dtype``: of torch, by name."""

    def __init__(self, shape: RunShape, dtype: str, *, seed: int, device: str = "cpu") -> None:
        place, number = torch.device(device), getattr(torch, dtype)
        random = torch.Generator(place).manual_seed(seed)

        def drawn(*size: int, std: float = 0.02, mean: float = 0.0) -> torch.Tensor:
            return torch.empty(size, device=place, dtype=number).normal_(mean, std, generator=random)

        vocabulary = Vocabulary.in_order(("text", "discrete_audio"), shape.text_size, CODEBOOK)
        self._shape = shape
        self.hidden = hidden = shape.hidden
        self._head_dim = hidden // shape.heads
        narrow = self._head_dim * shape.kv_heads
        embedding = drawn(vocabulary.size, hidden, std=1.0)
        embedding[0] = 0.0
        super().__init__(
            vocabulary,
            place,
            number,
            embedding=embedding,
            head=drawn(vocabulary.size, hidden, std=2.0 / hidden**0.5),
            streams=drawn(STREAMS, hidden, std=1.0),
        )
        self.norm = drawn(hidden, mean=1.0)
        self.layers = [
            Layer(
                attention_norm=drawn(hidden, mean=1.0),
                projections=(drawn(hidden, hidden), drawn(narrow, hidden), drawn(narrow, hidden)),
                biases=(drawn(hidden, std=0.1), drawn(narrow, std=0.1), drawn(narrow, std=0.1)),
                output=drawn(hidden, hidden),
                feed_norm=drawn(hidden, mean=1.0),
                gate=drawn(shape.ffn, hidden),
                up=drawn(shape.ffn, hidden),
                down=drawn(hidden, shape.ffn),
            )
            for _ in range(shape.layers)
        ]
        steps = torch.arange(0, self._head_dim, 2, dtype=torch.float32, device=place)
        self._frequencies = 1.0 / ROPE_THETA ** (steps / self._head_dim)

    @property
    def body_bytes(self) -> int:
        """Bytes of weights that a step of the body reads."""
        held = [self.norm]
        for layer in self.layers:
            held += [layer.attention_norm, layer.feed_norm, *layer.projections, *layer.biases]
            held += [layer.output, layer.gate, layer.up, layer.down]
        return sum(each.nbytes for each in held)

    @property
    def head_bytes(self) -> int:
        return self._head.nbytes

    def row_bytes(self, branches: int) -> int:
        """Bytes of keys and values of a row held, of all layers."""
        numbers = 2 * self._shape.layers * branches * self._shape.kv_heads * self._head_dim
        return numbers * self._embedding.element_size()

    def through(self, embeddings: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Several rows at once only into an empty cache: a prompt."""
        branches, rows, _ = embeddings.shape
        held = cache.rows
        assert rows == 1 or held == 0, "a prompt begins a cache"
        angles = torch.arange(held, held + rows, device=self.device, dtype=torch.float32)[:, None] * self._frequencies
        turn = torch.cat([angles, angles], -1)
        cos, sin = turn.cos().to(self._dtype), turn.sin().to(self._dtype)
        x = embeddings
        for at, layer in enumerate(self.layers):
            inputs = _normed(x, layer.attention_norm)
            query, key, value = (
                linear(inputs, weight, bias).view(branches, rows, -1, self._head_dim).transpose(1, 2)
                for weight, bias in zip(layer.projections, layer.biases, strict=True)
            )
            keys, values = cache.extend(at, _turned(key, cos, sin), value)
            mixed = scaled_dot_product_attention(
                _turned(query, cos, sin), keys, values, is_causal=rows > 1, enable_gqa=True
            )
            x = x + linear(mixed.transpose(1, 2).reshape(branches, rows, -1), layer.output)
            inputs = _normed(x, layer.feed_norm)
            x = x + linear(silu(linear(inputs, layer.gate)) * linear(inputs, layer.up), layer.down)
        return _normed(x, self.norm)[:, -1]

    @torch.inference_mode()
    def noise(self, rows: int, branches: int) -> Cache:
        cache, s = Cache(), self._shape
        row = torch.randn(branches, s.kv_heads, 1, self._head_dim, generator=torch.Generator().manual_seed(0))
        held = row.to(self.device, self._dtype).repeat(1, 1, rows, 1)
        for layer in range(s.layers):
            cache.extend(layer, held, held)  # the first row that follows gives each layer its own memory
        return cache

    @torch.inference_mode()
    def logits_after(self, embeddings: torch.Tensor, *, stepwise: bool) -> torch.Tensor:
        """Logits [8, ids] after a prompt's embeddings [1, n, H], given at once or one by one."""
        cache = Cache()
        pieces = torch.chunk(embeddings, embeddings.shape[1], 1) if stepwise else (embeddings,)
        for piece in pieces:
            hidden = self.through(piece, cache)
        return self.logits(hidden)[0]


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + RMS_EPSILON)).to(x.dtype)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin
