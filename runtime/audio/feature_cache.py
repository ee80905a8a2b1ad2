"""Features of sounds, computed once for each content and kept while there is room for them."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, TimeoutError

import numpy as np

from ..engines.protocol import Engine
from ..errors import EngineError
from ..sound.sound import Sound
from .features import LogMelFrontend

#: Bytes of features kept: five minutes of sound at the 1.5B shape are 46 MB.
CACHE_BYTES = 256 << 20


#: Seconds between two calls of ``look`` while another thread encodes the sound.
_POLL = 0.05


class _Job:
    """One sound being encoded: the thread that claims it first computes it, all others wait for the same future."""

    def __init__(self, key: bytes, sound: Sound) -> None:
        self.key, self.sound = key, sound
        self.future: Future[np.ndarray] = Future()
        self._claimed = threading.Lock()

    def claim(self) -> bool:
        return self._claimed.acquire(blocking=False)


class FeatureCache:
    """Thread-safe cache of a model's encoder features, keyed by the sound's content; each is computed once."""

    def __init__(self, frontend: LogMelFrontend, engine: Engine, capacity: int = CACHE_BYTES) -> None:
        self._frontend, self._engine, self._capacity = frontend, engine, capacity
        self._known: OrderedDict[bytes, _Job] = OrderedDict()
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False

    @property
    def longest(self) -> float:
        """Seconds of the longest sound that the encoder takes."""
        return self._frontend.spec.max_samples / self._frontend.spec.sample_rate

    def check(self, sound: Sound) -> None:
        """Refuse a sound that the encoder cannot take, with an :class:`InputError`."""
        self._frontend.check(sound)

    def features(self, sound: Sound, look: Callable[[], object] = lambda: None) -> np.ndarray:
        """Feature rows float32 [L, H]; read-only, shared with other callers.

        A sound that waits in the background is encoded here immediately. ``look`` is called before, and now and then
        while another thread encodes it; an exception from it ends the call.
        """
        key = _content(sound)
        while True:
            look()
            heard = self._entry(key, sound)
            self._compute(heard)
            try:
                while True:
                    try:
                        return heard.future.result(timeout=_POLL)
                    except TimeoutError:
                        look()
            except CancelledError:  # the thread that computed it was interrupted; this one was not
                continue

    def start(self, sound: Sound) -> None:
        """Start encoding a sound in the background; a later :meth:`features` waits for what is left to do."""
        self._frontend.check(sound)
        heard = self._entry(_content(sound), sound)
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed; open it again")
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="ualm-features")
            # if this fails, the sound is still unclaimed, and the call that needs it encodes it
            self._worker.submit(self._compute, heard)

    def close(self) -> None:
        """Finish the sound that is being encoded, refuse those that wait, and forget everything."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
            self._known.clear()
        if worker is not None:
            worker.shutdown()

    def _entry(self, key: bytes, sound: Sound) -> _Job:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            else:
                self._known[key] = _Job(key, sound)
            return self._known[key]

    def _compute(self, heard: _Job) -> None:
        """Encode the sound, unless another thread does or did."""
        if not heard.claim():
            return
        try:
            if self._closed:
                raise EngineError("the model is closed; open it again")
            prepared = self._frontend.prepare(heard.sound)
            # a copy: the encoder's padding would be kept with a view
            features = self._engine.encode(prepared.inputs)[: prepared.rows].copy()
        except BaseException as error:
            with self._lock:
                if self._known.get(heard.key) is heard:
                    del self._known[heard.key]
            if isinstance(error, Exception):
                heard.future.set_exception(error)
                return
            heard.future.cancel()  # Ctrl-C concerns this thread only
            raise
        features.flags.writeable = False
        heard.future.set_result(features)
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        held = {key: heard.future.result().nbytes for key, heard in self._known.items() if heard.future.done()}
        for key in list(held)[:-1]:  # the newest stays, however large it is
            if sum(held.values()) <= self._capacity:
                return
            del self._known[key], held[key]


def _content(sound: Sound) -> bytes:
    digest = hashlib.sha256(f"{sound.sample_rate} {sound.samples.shape}".encode())
    digest.update(np.ascontiguousarray(sound.samples).data)
    return digest.digest()
