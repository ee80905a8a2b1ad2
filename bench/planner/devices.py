"""Devices to plan for, with figures from their makers' data sheets. Nothing here was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...runtime.errors import InputError

#: GiB that the system takes of a memory shared by processor and GPU: an assumption. With the 0.5 GiB that a plan adds
#: for the library it is the 3 GB beside the model that TensorRT-Edge-LLM 0.8.0 (release notes) recommends for Jetson.
SHARED_RESERVE = 2.5
#: The same for a GPU's own memory: the driver's context and a display.
OWN_RESERVE = 0.5


@dataclass(frozen=True)
class Device:
    """``bandwidth``: of the memory, GB/s (1e9 bytes), the data sheet's peak. ``memory_gib``: the GPU's own, or all of
    it if ``shared``. ``sm``: compute capability. ``source``: where both figures come from."""

    name: str
    title: str
    bandwidth: float
    memory_gib: float
    shared: bool
    sm: str
    source: str

    @property
    def reserve_gib(self) -> float:
        """GiB assumed to be in use before a model is loaded."""
        return SHARED_RESERVE if self.shared else OWN_RESERVE


_JETSON = "https://developer.nvidia.com/embedded/jetson-modules"

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device(
            "orin-nano",
            "Jetson Orin Nano 8GB in its Super mode",
            102.0,  # 68 in the modes before JetPack 6.2
            8.0,
            True,
            "8.7",
            "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/",
        ),
        Device("agx-orin", "Jetson AGX Orin 64GB", 204.8, 64.0, True, "8.7", _JETSON),
        Device("thor", "Jetson T5000 (AGX Thor) 128GB", 273.0, 128.0, True, "11.0", _JETSON),
        Device(
            "rtx4090",
            "GeForce RTX 4090 24GB",
            1008.0,
            24.0,
            False,
            "8.9",
            "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
        ),
        Device(
            "h100",
            "H100 SXM 80GB",
            3350.0,
            80.0,
            False,
            "9.0",
            "https://www.nvidia.com/en-us/data-center/h100/",
        ),
    )
}


def find_device(name: str | None, bandwidth: float | None, memory: float | None) -> Device:
    """The device of ``--device``, with ``--bandwidth`` (GB/s) and ``--memory`` (GiB) in place of its own; both together
    need no name. Raises :class:`InputError` for an unknown name, a number that is not above 0, or missing options."""
    for option, value in (("--bandwidth", bandwidth), ("--memory", memory)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option} {value:g}: give a number above 0")
    known = ", ".join(DEVICES)
    if name is not None and name not in DEVICES:
        raise InputError(f"--device {name}: known are {known}; for another give --bandwidth GB/s and --memory GiB")
    given = [f"{text} as given" for text, value in (("bandwidth", bandwidth), ("memory", memory)) if value is not None]
    if name is None:
        if bandwidth is None or memory is None:
            raise InputError(f"--device: choose {known}, or give both --bandwidth GB/s and --memory GiB")
        return Device("custom", "a device of your own", bandwidth, memory, False, "unknown", ", ".join(given))
    found = DEVICES[name]
    return Device(
        found.name,
        found.title,
        found.bandwidth if bandwidth is None else bandwidth,
        found.memory_gib if memory is None else memory,
        found.shared,
        found.sm,
        ", ".join([found.source, *given]),
    )
