"""Reads the index of a checkpoint in several files: which tensor is in which.

``model.safetensors.index.json`` and ``pytorch_model.bin.index.json`` have the same form:
https://huggingface.co/docs/transformers/big_models
"""

from __future__ import annotations

import os
from pathlib import Path

from ...runtime.errors import ExportError
from ...runtime.files.writing import resolved
from .config import Fields, read_json


def is_index(path: Path) -> bool:
    return path.suffix == ".json"


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint: itself, or those that its index lists."""
    return list(dict.fromkeys(read_index(path).values())) if is_index(path) else [path]


def read_index(path: Path) -> dict[str, Path]:
    """File of each tensor. All of them exist, and lie in the folder of the index or, where both are links, of the file
    that it is a link to; raises :class:`ExportError` otherwise."""
    fields = Fields(path, read_json(path)).section("weight_map")
    if not fields.values:
        raise ExportError(f"{path}: weight_map lists no tensors; copy it again")
    for name, file in fields.values.items():
        if not isinstance(file, str) or not file.isprintable() or file in ("", ".", "..") or Path(file).name != file:
            fields.refuse(name, "the name of a file beside the index is expected")
    files = {file: path.with_name(file) for file in fields.values.values()}
    missing = sorted(name for name, file in files.items() if not os.path.lexists(file))
    if missing:
        count = f"{len(missing)} of its {len(files)} files"
        raise ExportError(f"{path}: {missing[0]} is missing ({count}); copy what is missing beside the index")
    homes = {resolved(path.parent), resolved(path).parent}  # a model in a Hugging Face cache is a folder of links
    for name, file in files.items():
        if not any(resolved(file).is_relative_to(home) for home in homes):
            raise ExportError(f"{path}: {name} is a link to {resolved(file)}, outside the folder; copy the file here")
    return {name: files[file] for name, file in fields.values.items()}
