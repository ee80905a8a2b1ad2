"""The sampler against the rows that the CPU drew: random logits and edge cases, one sequence and many."""

from __future__ import annotations

import numpy as np

from ....runtime import _native
from ....runtime.vocabulary import STREAMS
from .expected import FAULT_AT, STREAM_AT, Expected, Row, checksum, segment_options
from .numbers import Numbers
from .tables import DeviceTables
from .trials import ROWS, Trial, draw_logits


def same_as_cpu(
    tables: DeviceTables, trial: Trial, at: int, seed: int, expected: Expected, inputs: int | None = None
) -> int:
    """Draw the rows of trial number ``at`` with ``seed``; AssertionError if a bit differs. Returns the rows compared.

    ``inputs``: checksum of the tables. The logits are then compared with those that the CPU drew from.
    """
    device, shape = tables.device, tables.shape
    cuda, stream, count = device.cuda, device.stream.handle, trial.sequences
    columns, branches, text = shape.columns(trial.modality), trial.branches, trial.modality == "text"
    states = device.allocate(count * cuda.STATE_BYTES)
    logits = device.allocate(count * branches * columns * 4)
    embeddings = device.uploaded(np.zeros((count, 2, shape.hidden), np.float32))
    rows = device.pinned((count, ROWS, STREAMS), np.int32)
    latents = device.pinned((count, ROWS, shape.latent), np.float32)
    progress = device.pinned((count,), np.uint64)
    launch = cuda.SampleLaunch(
        states=states.address,
        logits=logits.address,
        logits_stride=columns,
        sequences=count,
        branches=branches,
        text=text,
        layout=tables.layout,
        tables=tables.tables,
        embeddings=embeddings.address,
        embedding_copies=2,
        rows=rows.address,
        row_capacity=ROWS,
        latents=0 if text else latents.address,
        latent_capacity=ROWS,
        progress=progress.address,
    )
    for index in range(count):
        cuda.begin_segment(
            state=states.address + index * cuda.STATE_BYTES,
            progress=progress.address + 8 * index,
            kind="text" if text else trial.mode,
            stream=stream,
            **segment_options(trial, seed, index),
        )
    recorded, alive, compared = expected.rows(at), [True] * count, 0
    mine = np.empty((count, 2, shape.hidden), np.float32)
    for values in draw_logits(trial, (count, branches, columns), Numbers(seed)):
        inputs = None if inputs is None else checksum(values, inputs)
        device.upload(logits.address, values)
        launch(stream)
        device.download(mine, embeddings.address)
        device.synchronize()
        for index in range(count):
            if alive[index]:
                row = next(recorded)
                word = int(progress.array[index])
                compare_row(row, word, rows.array[index], latents.array[index], mine[index])
                alive[index] = not row.ended
                compared += 1
    if inputs is not None:
        assert inputs == expected.inputs(at), "the logits here are not those that the CPU drew from: numpy differs"
    return compared


def compare_row(expected: Row, word: int, rows: np.ndarray, latents: np.ndarray, embeddings: np.ndarray) -> None:
    """Compare one sequence's progress word, ring of rows, ring of latents and both next embeddings with the CPU's
    row."""
    drawn, flags, fault, stream = (
        word & 0xFFFFFFFF,
        word >> 32 & 0xFF,
        word >> FAULT_AT & 0xFF,
        word >> STREAM_AT & 0xFF,
    )
    if expected.fault:
        row, cpu = expected.drawn, _native.FAULTS[expected.fault] % (expected.drawn, expected.stream)
        details = _native.FAULTS[fault] % (drawn, stream) if fault in _native.FAULTS else "nothing"
        assert details == cpu, f"row {row}: the CPU says {cpu}, the device fault {fault}: {details}"
        return
    row = expected.drawn - 1
    assert fault == 0, f"row {row}: the device found fault {fault} in stream {stream}, the CPU none"
    found = f"row {row}: row {drawn - 1}, flags {flags}, not {expected.flags}"
    assert (drawn, flags) == (expected.drawn, expected.flags), found
    ids = rows[row]
    assert (ids == expected.ids).all(), f"row {row}: drawn {ids.tolist()}, the CPU {expected.ids.tolist()}"
    for copy in embeddings:
        assert checksum(copy) == expected.embedding, f"row {row}: the next embedding differs"
    if expected.flags & _native.LATENT:
        assert checksum(latents[row - STREAMS + 1]) == expected.latent, f"row {row}: the latent differs"
