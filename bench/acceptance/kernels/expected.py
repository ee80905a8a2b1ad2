"""What the CPU draws in every trial of the sampler, in a file that is made beforehand.

``python -m ualm.bench.acceptance prepare -o FILE`` makes it, and the one for seed 0 comes with ualm. Of each row it
holds the progress word, the ids, and checksums of the next embedding and of the latent.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....runtime import _native
from ....runtime.errors import InputError
from ....runtime.files.saved_arrays import SavedArrays
from ....runtime.files.writing import check_place, replacing_file
from ....runtime.vocabulary import STREAMS
from .numbers import Numbers
from .tables import Tables
from .trials import ROWS, SUITES, Suite, Trial, draw_logits

#: The file for seed 0.
PACKAGED = Path(__file__).with_name("expected.npz")
#: Bytes of the largest array that is read.
_MOST = 8 << 20
#: Parts of a progress word (runtime/_cuda.pyi): its flags; fault and stream begin at these bits.
FLAGS, FAULT_AT, STREAM_AT = 0xFF << 32, 40, 48
#: Arrays of a suite, each with a row for each row drawn, in the order in which they are drawn.
_ARRAYS = ("words", "ids", "embeddings", "latents")


@dataclass(frozen=True)
class Row:
    """A row as the CPU drew it. ``word``: as the device's progress word, without flags where the logits were faulty."""

    word: int
    ids: np.ndarray
    embedding: int
    latent: int

    @property
    def drawn(self) -> int:
        return self.word & 0xFFFFFFFF

    @property
    def flags(self) -> int:
        return (self.word & FLAGS) >> 32

    @property
    def fault(self) -> int:
        return self.word >> FAULT_AT & 0xFF

    @property
    def stream(self) -> int:
        return self.word >> STREAM_AT & 0xFF

    @property
    def ended(self) -> bool:
        """Whether no row follows it."""
        return bool(self.fault or self.flags & (_native.STOP | _native.LIMIT))


class Expected:
    """The rows of one suite."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def inputs(self, trial: int) -> int:
        """Checksum of the tables and of a trial's logits."""
        return int(self._arrays["inputs"][trial])

    def rows(self, trial: int) -> Iterator[Row]:
        """A trial's rows in the order in which they are drawn: of each step, those of the sequences still under way."""
        words, ids, embeddings, latents = (self._arrays[name] for name in _ARRAYS)
        for at in range(*self._arrays["begins"][trial : trial + 2].tolist()):
            yield Row(int(words[at]), ids[at], int(embeddings[at]), int(latents[at]))


def checksum(values: np.ndarray, before: int = 0) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(values).data, before)


def segment_options(trial: Trial, seed: int, index: int) -> dict[str, Any]:
    """The options that sequence ``index`` of a trial begins its segment with."""
    return {
        "temperature": trial.temperature,
        "top_k": trial.top_k,
        "top_p": trial.top_p,
        "guidance": trial.guidance,
        "max_steps": ROWS - index % 3,
        "seed": seed + index,
        "segment": index,
    }


def load(path: Path, suite: str, seed: int) -> Expected:
    """Read the rows of a suite; :class:`InputError` if the file is none of these, or was made for another seed."""
    how = "make it again: python -m ualm.bench.acceptance prepare -o FILE"
    try:
        with SavedArrays(path) as saved:
            made_for = int(saved.read("seed", 8)[0])
            arrays = {name: saved.read(f"{suite}/{name}", _MOST) for name in (*_ARRAYS, "inputs", "begins")}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {how}") from None
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not what the CPU drew ({error}); {how}") from error
    trials, rows = len(SUITES[suite].trials), len(arrays["words"])
    begins, lengths = arrays["begins"], {len(arrays[name]) for name in _ARRAYS}
    if len(begins) != trials + 1 or len(arrays["inputs"]) != trials or lengths != {rows} or begins[-1] != rows:
        raise InputError(f"{path}: was made for other trials; {how}")
    if made_for != seed:
        raise InputError(f"{path}: was made for seed {made_for}, not {seed}; {how} --seed {seed}")
    return Expected(arrays)


def prepare(path: Path, seed: int, progress: Callable[[str], None] = lambda text: None) -> None:
    """Write what this machine's CPU draws. Equal seeds give equal bytes."""
    check_place(path)
    arrays = {"seed": np.array([seed], np.int64)}
    for suite in SUITES.values():
        arrays |= {f"{suite.name}/{name}": values for name, values in draw(suite, seed, progress).items()}
    with replacing_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def draw(suite: Suite, seed: int, progress: Callable[[str], None] = lambda text: None) -> dict[str, np.ndarray]:
    """The arrays of a suite."""
    tables = Tables(suite.shape, seed)
    start = checksum(tables.bias, checksum(tables.rvq, checksum(tables.embedding)))
    rows, begins, inputs = list[Row](), [0], list[int]()
    for at, trial in enumerate(suite.trials):
        progress(f"{suite.name}: trial {at + 1} of {len(suite.trials)}")
        inputs.append(_draw_trial(tables, trial, suite.seed(seed, at), start, rows))
        begins.append(len(rows))
    return {
        "words": np.array([row.word for row in rows], np.uint64),
        "ids": np.stack([row.ids for row in rows]),
        "embeddings": np.array([row.embedding for row in rows], np.uint32),
        "latents": np.array([row.latent for row in rows], np.uint32),
        "inputs": np.array(inputs, np.uint32),
        "begins": np.array(begins, np.int64),
    }


def _draw_trial(tables: Tables, trial: Trial, seed: int, inputs: int, rows: list[Row]) -> int:
    """Append a trial's rows; returns ``inputs``, the checksum of the tables, continued over its logits."""
    shape, count = tables.shape, trial.sequences
    samplers: list[_native.FrameSampler | None] = []
    for index in range(count):
        sampler = _native.FrameSampler(
            codebook_size=shape.codebook,
            text_size=shape.text,
            audio_base=shape.audio_base,
            text_base=256,
            embedding=tables.embedding,
            rvq_table=tables.rvq,
            rvq_bias=tables.bias,
        )
        options = segment_options(trial, seed, index)
        sampler.begin_text(**options) if trial.modality == "text" else sampler.begin_audio(mode=trial.mode, **options)  # type: ignore[arg-type]
        samplers.append(sampler)
    for values in draw_logits(trial, (count, trial.branches, shape.columns(trial.modality)), Numbers(seed)):
        inputs = checksum(values, inputs)
        for index, running in enumerate(samplers):
            if running is not None:
                rows.append(_step(tables, running, values[index]))
                if rows[-1].ended:
                    samplers[index] = None
    return inputs


def _step(tables: Tables, sampler: _native.FrameSampler, logits: np.ndarray) -> Row:
    at, ids = sampler.row, np.zeros(STREAMS, np.int32)
    embedding, latent = np.empty(tables.shape.hidden, np.float32), np.empty(tables.shape.latent, np.float32)
    try:
        flags = sampler.step(logits, ids, embedding, latent)
    except ValueError as error:
        fault, stream = _fault_of(str(error), at)
        return Row(at | fault << FAULT_AT | stream << STREAM_AT, np.zeros(STREAMS, np.int32), 0, 0)
    completed = checksum(latent) if flags & _native.LATENT else 0
    return Row(at + 1 | flags << 32, ids, checksum(embedding), completed)


def _fault_of(details: str, row: int) -> tuple[int, int]:
    """Number and stream of the fault that the sampler reports in words."""
    for fault, words in _native.FAULTS.items():
        for stream in range(STREAMS):
            if words % (row, stream) == details:
                return fault, stream
    raise ValueError(details)
