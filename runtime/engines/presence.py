"""Whether this machine has an NVIDIA GPU at all, whatever ualm can do with it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

#: What cuInit says where there is no GPU, or a driver for building alone (cuda.h): NO_DEVICE, STUB_LIBRARY.
_NONE = (100, 34)


def gpu_is_there(load: Callable[[str], Any] = ctypes.CDLL) -> bool:
    """Whether there is a GPU that this process may see, also one that does not work.

    Asked of the driver alone: that needs no kernels of ours, and takes no memory of the GPU.
    """
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return False
    status = driver.cuInit(0)
    if status:
        return status not in _NONE  # a driver that does not start has a GPU to drive
    count = ctypes.c_int(0)
    return bool(driver.cuDeviceGetCount(ctypes.byref(count)) or count.value)
