"""The native parts of ualm: the CPU frame sampler, block quantisation, and what measures the machine.

Arrays are checked, never converted: another dtype is a TypeError, another shape, order or a read-only output a
ValueError. H is the model's hidden size, D the codec's latent size, K the codebook size, V the text vocabulary.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_I32 = NDArray[np.int32]

CUDA_ARCHITECTURES: str
"""The architectures that the module ``_cuda`` built beside this one has code for, e.g. "80-real 90-real 90-virtual";
empty if none was built."""
STOP: int
"""The row ended the segment: stream 0 is eos or eot."""
LIMIT: int
"""``max_steps`` rows were drawn, none of them a stop row."""
LATENT: int
"""``latent_out`` holds the frame that this row completed (rows 7 and later of a sound, not the stop row)."""
FAULTS: dict[int, str]
"""What a message says of logits that cannot be drawn from, by the number of the fault: a format for ``%`` with the row
and the stream."""
SAMPLING_LIMITS: dict[str, tuple[float, float]]
"""The least and the largest value of each option of ``begin_*``; integers where the option is one. ``temperature`` and
``top_k`` may also be 0, ``top_p`` must be above its least; a larger ``top_k`` keeps all, as 0 does."""
READ_KERNELS: tuple[str, ...]
"""The kernels of ``read_once`` on this CPU, the widest first: of "avx512", "avx512x4", "avx2", "avx2x4", "neon",
"neonx4", and last "portable", which works everywhere. "x4": each thread reads four stretches in turn."""

class FrameSampler:
    """Logits of one step in; the drawn row, the next input embedding and the finished frame's latent out.

    One sampler serves one sequence and one thread at a time. It reads the tables in place (a read-only memory map is
    fine) and keeps them alive. Ids: eos 2, eot 3, text ``text_base + i``, stream n's pad ``audio_base + n (K + 1)``.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        text_size: int,
        audio_base: int,
        text_base: int,
        embedding: _F32 | NDArray[np.uint16],
        rvq_table: _F32,
        rvq_bias: _F32,
    ) -> None:
        """``embedding`` float32 [N, H], or uint16 [N, H] holding the bits of bfloat16;
        ``rvq_table`` float32 [8, K, D], ``rvq_bias`` float32 [D]."""

    def begin_audio(
        self,
        *,
        mode: Literal["fixed", "reference"],
        temperature: float,
        top_k: int,
        top_p: float,
        guidance: float,
        max_steps: int,
        seed: int,
        segment: int,
    ) -> None:
        """Begin a sound. ``temperature`` 0 is greedy, ``top_k`` 0 and ``top_p`` 1 keep all candidates.

        "fixed" mode needs ``max_steps`` of at least 8. A value out of range is a ValueError, and the current segment
        goes on.
        """

    def begin_text(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        guidance: float,
        max_steps: int,
        seed: int,
        segment: int,
    ) -> None:
        """Begin a text; see :meth:`begin_audio`."""

    def step(self, logits: _F32, row_out: _I32, embedding_out: _F32, latent_out: _F32) -> int:
        """Draw the next row and return its flags (STOP, LIMIT, LATENT; never STOP with either of the others).

        ``logits`` float32 [B, L]: B is 2 with guidance above 1 (row 0 conditional, row 1 null), else 1; L is
        ``audio_logits`` or ``text_logits``. Written: ``row_out`` int32 [8]; ``embedding_out`` float32 [H], the sum of
        the row's embeddings, of which only stream 0 counts in a stop row and in a last row of "reference" mode;
        ``latent_out`` float32 [D] if LATENT is set.

        Logits that cannot be sampled (NaN, +inf, nothing but -inf) are a ValueError that names row and stream; the
        segment is unchanged then. RuntimeError before ``begin_*`` and after STOP or LIMIT.
        """

    def embed(self, rows: _I32, out: _F32) -> None:
        """Write the sums of the 8 embeddings of ``rows`` int32 [n, 8] to ``out`` float32 [n, H]. Id 0 adds nothing."""

    @property
    def row(self) -> int:
        """Rows drawn so far in this segment."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def latent_size(self) -> int: ...
    @property
    def audio_logits(self) -> int:
        """Columns of an audio step: eos, eot, then pad and K codes of each of the 8 streams."""

    @property
    def text_logits(self) -> int:
        """Columns of a text step: eos, eot, then V text ids."""

def codes_to_latents(codes: _I32 | NDArray[np.int16], rvq_table: _F32, rvq_bias: _F32, out: _F32) -> None:
    """Write the latents of ``codes`` [T, 8] to ``out`` float32 [T, D], with the arithmetic of ``FrameSampler.step``."""

def quantize_blocks(
    matrix: _F32,
    *,
    block: int,
    divisors: _F32,
    low: int,
    high: int,
    importance: _F32 | None,
    whole: NDArray[np.int8],
    scales: _F32,
    threads: int,
) -> None:
    """Quantise ``matrix`` float32 [in, out] to integers ``whole`` int8 [in, out], ``low`` to ``high``, and ``scales``
    float32 [in / block, out], each a positive float16 number: a block's largest magnitude over the one of ``divisors``
    float32 [n] whose squared error, weighted by ``importance`` float32 [in], is least."""

def read_once(words: NDArray[np.uint64], threads: int, kernel: str = "portable") -> tuple[int, float]:
    """Read ``words`` uint64 [n] once, with ``threads`` threads and one of READ_KERNELS: (sum modulo 2^64, seconds).

    The sum shows that every word was read. The seconds are those of the reading, without starting the threads.
    RuntimeError if the machine does not provide that many threads.
    """

def core_round_trip(turns: int) -> float:
    """Seconds that a cache line takes from one thread to another and back, the mean of ``turns`` round trips.

    RuntimeError if the machine does not provide a second thread.
    """

class testing:
    """The submodule ``_native.testing``: parts of the sampler that only tests look at one by one."""

    @staticmethod
    def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
        """Philox4x32-10."""

    @staticmethod
    def log_f32(values: _F32) -> _F32:
        """The sampler's own natural logarithm."""

    @staticmethod
    def exp_f32(values: _F32) -> _F32:
        """The sampler's own exponential."""

    @staticmethod
    def gumbel_of_bits(bits: int) -> float:
        """Gumbel noise of one 32-bit random word: ``-log(-log(u))``, u = ((bits >> 8) + 0.5) 2^-24."""

    @staticmethod
    def gumbel(seed: int, segment: int, row: int, stream: int, id: int) -> float:
        """The noise added to a candidate's scaled logit."""
