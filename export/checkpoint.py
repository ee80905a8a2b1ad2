"""Reading a DeepSpeed checkpoint, mapped, tensor by tensor.

The file is one zip of storages; ``torch.load(mmap=True)`` maps it, so a tensor costs memory only while its values are
being converted. ``weights_only`` means that no code in the file is ever run.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..runtime.errors import ExportError


class TensorSource(Protocol):
    """What the parts of the exporter read weights from."""

    def __contains__(self, name: str) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; an :class:`ExportError` naming it if it is missing."""
        ...

    def dtype(self, name: str) -> str:
        """What a tensor is stored in: "float32", "bfloat16", ..."""
        ...

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Values as float32, of all rows or of a slice of the first dimension; the caller must not write into them."""
        ...


class Checkpoint:
    """The ``["module"]`` state dict of ``mp_rank_00_model_states.pt``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = _load(path)
        if not isinstance(loaded, dict) or not isinstance(loaded.get("module"), dict):
            raise ExportError(f'{path}: holds no "module" state dict; a DeepSpeed model_states file is expected')
        self._tensors: dict[str, torch.Tensor] = loaded["module"]
        for name, tensor in self._tensors.items():
            if not isinstance(name, str):
                raise ExportError(f"{path}: module has the key {name!r}, not a tensor's name")
            if not isinstance(tensor, torch.Tensor):
                raise ExportError(f"{path}: module[{name!r}] is a {type(tensor).__name__}, not a tensor")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).shape)

    def dtype(self, name: str) -> str:
        return str(self._tensor(name).dtype).removeprefix("torch.")

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        tensor = self._tensor(name).detach()
        values = (tensor[rows] if tensor.ndim else tensor).to(torch.float32).contiguous().numpy()
        # max/min propagate NaN and see infinities without making a mask as large as the tensor
        if values.size and not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise ExportError(f"{self.path}: tensor {name} holds NaN or infinity; the training run diverged")
        return values

    def _tensor(self, name: str) -> torch.Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise ExportError(f"{self.path}: tensor {name} is missing") from None


def _load(path: Path) -> Any:
    try:
        _check_whole(path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file; give the folder of a training run") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) (\S+)", str(error))
        raise ExportError(
            f"{path}: holds {found[1] if found else 'something'}, neither a tensor nor a plain value; refused, and "
            "nothing in it was run: save the checkpoint again without it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"{path}: not a readable checkpoint ({reason}); copy it again") from error


def _check_whole(path: Path) -> None:
    """Refuse what is no zip with its directory, which torch would only describe by what goes wrong next."""
    with open(path, "rb") as file:
        start = file.read(2)
        if not start:
            raise ExportError(f"{path}: the file is empty (0 bytes); copy it again")
        if not zipfile.is_zipfile(file):
            size = path.stat().st_size
            if start == b"PK":
                raise ExportError(f"{path}: truncated at {size} bytes (its end is missing); copy it again")
            raise ExportError(
                f"{path}: not a checkpoint as torch.save writes it (since version 1.6); give a model_states file"
            )


def read_conv(source: TensorSource, prefix: str) -> np.ndarray:
    """Weight of a (transposed) convolution, with weight normalisation folded in where the checkpoint keeps it apart.

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
