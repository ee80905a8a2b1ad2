"""What an engine on a device provides to the device loop: a body, and steps made from it.

The interface is logits in device memory. Hidden states stay inside, so an engine may fuse anything up to there. Every
call enqueues work on the device's compute stream and returns immediately; nothing waits, and nothing is copied to the
host.
"""

from __future__ import annotations

from typing import Protocol

from ...vocabulary import Modality
from .cache import DeviceCache
from .device import Buffer


class DeviceStep(Protocol):
    """One decode step of a number of branches, up to and including the head of a modality.

    ``embeddings`` float32 [branches, H]: the row to feed, which the loop's sampler writes. ``logits`` float32
    [branches, n]: where the step leaves them, before mixing.
    """

    embeddings: Buffer
    logits: Buffer

    def begin(self, held: int) -> None:
        """The next step feeds the row at position ``held``: set the counters on the device. Once per segment."""
        ...

    def before(self, held: int) -> None:
        """Enqueue what cannot be captured into a graph: the body for some engines, nothing for others."""
        ...

    def bucket(self, held: int) -> int | None:
        """Which graph serves a step with ``held`` rows held; None if nothing is to be captured.

        Steps of one bucket have equal shapes: those of attention over the rows held, rounded up.
        """
        ...

    def enqueue(self, held: int) -> None:
        """The rest of the step, up to the logits.

        With a bucket, this is what is captured and replayed, so ``held`` may be used for nothing but the bucket:
        positions come from device memory, set by :meth:`begin`, and every step advances them by one.
        """
        ...


class DeviceBody(Protocol):
    """The transformer body and the heads of a bundle on a device."""

    #: Rows that one call of :meth:`prefill` takes at most.
    prefill_rows: int

    def open_cache(self) -> DeviceCache:
        """The KV cache of one conversation, empty."""
        ...

    def prefill(self, cache: DeviceCache, embeddings: Buffer, rows: int, held: int, hidden: Buffer) -> None:
        """Append ``rows`` rows, float32 [rows, H] in ``embeddings``, after ``held`` rows of branch 0.

        The final-norm hidden state of the last one, float32 [H], goes to ``hidden``.
        """
        ...

    def modality_logits(self, hidden: Buffer, out: Buffer) -> None:
        """Logits float32 [5] of ``vocabulary.CHOOSABLE`` after a prefilled row."""
        ...

    def open_step(self, cache: DeviceCache, modality: Modality, branches: int) -> DeviceStep:
        """A step over ``cache``; kept for as long as the conversation lasts."""
        ...
