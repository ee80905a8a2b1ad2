"""The device memory of one conversation, kept for the next conversation when it ends."""

from __future__ import annotations

import numpy as np

from ...vocabulary import CHOOSABLE, STREAMS, Modality
from .loop import Frame, Outbox
from .model import DeviceModel
from .protocol import DeviceStep


class Workspace:
    """Cache, sampler, outbox, steps and captured graphs: creating them often takes longer than a first row."""

    def __init__(self, model: DeviceModel) -> None:
        device, width = model.device, model.model.hidden_size
        self._model = model
        #: Whether the cache may hold NaN, from logits that could not be drawn from.
        self.invalid = False
        with model.explained_memory():
            self.cache = model.body.open_cache()
            #: Embeddings of a prompt's rows, and their ids.
            self.chunk = device.allocate(model.body.prefill_rows * width * 4)
            self.ids = device.allocate(model.body.prefill_rows * STREAMS * 4)
            #: Hidden state after the last prefilled row, and its modality logits.
            self.hidden = device.uploaded(np.zeros(width, np.float32))
            self.choice = device.allocate(len(CHOOSABLE) * 4)
            self.outbox = Outbox(device, len(model.rvq_bias))
            self.sampler = model.open_sampler(self.outbox)
        self._frames: dict[tuple[str, int], tuple[DeviceStep, Frame]] = {}

    def frame(self, modality: Modality, branches: int) -> tuple[DeviceStep, Frame]:
        """The step of a modality for a number of branches, and the frame that it is part of."""
        key, model = (modality, branches), self._model
        if key not in self._frames:
            with model.explained_memory():
                step = model.body.open_step(self.cache, modality, branches)
            sample = self.sampler.bound(step, modality, branches, model.columns(modality))
            self._frames[key] = step, Frame(model.device, step, sample)
        return self._frames[key]

    def forget(self) -> None:
        """Leave nothing that the next conversation could take for its own."""
        self.clear_invalid(0)
        device = self._model.device
        with device.lock:
            device.cuda.set_bytes(self.hidden.address, 0, self.hidden.nbytes, device.stream.handle)

    def clear_invalid(self, rows: int) -> None:
        """Clear the cache after ``rows``, where it may hold NaN.

        An engine that attends to more rows than are held gives the others zero weight, but NaN times zero is NaN.
        """
        if self.invalid:
            with self._model.device.lock:
                self.cache.clear(rows)
        self.invalid = False
