"""ONNX Runtime with its telemetry off. All our code that needs the library takes ``ort`` from here.

On import, its official builds write a device identifier and an event store into the user's cache folder, send events to
their vendor, and complain on standard error if they cannot. The variable stops all of it if it is set before the
import; a value set by the user is kept. The call is for other Windows builds, which do not read the variable, and for
applications that imported the library before us.
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
