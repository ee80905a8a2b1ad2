"""The convolutions of the DAC decoder: their sizes and receptive fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Dilations of the three residual units of a block (DAC, Kumar et al. 2023, appendix A).
DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class Convolution:
    """One convolution of the decoder; ``snake`` names the activation before it, if there is one."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    padding: int
    snake: str = ""
    stride: int = 1
    dilation: int = 1
    output_padding: int = 0
    transposed: bool = False

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """Torch's order, which is also ONNX's: [out, in, kernel], and [in, out, kernel] when transposed."""
        return (self.inputs, self.outputs, self.kernel) if self.transposed else (self.outputs, self.inputs, self.kernel)

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Output positions that change when inputs ``first`` .. ``last`` change, both ends included."""
        span = (self.kernel - 1) * self.dilation
        if self.transposed:
            return first * self.stride - self.padding, last * self.stride - self.padding + span
        return first + self.padding - span, last + self.padding


def decoder_convolutions(latent_size: int, width: int, ratios: Sequence[int]) -> list[Convolution]:
    """The decoder's convolutions in execution order."""
    layers = [Convolution("conv1", latent_size, width, kernel=7, padding=3)]
    for index, ratio in enumerate(ratios):
        block = f"block.{index}"
        inputs, outputs = width // 2**index, width // 2 ** (index + 1)
        # kernel 2r, padding ceil(r/2), output padding r mod 2: (T-1)r - 2 ceil(r/2) + 2r + r mod 2 = T r, exactly
        layers.append(
            Convolution(
                f"{block}.conv_t1",
                inputs,
                outputs,
                kernel=2 * ratio,
                padding=math.ceil(ratio / 2),
                snake=f"{block}.snake1",
                stride=ratio,
                output_padding=ratio % 2,
                transposed=True,
            )
        )
        for unit, dilation in enumerate(DILATIONS, start=1):
            name = f"{block}.res_unit{unit}"
            layers.append(
                Convolution(
                    f"{name}.conv1", outputs, outputs, 7, 3 * dilation, snake=f"{name}.snake1", dilation=dilation
                )
            )
            layers.append(Convolution(f"{name}.conv2", outputs, outputs, 1, 0, snake=f"{name}.snake2"))
    layers.append(Convolution("conv2", width // 2 ** len(ratios), 1, kernel=7, padding=3, snake="snake1"))
    return layers


def frame_reach(layers: Sequence[Convolution]) -> tuple[int, int]:
    """First and last sample, counted from a frame's own first sample, that change when the frame changes.

    A residual unit's skip connection lies within the receptive field of its convolutions, so their chain decides.
    """
    first = last = 0
    for layer in layers:
        first, last = layer.reach(first, last)
    return first, last


def frame_context(layers: Sequence[Convolution]) -> tuple[int, int]:
    """How many frames before and after a frame its own samples depend on."""
    hop = math.prod(layer.stride for layer in layers)
    first, last = frame_reach(layers)
    return max(last // hop, 0), max((hop - 1 - first) // hop, 0)


def lookahead_samples(layers: Sequence[Convolution]) -> int:
    """Samples that depend on later frames: after n frames, the first n * hop - lookahead samples are final."""
    return -frame_reach(layers)[0]
