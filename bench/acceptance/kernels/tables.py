"""Random tables of a shape, on the host and on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....runtime.engines.device.device import Device, number_code
from ....runtime.vocabulary import STREAMS
from .numbers import Numbers
from .trials import Shape


class Tables:
    """An embedding table in bfloat16 and codebooks in float32, of a seed."""

    def __init__(self, shape: Shape, seed: int) -> None:
        random = Numbers(seed)
        self.shape = shape
        self.embedding = random.bfloat16((shape.vocabulary, shape.hidden))
        self.rvq = random.normal((STREAMS, shape.codebook, shape.latent))
        self.bias = random.normal((shape.latent,))


class DeviceTables:
    """The same on a device, as the kernels take them."""

    def __init__(self, device: Device, tables: Tables) -> None:
        shape, cuda = tables.shape, device.cuda
        self.device, self.shape = device, shape
        self._kept = [device.uploaded(table) for table in (tables.embedding, tables.rvq, tables.bias)]
        places = [buffer.address for buffer in self._kept]
        self.tables: Any = cuda.Tables(
            embedding=places[0],
            embedding_number=number_code(cuda, "bfloat16"),
            rvq=places[1],
            rvq_bias=places[2],
            vocabulary=shape.vocabulary,
            hidden=shape.hidden,
            latent=shape.latent,
        )
        self.layout: Any = cuda.Layout(
            codebook_size=shape.codebook, text_size=shape.text, audio_base=shape.audio_base, text_base=256
        )


def float_bits(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values, which distinguish zeros and NaNs that compare otherwise."""
    return values.view(np.int32)
