"""Reads a file of ``torch.save`` tensor by tensor.

The file is one zip of storages; ``torch.load(mmap=True)`` maps it. ``weights_only`` means that no code in the file is
ever run.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import ExportError
from ...runtime.files.reading import check_file, first_line
from .mapped_file import MappedFile, check_name
from .records import Records

#: How often the same values may appear in a checkpoint under several names: tied tables appear twice.
MOST_SHARED = 4
#: Where trainers put the state dict, unless the file is one: DeepSpeed, and most others.
_WRAPPERS = ("module", "state_dict")
_EXPECTED = 'a state dict is expected: flat, under "module" (as DeepSpeed saves it) or under "state_dict"'


class TorchFile(MappedFile):
    """The state dict in ``mp_rank_00_model_states.pt``, ``pytorch_model.bin`` or another file of ``torch.save``."""

    def __init__(self, path: Path) -> None:
        size = _check_whole(path)
        self._records = Records(path)
        tensors = _state_dict(path, _load(path, "cpu", mmap=True))
        super().__init__(path, tensors)
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        if nbytes > MOST_SHARED * size:
            raise ExportError(
                f"{path}: its tensors are {nbytes} bytes in a file of {size}: they share values more than "
                f"{MOST_SHARED} times over; save each separately"
            )
        # a load without values is quick and shows where they are, which a mapped tensor does not
        places = _state_dict(path, _load(path, "meta", mmap=False))
        self._starts = {name: _start(tensor) for name, tensor in places.items()}

    def verify(self, name: str) -> None:
        self._records.check(self._starts[name], self._tensors[name].untyped_storage().nbytes(), f"tensor {name}")


def _state_dict(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    """The state dict of what was loaded: tensors, under names short enough for a message."""
    if not isinstance(loaded, dict):
        raise ExportError(f"{path}: holds a {type(loaded).__name__}; {_EXPECTED}")
    wrappers = [key for key in _WRAPPERS if isinstance(loaded.get(key), dict)]
    if len(wrappers) > 1:
        raise ExportError(f'{path}: holds two state dicts, "module" and "state_dict"; save the one that was trained')
    where = wrappers[0] if wrappers else "it"
    state = loaded[where] if wrappers else loaded
    if not state:
        raise ExportError(f"{path}: holds no tensors; {_EXPECTED}")
    for name, tensor in state.items():
        check_name(path, name, where)
        if not isinstance(tensor, torch.Tensor):
            at = f"{where}[{name!r}]" if wrappers else f'"{name}"'
            raise ExportError(f"{path}: {at} is a {type(tensor).__name__}, not a tensor; {_EXPECTED}")
    return dict(state)


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
    raise ExportError(
        f"{path}: not a checkpoint as torch.save writes it (since version 1.6), nor named .safetensors; give a file of "
        "weights"
    )
