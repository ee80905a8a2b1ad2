"""What every engine on a device does alike, whatever library runs its body."""

from __future__ import annotations

from ...bundle import Bundle
from .cache import CacheShape
from .device import Device, told_errors
from .model import DeviceModel
from .pool import WorkspacePool
from .sequence import DeviceSequence


class DeviceEngine:
    """The half of :class:`protocol.Engine` that is the device loop's: sequences, their memory, and its end."""

    device: Device
    device_model: DeviceModel
    pool: WorkspacePool

    def use_device(
        self, device: Device, bundle: Bundle, shape: CacheShape, *, max_context: int | None = None
    ) -> DeviceModel:
        """Put the tables of ``bundle`` on ``device``; the engine sets the body of what this returns.

        See :class:`DeviceModel` for the other arguments, and what it raises.
        """
        self.device = device
        self.device_model = DeviceModel(device, bundle, shape, max_context=max_context)
        self.pool = WorkspacePool(self.device_model)
        return self.device_model

    @property
    def bytes_per_row(self) -> int:
        return self.device_model.shape.bytes_per_row

    def new_sequence(self) -> DeviceSequence:
        """An empty sequence, once the engine has made sure that it is open."""
        return DeviceSequence(self.pool)

    def finish_device(self) -> None:
        """Wait until nothing reads the weights: frames that were launched ahead still do."""
        with told_errors(self.device.cuda):
            self.device.finish()

    def release_device(self) -> None:
        """Free the body, and what is kept for a next conversation, of which there is none."""
        self.pool.release()
        self.device_model.release()
