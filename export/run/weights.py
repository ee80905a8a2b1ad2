"""Finds the weights of a training run: a file, or the index of the several files that hold them.

Training leaves ``mp_rank_00_model_states.pt``. What gathers or converts a checkpoint leaves ``pytorch_model.bin`` or
``model.safetensors``, in one file or in shards with an index. Two of them need not hold the same numbers (a gathered
checkpoint has the optimizer's float32 weights, the one that it was gathered from their bfloat16 copies), so none is
preferred.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.errors import ExportError
from ...runtime.files.reading import first_line, read_text

WEIGHTS_FILE = "mp_rank_00_model_states.pt"
#: What an index adds to the name that its shards would have as one file.
INDEX = ".index.json"
#: Names of weights, wherever they lie.
NAMES = (
    WEIGHTS_FILE,
    *(name + ending for name in ("pytorch_model.bin", "model.safetensors") for ending in ("", INDEX)),
)
#: Most bytes of the file ``latest``, in which DeepSpeed names the folder that it saved last.
MOST_TAG = 255
_STEP = re.compile(r"(?:step_|global_step)(\d{1,18})")
#: One file of several: what is 1 of 1 is whole.
_SHARD = re.compile(r"(.+)-\d{5,}-of-(?!0*1\.)\d{5,}(\.bin|\.safetensors)")
#: The part of a ZeRO-3 checkpoint that one GPU held.
_PART = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_STATES = re.compile(r".*_(model|optim)_states\.pt")


@dataclass
class _Found:
    """What lies in a folder: weights or their index, parts of ZeRO-3, shards (which count only through an index)."""

    weights: list[Path] = field(default_factory=list)
    parts: list[Path] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.weights or self.parts or self.shards)

    def __iadd__(self, other: _Found) -> _Found:
        self.weights += other.weights
        self.parts += other.parts
        self.shards += other.shards
        return self

    def only(self, where: Path) -> Path:
        """The weights; :class:`ExportError` if there are several, or none that can be read as they are."""
        if len(self.weights) > 1:
            names = [str(path.relative_to(where)) for path in self.weights]
            more = f" (and {len(names) - 2} more)" if len(names) > 2 else ""
            raise ExportError(
                f"{where}: holds more than one checkpoint, {names[0]} and {names[1]}{more}; choose with --weights FILE"
            )
        if self.weights:
            return self.weights[0]
        if self.parts:
            raise ExportError(_in_parts(self.parts[0]))
        raise ExportError(
            f"{self.shards[0]}: a shard without its index, {_index_of(self.shards[0])}; copy it into the folder"
        )


def find_weights(run: Path, step: int | None) -> tuple[Path, int | None]:
    """The weights of a run, and the step that a folder gives for them: ``step``, the one that DeepSpeed's file
    ``latest`` names if there is such a file beside the steps, or else the newest."""
    here = _look(run, below=False)
    if (here.weights or here.parts) and step is None:
        return here.only(run), None
    folders = [folder for folder in (run, run / "checkpoints") if folder.is_dir()]
    steps: dict[int, _Found] = {}
    for entry in (entry for folder in folders for entry in _entries(folder, below=False)):
        match = _STEP.fullmatch(entry.name)
        # a step whose save was interrupted has a folder but no weights, and cannot be exported
        if match and entry.is_dir() and (found := _saved_last(entry, _look(entry, below=True))):
            known = steps.setdefault(int(match[1]), _Found())
            known += found
    if not steps:
        loose = here or _loose(run)
        if not loose:
            raise ExportError(
                f"{run}: holds neither {WEIGHTS_FILE} nor checkpoints/step_N/.../{WEIGHTS_FILE}, and none of "
                f"{', '.join(NAMES[1:])}; name the weights with --weights"
            )
        weights = loose.only(run)
        if step is not None:
            raise ExportError(f"{weights}: no folder above it gives its step; leave out --step {step}")
        return weights, None
    if step is None:
        last = next(filter(None, map(_latest, folders)), "")
        match = _STEP.fullmatch(last)
        step = int(match[1]) if match and int(match[1]) in steps else max(steps)
    if step not in steps:
        numbers = ", ".join(str(number) for number in sorted(steps))
        raise ExportError(f"{run}: no checkpoint of step {step}; steps found: {numbers}")
    return steps[step].only(run), step


def named_weights(path: Path) -> Path:
    """The weights that ``--weights`` names: a file, an index of shards, or a folder with one of them."""
    if not os.path.lexists(path):  # a path that exists but is no file is refused when it is read
        raise ExportError(
            f"{path}: no such file; --weights names a checkpoint: a file, the index of its shards, or their folder"
        )
    if path.is_dir():
        found = _look(path, below=False) or _loose(path)
        if not found:
            raise ExportError(f"{path}: holds no weights ({', '.join(NAMES)}); name the file with --weights")
        return found.only(path)
    if _PART.fullmatch(path.name):
        raise ExportError(_in_parts(path))
    if _SHARD.fullmatch(path.name):
        raise ExportError(f"{path}: one shard of several; name their index, {_index_of(path)}, or their folder")
    return path


def check_alone(weights: Path) -> None:
    """Refuse a file of DeepSpeed that holds only a part of the weights: others lie beside it."""
    if weights.name != WEIGHTS_FILE:
        return
    if parts := _look(weights.parent, below=False).parts:
        raise ExportError(_in_parts(parts[0]))
    others = sorted(p.name for p in weights.parent.glob("mp_rank_*_model_states.pt") if p.name != WEIGHTS_FILE)
    if others:
        raise ExportError(f"{weights.parent}: model-parallel checkpoints ({others[0]}) are not supported; merge them")


def step_of(weights: Path) -> int | None:
    """The step that a folder above the weights gives; None if none does."""
    return next((int(match[1]) for folder in weights.parents if (match := _STEP.fullmatch(folder.name))), None)


def how_to_gather(folder: Path) -> str:
    """What to do about ZeRO-3 weights in ``folder``, which DeepSpeed has saved or which lies beside what it has."""
    script = "zero_to_fp32.py"
    top = next((place for place in (folder.parent, folder) if os.path.lexists(place / script)), None)
    if top is None:
        command, note = f"python {script} CHECKPOINT_FOLDER OUTPUT", " (DeepSpeed writes the script into that folder)"
    else:
        command, note = f"python {shlex.quote(str(top / script))} {shlex.quote(str(top))} OUTPUT", ""
        if folder != top and _latest(top) != folder.name:
            command += f" --tag {shlex.quote(folder.name)}"
    return f"gather them with: {command}; then export with --weights OUTPUT{note}"


def _in_parts(part: Path) -> str:
    return (
        f"{part}: a part of a ZeRO-3 checkpoint, whose weights are divided among the GPUs that trained it; "
        f"{how_to_gather(part.parent)}"
    )


def _index_of(shard: Path) -> str:
    match = _SHARD.fullmatch(shard.name)
    assert match is not None
    return f"{match[1]}{match[2]}{INDEX}"


def _look(folder: Path, *, below: bool) -> _Found:
    """What lies in a folder, or also in those below it; a folder in a file's place counts, and is refused when read."""
    found = _Found()
    for path in _entries(folder, below):
        if path.name in NAMES:
            found.weights.append(path)
        elif _PART.fullmatch(path.name):
            found.parts.append(path)
        elif _SHARD.fullmatch(path.name):
            found.shards.append(path)
    return found


