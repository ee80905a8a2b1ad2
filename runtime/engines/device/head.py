"""The output heads in our own kernel on a device: no library call between the body and the sampler, so that head and
sampler fit into one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...bundle.bundle import Bundle
from ...vocabulary import Modality
from .device import Buffer, Device, number_code

#: Inputs that share a scale in the kernel's int8 format (csrc/cuda/launch.h).
BLOCK = 32


class FusedHead:
    """A head's weights on the device, as the bundle stores them."""

    def __init__(
        self, device: Device, weights: np.ndarray, scales: np.ndarray | None, bias: np.ndarray | None, number: str
    ) -> None:
        """``weights`` [inputs, columns]; ``scales`` float16 [inputs / 32, columns] for ``number`` "int8"."""
        self._device, self._number = device, number
        self.inputs, self.columns = weights.shape
        self._weights = device.uploaded(weights)
        self._scales = None if scales is None else device.uploaded(scales)
        self._bias = None if bias is None else device.uploaded(bias)

    def bound(self, hidden: Buffer, logits: Buffer, branches: int) -> Callable[[], None]:
        """Logits float32 [branches, columns] of hidden states float32 [branches, inputs]: a call without arguments.

        The branches stay separate, and the sampler mixes them as it reads: a check then compares the very logits that
        are drawn from.
        """
        cuda = self._device.cuda
        launch: Any = cuda.HeadLaunch(
            hidden=hidden.address,
            sequences=1,
            branches=branches,
            inputs=self.inputs,
            columns=self.columns,
            weights=self._weights.address,
            number=number_code(cuda, self._number),
            weight_stride=self.columns,
            scales=0 if self._scales is None else self._scales.address,
            scale_stride=0 if self._scales is None else self.columns,
            bias=0 if self._bias is None else self._bias.address,
            logits=logits.address,
            logits_stride=self.columns,
        )
        stream = self._device.stream.handle
        return lambda: launch(stream)


def fused_head(device: Device, bundle: Bundle, modality: Modality, columns: int) -> FusedHead | None:
    """The head of a modality for our kernel; None if the kernel does not support its format or shape."""
    name = f"head.{modality}"
    numbers = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
    number = numbers.get(bundle.manifest.parts[name].precision)
    weights = bundle.table(name)
    if number is None or columns % 2 or weights.shape[1] != columns:
        return None
    scales = None
    if number == "int8":
        scales = bundle.table(f"{name}.scale")
        if scales.shape != (len(weights) // BLOCK, columns):
            return None
    bias = bundle.table(f"{name}.bias") if modality == "audio" else None
    return FusedHead(device, weights, scales, bias, number)
