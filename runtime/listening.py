"""Features of sounds, computed once for each content and kept while there is room."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np

from .engines.base import Engine
from .errors import EngineError
from .hearing import Hearing
from .sound import Sound

#: Bytes of features kept: five minutes of sound at the 1.5B shape are 46 MB.
CACHE_BYTES = 256 << 20


class Listener:
    """Hears sounds for one model: from any thread, each content once."""

    def __init__(self, hearing: Hearing, engine: Engine, capacity: int = CACHE_BYTES) -> None:
        self._hearing, self._engine, self._capacity = hearing, engine, capacity
        self._known: OrderedDict[bytes, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False

    def check(self, sound: Sound) -> None:
        """Refuse a sound that the encoder cannot take, with an :class:`InputError`."""
        self._hearing.check(sound)

    def features(self, sound: Sound) -> np.ndarray:
        """Feature rows float32 [L, H]; read-only, shared with other callers."""
        while True:
            with self._lock:
                future, mine = self._claim(sound)
            if mine:
                self._compute(sound, future)
            try:
                return future.result()
            except CancelledError:  # the thread that computed it was interrupted; this one was not
                continue

    def start(self, sound: Sound) -> None:
        """Begin to hear a sound in the background; a later :meth:`features` waits for what is left to do."""
        self._hearing.check(sound)
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed; open it again")
            future, mine = self._claim(sound)
            if mine:
                if self._worker is None:
                    self._worker = ThreadPoolExecutor(1, thread_name_prefix="ualm-listener")
                self._worker.submit(self._compute, sound, future)

    def close(self) -> None:
        """Finish the sound that is being heard, refuse those that wait, and forget everything."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
            self._known.clear()
        if worker is not None:
            worker.shutdown()

    def _claim(self, sound: Sound) -> tuple[Future[np.ndarray], bool]:
        """The sound's future, and whether the caller is the one to compute it; call it with the lock held."""
        key = _content(sound)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key], False
        future = self._known[key] = Future()
        return future, True

    def _compute(self, sound: Sound, future: Future[np.ndarray]) -> None:
        try:
            if self._closed:
                raise EngineError("the model is closed; open it again")
            prepared = self._hearing.prepare(sound)
            # a copy: the encoder's padding would be kept with a view
            features = self._engine.encode(prepared.inputs)[: prepared.rows].copy()
        except BaseException as error:
            with self._lock:
                self._known.pop(_content(sound), None)
            if isinstance(error, Exception):
                future.set_exception(error)
                return
            future.cancel()  # Ctrl-C is this thread's own affair
            raise
        features.flags.writeable = False
        future.set_result(features)
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        held = {key: future.result().nbytes for key, future in self._known.items() if future.done()}
        for key in list(held)[:-1]:  # the newest stays, whatever its size
            if sum(held.values()) <= self._capacity:
                return
            del self._known[key], held[key]


def _content(sound: Sound) -> bytes:
    digest = hashlib.sha256(f"{sound.sample_rate} {sound.samples.shape}".encode())
    digest.update(np.ascontiguousarray(sound.samples).data)
    return digest.digest()
