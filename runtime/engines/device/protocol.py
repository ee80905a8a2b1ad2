"""What an engine that computes on a device supplies to the device loop: a body, and steps made from it.

The border is logits in device memory. Hidden states stay inside, so an engine may fuse whatever it likes up to there.
Every call puts work on the device's compute stream and returns at once; nothing waits, and nothing comes to the host.
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
        """The next step feeds the row at position ``held``: set what the device counts itself. Once a segment."""
        ...

    def before(self, held: int) -> None:
        """Enqueue what cannot be captured into a graph: for one engine the body, for another nothing."""
        ...

    def bucket(self, held: int) -> int | None:
        """Which graph serves a step with ``held`` rows held; None where nothing is to be captured.

        Steps of one bucket have equal shapes: for attention over what is held, rounded up.
        """
        ...

    def enqueue(self, held: int) -> None:
        """The rest of the step, up to the logits.

        With a bucket, this is what is captured and played again, so that ``held`` may be used for nothing but the
        bucket: positions come from device memory, set by :meth:`begin`, which every step advances by one.
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
        """Append ``rows`` rows, float32 [rows, H] in ``embeddings``, behind ``held`` rows of branch 0.

        The final-norm hidden state of the last one, float32 [H], goes to ``hidden``.
        """
        ...

    def modality_logits(self, hidden: Buffer, out: Buffer) -> None:
        """Logits float32 [5] of ``vocabulary.CHOOSABLE`` behind a prefilled row."""
        ...

    def open_step(self, cache: DeviceCache, modality: Modality, branches: int) -> DeviceStep:
        """A step over ``cache``; kept for as long as the conversation lasts."""
        ...