def _entries(folder: Path, below: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in sorted([*folders, *files]))
        if not below:
            return


def _loose(folder: Path) -> _Found:
    """Weights by other names: a published model is often one ``.pt`` or ``.safetensors``."""
    entries = [path for path in _entries(folder, below=False) if path.suffix in (".pt", ".safetensors")]
    return _Found([path for path in entries if not _STATES.fullmatch(path.name)])


def _saved_last(folder: Path, found: _Found) -> _Found:
    """Without what DeepSpeed saved into ``folder`` before the folder that ``latest`` names."""
    tags = {path.relative_to(folder).parts[0] for path in [*found.weights, *found.parts]}
    tags = {tag for tag in tags if _STEP.fullmatch(tag)}
    if len(tags) < 2 or (last := _latest(folder)) not in tags:
        return found

    def kept(path: Path) -> bool:
        return path.relative_to(folder).parts[0] not in tags - {last}

    return _Found(*(list(filter(kept, paths)) for paths in (found.weights, found.parts, found.shards)))


def _latest(folder: Path) -> str | None:
    """The folder that DeepSpeed saved last, as its file ``latest`` says; None if there is no such file. Others keep a
    link to a folder under this name."""
    path = folder / "latest"
    if not path.is_file():
        return None
    try:
        return read_text(path, MOST_TAG).strip()
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path}: does not name the folder that was saved last ({first_line(error)}); write its name into it"
        ) from error
