"""Reads a memory-mapped DeepSpeed checkpoint tensor by tensor.

The file is one zip of storages; ``torch.load(mmap=True)`` maps it, so a tensor costs memory only while its values are
being converted. ``weights_only`` means that no code in the file is ever run.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ...runtime.errors import ExportError
from ...runtime.files.reading import check_file, first_line, shown
from .records import Records

#: Dtypes of weights. Other types need scales, or a meaning, that a tensor itself does not carry.
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Most characters of a tensor's name.
MOST_NAME = 160
#: How often the same values may appear in a checkpoint under several names: tied tables appear twice.
MOST_SHARED = 4


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
    """The ``["module"]`` state dict of ``mp_rank_00_model_states.pt``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = _check_whole(path)
        self._records = Records(path)
        self._tensors = _module(path, _load(path, "cpu", mmap=True))
        for name, tensor in self._tensors.items():
            if reason := _unsupported(tensor):
                raise ExportError(f"{path}: tensor {name} {reason}")
        nbytes = sum(tensor.nbytes for tensor in self._tensors.values())
        if nbytes > MOST_SHARED * size:
            raise ExportError(
                f"{path}: its tensors are {nbytes} bytes in a file of {size}: they share values more than "
                f"{MOST_SHARED} times over; save each separately"
            )
        # a load without values is quick and shows where they are, which a mapped tensor does not
        places = _module(path, _load(path, "meta", mmap=False))
        self._starts = {name: _start(tensor) for name, tensor in places.items()}

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
        if tensor.dtype not in WEIGHT_DTYPES:
            raise ExportError(
                f"{self.path}: tensor {name} is {self.dtype(name)}; weights are expected as "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in WEIGHT_DTYPES)}: save it as one of them"
            )
        self._records.check(self._starts[name], tensor.untyped_storage().nbytes(), f"tensor {name}")
        values = (tensor[rows] if tensor.ndim else tensor).to(torch.float32).contiguous().numpy()
        # max and min propagate NaN and find infinities without a mask as large as the tensor
        if values.size and not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise ExportError(f"{self.path}: tensor {name} holds NaN or infinity; the training run diverged")
        return values

    def _tensor(self, name: str) -> torch.Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise ExportError(f"{self.path}: tensor {name} is missing") from None


def _module(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    """The state dict of what was loaded: tensors, under names short enough for a message."""
    if not isinstance(loaded, dict) or not isinstance(loaded.get("module"), dict):
        raise ExportError(f'{path}: holds no "module" state dict; a DeepSpeed model_states file is expected')
    for name, tensor in loaded["module"].items():
        if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME or not name.isprintable():
            raise ExportError(f"{path}: module has the key {shown(name)}, not a tensor's name")
        if not isinstance(tensor, torch.Tensor):
            raise ExportError(f"{path}: module[{name!r}] is a {type(tensor).__name__}, not a tensor")
    return dict(loaded["module"])


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


def _start(tensor: torch.Tensor) -> int:
    """The file offset at which the storage of a tensor begins; the tensor was loaded without values."""
    return int(getattr(tensor.untyped_storage(), "_checkpoint_offset", -1))


def _load(path: Path, device: str, *, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location=device, mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) (\S{1,200})", str(error))
        raise ExportError(
            f"{path}: holds {found[1] if found else 'something'}, neither a tensor nor a plain value; refused, and "
            "nothing in it was run: save the checkpoint again without it"
        ) from error
    except Exception as error:  # a damaged file may raise any exception of torch, pickle or Python
        raise ExportError(f"{path}: not a readable checkpoint ({first_line(error)}); copy it again") from error


def _check_whole(path: Path) -> int:
    """Size of the file; refuses anything but a zip with its directory, which torch would only describe by what goes
    wrong next."""
    try:
        size = check_file(path).st_size
        with open(path, "rb") as file:
            start = file.read(2)
            if start and zipfile.is_zipfile(file):
                return size
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file; give the folder of a training run") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: not a readable checkpoint ({first_line(error)}); copy it again") from error
    if not start:
        raise ExportError(f"{path}: the file is empty (0 bytes); copy it again")
    if start == b"PK":
        raise ExportError(f"{path}: truncated at {size} bytes (its end is missing); copy it again")
    raise ExportError(f"{path}: not a checkpoint as torch.save writes it (since version 1.6); give a model_states file")


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
