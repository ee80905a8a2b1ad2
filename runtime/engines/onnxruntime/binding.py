"""An ONNX Runtime session with its inputs and outputs bound to our memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import EngineError
from ...files.reading import first_line
from ..timing import Clock


class Binding:
    """A session with its inputs and outputs bound to numpy memory, which it keeps alive; ``clock`` times its calls."""

    def __init__(self, session: Any, role: str, clock: Clock) -> None:
        self._session, self._role, self._clock = session, role, clock
        self._binding = session.io_binding()
        self._kept: dict[str, np.ndarray] = {}

    def input(self, name: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        self._kept[name] = array
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, shape or array.shape, array.ctypes.data)
        return array

    def output(self, name: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        self._kept[name] = array
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, shape or array.shape, array.ctypes.data)
        return array

    def __call__(self) -> None:
        try:
            with self._clock:
                self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"part {self._role}: ONNX Runtime failed ({first_line(error)})") from error
