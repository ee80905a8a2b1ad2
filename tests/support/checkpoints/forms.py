"""The forms in which trainers, DeepSpeed's ``zero_to_fp32.py`` and hubs leave the same weights."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from support.runs import CHECKPOINT

State = Mapping[str, torch.Tensor]
#: Bytes of a shard: the tiny run's weights make several.
SHARD = 100_000
SCRIPT = "zero_to_fp32.py"


def _saved(name: str, pack: Callable[[State], Any]) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        torch.save(pack(state), folder / name)
        return folder / name

    return write


def _wrapped(state: State) -> dict[str, torch.Tensor]:
    """Named as in the state dict of a DataParallel or a DeepSpeed engine."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


def _flat(state: State) -> OrderedDict[str, torch.Tensor]:
    """As ``Module.state_dict`` gives it, with the versions of its modules."""
    flat = OrderedDict(state)
    flat._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return flat


def write_safetensors(state: State, folder: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"a": "b"})
    return folder / "model.safetensors"


def write_shards(state: State, folder: Path, *, kind: str = "safetensors") -> Path:
    """Shards and their index, divided as ``zero_to_fp32.py`` divides them; ``kind``: "safetensors" or "bin"."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    split = split_torch_state_dict_into_shards(
        dict(state), filename_pattern=f"{stem}{{suffix}}.{kind}", max_shard_size=SHARD
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: state[name].contiguous() for name in names}
        save_file(part, folder / file, {"format": "pt"}) if kind == "safetensors" else torch.save(part, folder / file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}))
    return index


#: Each writes a state dict into a folder, and returns what ``--weights`` names.
FORMS: dict[str, Callable[[State, Path], Path]] = {
    "module": _saved(CHECKPOINT, lambda state: {"module": dict(state), "global_steps": 10}),
    "module, wrapped": _saved(CHECKPOINT, lambda state: {"module": _wrapped(state), "global_steps": 10}),
    "flat": _saved("model.pt", _flat),
    "flat, wrapped": _saved("model.pt", _wrapped),
    "state_dict": _saved("last.pt", lambda state: {"state_dict": _flat(state), "epoch": 3}),
    "state_dict, wrapped": _saved("last.pt", lambda state: {"state_dict": _wrapped(state), "epoch": 3}),
    "bin": _saved("pytorch_model.bin", dict),
    "bin shards": lambda state, folder: write_shards(state, folder, kind="bin"),
    "safetensors": write_safetensors,
    "safetensors shards": write_shards,
    "safetensors shards, wrapped": lambda state, folder: write_shards(_wrapped(state), folder),
}


def write_zero3(state: State, folder: Path, *, gpus: int = 2) -> Path:
    """What ZeRO-3 leaves in a checkpoint's folder: parts in the folder that ``latest`` names, and the script that
    gathers them. Returns the first part."""
    tag = folder / "global_step10"
    tag.mkdir(parents=True)
    (folder / "latest").write_text(f"{tag.name}\n")
    (folder / SCRIPT).write_text("# DeepSpeed's\n")
    for gpu in range(gpus):
        placeholders = {name: torch.empty(0, dtype=tensor.dtype) for name, tensor in state.items()}
        torch.save({"module": placeholders}, tag / f"zero_pp_rank_{gpu}_mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": {}}, tag / f"zero_pp_rank_{gpu}_mp_rank_00_optim_states.pt")
    return tag / "zero_pp_rank_0_mp_rank_00_model_states.pt"
