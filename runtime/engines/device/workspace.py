"""Everything of one conversation that lies on the device, kept for the next conversation when one is over."""

from __future__ import annotations

import numpy as np

from ...vocabulary import CHOOSABLE, STREAMS, Modality
from .loop import Frame, Outbox
from .model import DeviceModel
from .protocol import DeviceStep


class Workspace:
    """Cache, sampler, outbox, steps and captured graphs: making them takes longer than many a first row."""

    def __init__(self, model: DeviceModel) -> None:
        device, width = model.device, model.model.hidden_size
        self._model = model
        #: Whether the cache may hold NaN, from logits that could not be drawn from.
        self.spoilt = False
        with model.explained_memory():
            self.cache = model.body.open_cache()
            #: Embeddings of a prompt's rows, and their ids.
            self.chunk = device.allocate(model.body.prefill_rows * width * 4)
            self.ids = device.allocate(model.body.prefill_rows * STREAMS * 4)
            #: Hidden state behind the last prefilled row, and what it says of the modality.
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
        """Leave nothing to the next conversation that it could take for its own."""
        self.clear_spoilt(0)
        device = self._model.device
        with device.lock:
            device.cuda.set_bytes(self.hidden.address, 0, self.hidden.nbytes, device.stream.handle)

    def clear_spoilt(self, rows: int) -> None:
        """Clear the cache behind ``rows``, where it may hold NaN.

        An engine that looks at more rows than are held gives the others no weight, but NaN times nothing is NaN.
        """
        if self.spoilt:
            with self._model.device.lock:
                self.cache.clear(rows)
        self.spoilt = False
