"""ONNX Runtime with its telemetry off. Whatever of ours needs the library takes ``ort`` from here.

Its official builds write an identifier of the device and a store of events below the user's cache folder when they are
imported, send events to their maker, and complain on standard error where they cannot. The variable stops all of it, if
it is set before the import; one that the user has set stays as it is. The call is for Windows builds of another kind,
which do not read the variable, and for an application that imported the library before us.
"""

from __future__ import annotations

import os

#: Read by ONNX Runtime when it is loaded.
TELEMETRY = "ORT_DISABLE_TELEMETRY"

_chosen = TELEMETRY in os.environ
os.environ.setdefault(TELEMETRY, "1")

import onnxruntime as ort  # noqa: E402

if not _chosen:
    ort.disable_telemetry_events()

__all__ = ["ort"]
