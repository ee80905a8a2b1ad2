"""Streams checkpoint tensors unchanged into safetensors files: other libraries' names, one dtype, no padding.

A file is laid out first and then written block by block, so that only one block of rows is in memory at any time.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...runtime.errors import ExportError
from ..run.checkpoint import TensorSource

#: Dtype of a file -> safetensors' name for it, bytes per number.
STORED = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
#: Numbers read at a time: 32 MiB in float32.
BLOCK = 8 * 2**20


@dataclass(frozen=True)
class Stacked:
    """A tensor of a file: the checkpoint's ``sources``, concatenated along the first dimension."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]

    def nbytes(self, dtype: str) -> int:
        return math.prod(self.shape) * STORED[dtype][1]


def in_files(tensors: Sequence[Stacked], dtype: str, limit: int) -> list[list[Stacked]]:
    """The tensors in order, in files of at most ``limit`` bytes each; a larger tensor has a file of its own."""
    files: list[list[Stacked]] = []
    size = 0
    for tensor in tensors:
        nbytes = tensor.nbytes(dtype)
        if not files or size + nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += nbytes
    return files


def write_stacked(path: Path, tensors: Sequence[Stacked], source: TensorSource, dtype: str) -> Iterator[int]:
    """Write one file; yields the bytes written after each block.

    Raises :class:`ExportError` for a tensor that is missing, of another shape, not finite, or too large for float16.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        _check(tensor, source)
        begin, end = end, end + tensor.nbytes(dtype)
        header[tensor.name] = {
            "dtype": STORED[dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the first number is aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for name in tensor.sources:
                for block in _blocks(source, name):
                    stored = _as_stored(name, block, dtype)
                    file.write(stored)
                    yield len(stored)


def _check(tensor: Stacked, source: TensorSource) -> None:
    shapes = [source.shape(name) for name in tensor.sources]
    rows = sum(shape[0] for shape in shapes)
    if any(shape[1:] != tensor.shape[1:] for shape in shapes) or rows != tensor.shape[0]:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in zip(tensor.sources, shapes, strict=True))
        raise ExportError(f"tensor {tensor.name}: {list(tensor.shape)} is expected, the checkpoint has {found}")


def _blocks(source: TensorSource, name: str) -> Iterator[np.ndarray]:
    rows, *rest = source.shape(name)
    step = max(BLOCK // max(math.prod(rest), 1), 1)
    for first in range(0, rows, step):
        yield source.read(name, slice(first, first + step))


def _as_stored(name: str, values: np.ndarray, dtype: str) -> bytes:
    if dtype == "float32":
        return values.tobytes()
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))
    if dtype == "float16" and not torch.isfinite(rounded).all():
        raise ExportError(
            f"tensor {name}: a weight of {np.abs(values).max():g} does not fit float16, whose largest number is 65504; "
            "export with --precision bf16"
        )
    return rounded.view(torch.int16).numpy().tobytes()
