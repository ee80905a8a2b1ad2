"""Reads a safetensors file tensor by tensor: https://huggingface.co/docs/safetensors

The library maps the file and checks its header: each byte belongs to one tensor. The format has no checksums.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from ...runtime.errors import ExportError
from ...runtime.files.reading import MOST_HEADER, MOST_HEADER_VALUES, check_file, check_values, first_line
from .mapped_file import MappedFile, check_name


class SafetensorsFile(MappedFile):
    """The tensors of ``model.safetensors``, or of one of its shards."""

    def __init__(self, path: Path) -> None:
        try:
            _check_header(path)
            with safe_open(path, "pt") as file:
                names: list[str] = file.keys()
                tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in names}
        except Exception as error:  # a damaged file may raise any exception of the library or torch
            reason = first_line(error)
            raise ExportError(f"{path}: not a readable safetensors file ({reason}); copy it again") from error
        if not tensors:
            raise ExportError(f"{path}: holds no tensors; give a file of weights")
        for name in tensors:
            check_name(path, name, "it")
        super().__init__(path, tensors)


def _check_header(path: Path) -> None:
    """Refuse a header beyond the limits before anything parses it."""
    size = check_file(path).st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"it has {size} bytes, and its header should have {length}")
        if length > MOST_HEADER:
            raise ValueError(f"its header has {length} bytes, and at most {MOST_HEADER} are read")
        check_values(file.read(length), MOST_HEADER_VALUES)
