"""Reads the weights of a checkpoint, whatever form it has, tensor by tensor.

A form is a file of torch or of safetensors, or several with an index, and what its trainer put around the model's own
names. All of them are mapped, and all give the same tensors under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ...runtime.errors import ExportError
from ...runtime.files.reading import shown
from .mapped_file import MappedFile
from .safetensors_file import SafetensorsFile
from .shards import is_index, read_index
from .torch_file import TorchFile

#: Begins every name if what was saved is a model within another: a ``DataParallel``, a DeepSpeed engine.
WRAPPED = "module."


class TensorSource(Protocol):
    """Where the parts of the exporter read weights from."""

    def __contains__(self, name: str) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; raises an :class:`ExportError` naming it if it is missing."""
        ...

    def dtype(self, name: str) -> str:
        """Dtype that a tensor is stored in: "float32", "bfloat16", ..."""
        ...

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Values as float32, of all rows or of a slice of the first dimension; the caller must not write into them."""
        ...


class Checkpoint:
    """The state dict of a checkpoint, under the names that the model itself has."""

    def __init__(self, path: Path) -> None:
        """``path``: a file, or the index of several. Raises :class:`ExportError`, naming the file and the tensor."""
        self.path = path
        index = read_index(path) if is_index(path) else None
        stored: dict[str, MappedFile] = {}
        for part in [path] if index is None else dict.fromkeys(index.values()):
            file = SafetensorsFile(part) if part.suffix == ".safetensors" else TorchFile(part)
            for name in file:
                if name in stored:
                    both = f"{stored[name].path.name} and in {part.name}"
                    raise ExportError(f"{path}: tensor {name} is in {both}; remove it from one of them")
                stored[name] = file
        if index is not None:
            _check_index(path, index, stored)
        prefix = _prefix(path, stored)
        #: Name in the model -> its file, and its name there.
        self._places = {name.removeprefix(prefix): (file, name) for name, file in stored.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._place(name)
        return file.shape(stored)

    def dtype(self, name: str) -> str:
        file, stored = self._place(name)
        return file.dtype(stored)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        file, stored = self._place(name)
        return file.read(stored, rows)

    def _place(self, name: str) -> tuple[MappedFile, str]:
        try:
            return self._places[name]
        except KeyError:
            raise ExportError(f"{self.path}: tensor {name} is missing") from None


def _check_index(path: Path, index: Mapping[str, Path], stored: Mapping[str, MappedFile]) -> None:
    """Each tensor is where the index says, and none is elsewhere."""
    absent = [name for name, file in index.items() if name not in stored or stored[name].path != file]
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        place = index[absent[0]].name
        raise ExportError(
            f"{path}: tensor {shown(absent[0])}{more} is not in {place}, as it says; copy the files again"
        )
    if unlisted := [name for name in stored if name not in index]:
        raise ExportError(
            f"{path}: tensor {unlisted[0]} of {stored[unlisted[0]].path.name} is not listed; copy the files again"
        )


def _prefix(path: Path, names: Mapping[str, MappedFile]) -> str:
    """What begins the name of every tensor, and is no part of the model's own names."""
    wrapped = [name for name in names if name.startswith(WRAPPED)]
    if not wrapped:
        return ""
    if len(wrapped) < len(names):
        bare = next(name for name in names if not name.startswith(WRAPPED))
        differing = f'{wrapped[0]} begins with "{WRAPPED}", that of {bare} does not'
        raise ExportError(f"{path}: the name of {differing}; save the state dict of one model")
    return WRAPPED


def read_conv(source: TensorSource, prefix: str) -> np.ndarray:
    """Weight of a (transposed) convolution, with weight normalisation folded in if the checkpoint stores it separately.

    ``weight = g * v / ||v||``, the norm over all dimensions but the first (Salimans and Kingma 2016); torch normalises
    transposed convolutions over the same dimensions.
    """
    if f"{prefix}.weight" in source:
        return source.read(f"{prefix}.weight")
    for g_name, v_name in weight_norm_names(prefix):
        if g_name in source and v_name in source:
            g, v = source.read(g_name).astype(np.float64), source.read(v_name).astype(np.float64)
            norm = np.sqrt((v**2).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
            return (g * v / norm).astype(np.float32)
    raise ExportError(f"tensor {prefix}.weight is missing (and no weight-normed pair stands for it)")


def weight_norm_names(prefix: str) -> list[tuple[str, str]]:
    """The two spellings in which torch saves a weight-normed tensor: (magnitude, direction)."""
    return [
        (f"{prefix}.parametrizations.weight.original0", f"{prefix}.parametrizations.weight.original1"),
        (f"{prefix}.weight_g", f"{prefix}.weight_v"),
    ]
