"""Whether this machine has an NVIDIA GPU at all, usable by ualm or not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

#: What cuInit returns without a GPU, or with a driver for building only (cuda.h): NO_DEVICE, STUB_LIBRARY.
_NONE = (100, 34)


def gpu_is_there(load: Callable[[str], Any] = ctypes.CDLL) -> bool:
    """Whether there is a GPU visible to this process, working or not.

    Only the driver is asked: that needs none of our kernels, and takes no GPU memory.
    """
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return False
    status = driver.cuInit(0)
    if status:
        return status not in _NONE  # a driver that fails to start still has a GPU
    count = ctypes.c_int(0)
    return bool(driver.cuDeviceGetCount(ctypes.byref(count)) or count.value)
