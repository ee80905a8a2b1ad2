"""The tensors of one mapped file: a tensor costs memory only while its values are being converted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from ...runtime.errors import ExportError
from ...runtime.files.reading import shown
from .weights import how_to_gather

#: Dtypes of weights. Other types need scales, or a meaning, that a tensor itself does not carry.
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Most characters of a tensor's name.
MOST_NAME = 160


class MappedFile:
    """A file of tensors by name, each of which a bundle can be made of."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """``tensors`` are views of the mapped file; :class:`ExportError` for one that has no plain values."""
        self.path = path
        self._tensors = tensors
        for name, tensor in tensors.items():
            if reason := _unsupported(tensor):
                raise ExportError(f"{path}: tensor {name} {reason}")
            if not tensor.numel():
                raise ExportError(
                    f"{path}: tensor {name} has no values (shape {list(tensor.shape)}), as ZeRO-3 leaves one whose "
                    f"values are divided among GPUs; {how_to_gather(path.parent)}"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Rows of a tensor, as float32; the caller must not write into them."""
        tensor = self._tensors[name].detach()
        if tensor.dtype not in WEIGHT_DTYPES:
            raise ExportError(
                f"{self.path}: tensor {name} is {self.dtype(name)}; weights are expected as "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in WEIGHT_DTYPES)}: save it as one of them"
            )
        self.verify(name)
        values = (tensor[rows] if tensor.ndim else tensor).to(torch.float32).contiguous().numpy()
        # max and min propagate NaN and find infinities without a mask as large as the tensor
        if values.size and not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise ExportError(f"{self.path}: tensor {name} holds NaN or infinity; the training run diverged")
        return values

    def verify(self, name: str) -> None:
        """Compare a tensor's values with their checksum, where a file has checksums."""


def check_name(path: Path, name: object, where: str) -> None:
    """Refuse a tensor's name that is none, or that no message can hold; ``where``: what has it as a key."""
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME or not name.isprintable():
        raise ExportError(f"{path}: {where} has the key {shown(name)}, not a tensor's name")


def _unsupported(tensor: torch.Tensor) -> str | None:
    """Why a bundle cannot be made of a tensor, whatever it stands for; None if it can."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is {kind}; save it dense (Tensor.to_dense)"
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device}, where it has no values; save the checkpoint with them"
    if tensor.is_quantized:
        return f"is quantised ({str(tensor.dtype).removeprefix('torch.')}); save it as it was trained"
    if tensor.is_complex() or tensor.is_neg():
        return "is complex, or part of a complex tensor; weights are real numbers"
    if tensor.ndim and math.prod(tensor.shape) * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"repeats its values (shape {list(tensor.shape)}, strides {list(tensor.stride())}); save it contiguous"
    return None
