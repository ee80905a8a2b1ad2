"""The X-Codec decoder as ONNX graphs: one for whole sounds, one that carries state from piece to piece.

The second takes latent frames and returns the samples that they determine. Every layer keeps the inputs that its next
outputs still need, so nothing is computed twice and nothing is approximated. With a convolution's span
s = (kernel - 1) x dilation and its padding p = s / 2 on each side: after a inputs the outputs before position a - p are
final, and the next ones need the last s inputs, which are the layer's state. At the start of a sound the convolution
pads with p zeros, so of the state, all zeros then, only the last p positions count; at the end p zeros follow. Both
happen at the input of each layer, as in offline decoding; zero latents would not be equivalent, because layers have
biases. A transposed convolution with kernel 2r and stride r keeps one input, since two neighbours make each output. The
skip connection of a residual unit is a slice of what the unit's dilated convolution reads, so it needs no state of its
own. Snake maps zero to zero, so states hold its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...formats.store import WeightStore
from ..graph import Graph
from .layers import Convolution

#: A slice end beyond any tensor that engines with 32-bit indices still accept.
_FAR = 2**31 - 1
_TIME = 2


def draw_whole(layers: Sequence[Convolution], store: WeightStore) -> Graph:
    """The decoder, its weights planned by ``codec``: ``latents`` [1, D, frames] -> ``pcm`` [1, samples], float32."""
    g = Graph("codec", store)
    x = direct = g.input("latents", [1, layers[0].inputs, "frames"])
    for layer in layers:
        if layer.name.endswith("res_unit1.conv1"):
            direct = x
        if layer.snake:
            x = _snake(g, x, layer.snake)
        # cutting output_padding less at the end is what the attribute of that name means
        x = _convolve(g, x, layer, [layer.padding, layer.padding - layer.output_padding])
        if ".res_unit" in layer.name and layer.name.endswith(".conv2"):
            x = direct = g.op("Add", direct, x, name=f"codec.{layer.name}.residual")
    g.output(g.op("Squeeze", x, g.ints(1)), "pcm", [1, "samples"])
    return g


def draw_stream(layers: Sequence[Convolution], store: WeightStore) -> Graph:
    """The stateful decoder over the weights that ``codec`` planned.

    Inputs: ``latents`` float32 [1, D, frames]; ``first`` and ``last`` int64 [1], 1 in the first and in the last call of
    a sound and 0 otherwise; ``left.LAYER`` float32 [1, C, n], the state of each layer that has one, zeros for the first
    call. Outputs: ``pcm`` float32 [1, samples] and ``next.LAYER``, the states for the following call (of the last call
    they mean nothing). ``frames`` is at least 1; in a last call that is not the first it may be 0; in a first call that
    is not the last it must suffice for one sample: lookahead_samples // hop + 1 frames.
    """
    return _Stream(layers, store).draw()


class _Stream:
    def __init__(self, layers: Sequence[Convolution], store: WeightStore) -> None:
        self.layers = layers
        self.g = Graph("codec.stream", store)
        self._states: list[tuple[str, str, list[int]]] = []
        self._scaled: dict[tuple[str, int], str] = {}
        self._tails: dict[tuple[int, int], str] = {}

    def draw(self) -> Graph:
        g = self.g
        x = g.input("latents", [1, self.layers[0].inputs, "frames"])
        g.input("first", [1], "int64")
        g.input("last", [1], "int64")
        for layer in self.layers:
            if layer.transposed:
                x = self._upsample(x, layer)
            elif layer.kernel == 1:
                continue  # drawn with the convolution before it, whose residual unit it completes
            elif ".res_unit" in layer.name:
                x = self._residual(x, layer)
            else:
                x, _ = self._convolve(x, layer)
        g.output(g.op("Squeeze", x, g.ints(1)), "pcm", [1, "samples"])
        for value, name, shape in self._states:
            g.output(value, name, list(shape))
        return g

    def _convolve(self, x: str, layer: Convolution) -> tuple[str, str]:
        """The layer's outputs that ``x`` determines; and the inputs they read, starting with the padding before the
        first."""
        held = self._with_context(x, layer, span=(layer.kernel - 1) * layer.dilation, padding=layer.padding)
        read = _snake(self.g, held, layer.snake) if layer.snake else held
        return _convolve(self.g, read, layer, [0, 0]), held

    def _residual(self, x: str, layer: Convolution) -> str:
        g, pointwise = self.g, self.layers[self.layers.index(layer) + 1]
        y, held = self._convolve(x, layer)
        y = _convolve(g, _snake(g, y, pointwise.snake), pointwise, [0, 0])
        padding = layer.padding
        direct = g.op("Slice", held, g.ints(padding), g.ints(-padding), g.ints(_TIME), name=f"{layer.name}.direct")
        return g.op("Add", direct, y, name=f"codec.{pointwise.name}.residual")

    def _upsample(self, x: str, layer: Convolution) -> str:
        g, stride, padding = self.g, layer.stride, layer.padding
        held = self._with_context(x, layer, span=1, padding=1)
        # cut to the outputs for which both inputs are known
        y = _convolve(g, _snake(g, held, layer.snake), layer, [stride, stride])
        # dropped: at the start of a sound the outputs of the padding, at its end those beyond the sound, made by the
        # final zero
        end = g.op("Sub", g.ints(_FAR), self._scale("last", _FAR + stride - padding))
        return g.op("Slice", y, self._scale("first", padding), end, g.ints(_TIME), name=f"codec.{layer.name}.cut")

    def _with_context(self, x: str, layer: Convolution, *, span: int, padding: int) -> str:
        """State, ``x``, and at the end of a sound its zeros, concatenated; plans the state of ``span`` positions."""
        g, channels = self.g, layer.inputs
        left = g.input(f"left.{layer.name}", [1, channels, span])
        if span > padding:
            starts = self._scale("first", span - padding)
            left = g.op("Slice", left, starts, g.ints(span), g.ints(_TIME), name=f"{layer.name}.left")
        held = g.op("Concat", left, x, self._tail(channels, padding), axis=_TIME, name=f"{layer.name}.held")
        state = g.op("Slice", held, g.ints(-span), g.ints(_FAR), g.ints(_TIME), name=f"{layer.name}.state")
        self._states.append((state, f"next.{layer.name}", [1, channels, span]))
        return held

    def _tail(self, channels: int, length: int) -> str:
        """Zeros [1, channels, length] in the last call, [1, channels, 0] in the others."""
        g = self.g
        if (channels, length) not in self._tails:
            shape = g.op("Concat", g.ints(1, channels), self._scale("last", length), axis=0)
            self._tails[channels, length] = g.op("Expand", g.constant(np.zeros((1, 1, 1)), "float32"), shape)
        return self._tails[channels, length]

    def _scale(self, flag: str, factor: int) -> str:
        if factor == 1:
            return flag
        if (flag, factor) not in self._scaled:
            self._scaled[flag, factor] = self.g.op("Mul", flag, self.g.ints(factor), name=f"{flag}.{factor}")
        return self._scaled[flag, factor]


def _snake(g: Graph, x: str, name: str) -> str:
    """``x + sin(alpha x)^2 / (alpha + 1e-9)`` (Ziyin et al. 2020; the small term as in DAC)."""
    sine = g.op("Sin", g.op("Mul", x, g.weight(f"codec.{name}.alpha")))
    return g.op("Add", x, g.op("Mul", g.op("Mul", sine, sine), g.weight(f"codec.{name}.gain")))


def _convolve(g: Graph, x: str, layer: Convolution, pads: list[int]) -> str:
    return g.op(
        "ConvTranspose" if layer.transposed else "Conv",
        x,
        g.weight(f"codec.{layer.name}.weight"),
        g.weight(f"codec.{layer.name}.bias"),
        name=f"codec.{layer.name}",
        kernel_shape=[layer.kernel],
        strides=[layer.stride],
        dilations=[layer.dilation],
        pads=pads,
    )
