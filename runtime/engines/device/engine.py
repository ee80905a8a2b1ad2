"""What all engines on a device share, whichever library runs their body."""

from __future__ import annotations

from ...bundle import Bundle
from .cache import CacheShape
from .device import Device, translate_errors
from .model import DeviceModel
from .pool import WorkspacePool
from .sequence import DeviceSequence


class DeviceEngine:
    """The part of :class:`protocol.Engine` that is the device loop's: sequences, their memory, and its release."""

    device: Device
    device_model: DeviceModel
    pool: WorkspacePool

    def use_device(
        self, device: Device, bundle: Bundle, shape: CacheShape, *, max_context: int | None = None
    ) -> DeviceModel:
        """Put the tables of ``bundle`` on ``device``; the engine sets the body of what this returns.

        See :class:`DeviceModel` for the other arguments and the errors.
        """
        self.device = device
        self.device_model = DeviceModel(device, bundle, shape, max_context=max_context)
        self.pool = WorkspacePool(self.device_model)
        return self.device_model

    @property
    def bytes_per_row(self) -> int:
        return self.device_model.shape.bytes_per_row

    def new_sequence(self) -> DeviceSequence:
        """An empty sequence; the engine checks first that it is open."""
        return DeviceSequence(self.pool)

    def finish_device(self) -> None:
        """Wait until nothing reads the weights any more: frames launched ahead may still do."""
        with translate_errors(self.device.cuda):
            self.device.finish()

    def release_device(self) -> None:
        """Free the body, and what is kept for further conversations."""
        self.pool.release()
        self.device_model.release()
