"""The sampler kernel under the host shim beside the CPU's sampler: the same logits in, outputs compared bit for bit."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from support.native.harness import Native
from support.native.sampler_model import Options, Tables

STOP, LIMIT, LATENT = 1, 2, 4


def address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


class Kernel:
    """A batch of sequences in the sampler kernel, with buffers that show what was written."""

    def __init__(self, cuda: ModuleType, tables: Tables, options: list[Options], *, capacity: int = 3) -> None:
        self.cuda, self.options = cuda, options
        count, text = len(options), options[0].kind == "text"
        self.branches = 1 if options[0].guidance == 1 else 2
        columns = len(tables.text_columns() if text else tables.audio_columns())
        hidden, latent = tables.embedding.shape[1], tables.rvq_table.shape[2]
        wide = tables.embedding.dtype == np.float32
        # one extra float: rows of logits need no alignment
        self.logits = np.full((count, self.branches, columns + 1), np.nan, np.float32)
        self.state = np.full((count, cuda.STATE_BYTES), 0xFF, np.uint8)
        self.embeddings = np.full((count, 2, hidden), np.nan, np.float32)
        self.rows = np.full((count, capacity, 8), -1, np.int32)
        self.latents = np.full((count, capacity, latent), np.nan, np.float32)
        self.progress = np.full(count, 2**64 - 1, np.uint64)
        self.capacity = capacity
        self._tables = tables  # keeps the arrays behind the addresses below alive
        self.layout = cuda.Layout(
            codebook_size=tables.codebook_size,
            text_size=tables.text_size,
            audio_base=tables.audio_base,
            text_base=tables.text_base,
        )
        self.tables = cuda.Tables(
            embedding=address(tables.embedding),
            embedding_number=cuda.FLOAT32 if wide else cuda.BFLOAT16,
            rvq=address(tables.rvq_table),
            rvq_bias=address(tables.rvq_bias),
            vocabulary=len(tables.embedding),
            hidden=hidden,
            latent=latent,
        )
        self.sample = cuda.SampleLaunch(
            states=address(self.state),
            logits=address(self.logits),
            logits_stride=columns + 1,
            sequences=count,
            branches=self.branches,
            text=text,
            layout=self.layout,
            tables=self.tables,
            embeddings=address(self.embeddings),
            embedding_copies=2,
            rows=address(self.rows),
            row_capacity=capacity,
            latents=0 if text else address(self.latents),
            latent_capacity=0 if text else capacity,
            progress=address(self.progress),
        )
        for index, each in enumerate(options):
            self.begin(index, each)

    def begin(self, index: int, options: Options) -> None:
        self.cuda.begin_segment(
            state=address(self.state[index]),
            progress=address(self.progress[index : index + 1]),
            kind=options.kind,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            guidance=options.guidance,
            max_steps=options.max_steps,
            seed=options.seed,
            segment=options.segment,
            stream=0,
        )

    def step(self, logits: list[np.ndarray]) -> None:
        """Launch one row with the logits [branches, columns] of every sequence."""
        for index, each in enumerate(logits):
            self.logits[index, :, :-1] = each
        self.sample(0)

    def progress_of(self, index: int) -> tuple[int, int, int, int]:
        """Rows drawn, flags of the last one, fault, its stream."""
        word = int(self.progress[index])
        return word & 0xFFFFFFFF, word >> 32 & 0xFF, word >> 40 & 0xFF, word >> 48


FAULTS = {1: "NaN among", 2: r"+inf among", 3: "nothing but -inf among"}


class Pair:
    """One sequence of a kernel and the CPU's sampler, which must agree on it."""

    def __init__(self, tables: Tables, options: Options, kernel: Kernel, index: int) -> None:
        self.native, self.kernel, self.index = Native(tables), kernel, index
        self.native.begin(options)
        self.row, self.over = 0, False

    def check(self, logits: np.ndarray) -> None:
        """Step the CPU's sampler with the kernel's latest input, and compare."""
        if self.over:
            return
        native, kernel, i = self.native, self.kernel, self.index
        native.latent[:] = np.nan
        try:
            flags = native.step(logits)
        except ValueError as error:
            rows, flags, fault, stream = kernel.progress_of(i)
            assert f"{FAULTS[fault]} the candidates of row {rows}, stream {stream};" in str(error)
            assert (rows, flags) == (self.row, 0)
            self.over = True
            return
        assert kernel.progress_of(i) == (self.row + 1, flags, 0, 0), f"sequence {i}, row {self.row}"
        np.testing.assert_array_equal(kernel.rows[i, self.row % kernel.capacity], native.row)
        for copy in kernel.embeddings[i]:
            np.testing.assert_array_equal(copy.view(np.int32), native.embedding.view(np.int32))
        if flags & LATENT:
            latent = kernel.latents[i, (self.row - 7) % kernel.capacity]
            np.testing.assert_array_equal(latent.view(np.int32), native.latent.view(np.int32))
        self.row += 1
        self.over = bool(flags & (STOP | LIMIT))


def run_pairs(
    cuda: ModuleType, tables: Tables, options: list[Options], steps: list[list[np.ndarray]], *, beyond: int = 2
) -> list[Pair]:
    """Run all sequences until they have ended, then ``beyond`` more launches, which must change nothing.

    ``steps[i][r]``: logits of sequence i at row r.
    """
    kernel = Kernel(cuda, tables, options)
    pairs = [Pair(tables, each, kernel, i) for i, each in enumerate(options)]
    while not all(pair.over for pair in pairs):
        before = [(kernel.rows[p.index].copy(), kernel.embeddings[p.index].copy()) for p in pairs]
        logits = [steps[p.index][min(p.row, len(steps[p.index]) - 1)] for p in pairs]
        over = [p.over for p in pairs]
        kernel.step(logits)
        for pair, mine, was_over, (rows, embeddings) in zip(pairs, logits, over, before, strict=True):
            if was_over:
                np.testing.assert_array_equal(kernel.rows[pair.index], rows)
                np.testing.assert_array_equal(kernel.embeddings[pair.index], embeddings)
            pair.check(mine)
    after = [np.array(a) for a in (kernel.rows, kernel.embeddings, kernel.latents, kernel.progress, kernel.state)]
    for _ in range(beyond):
        kernel.sample(0)
    for then, now in zip(
        after, (kernel.rows, kernel.embeddings, kernel.latents, kernel.progress, kernel.state), strict=True
    ):
        np.testing.assert_array_equal(now, then)
    return pairs
