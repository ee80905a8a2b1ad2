"""A conversation whose cache is kept: turns, fork, truncate, save and restore.

A turn counts when its TurnEnded is handed over: one that is cancelled, left, fails or reaches a limit before is taken
back, and the session stands where it stood. A turn boundary is a number of cache rows, so taking back is forgetting the
rows behind it, which whatever uses the session next does first.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .chat import Content, Message
from .chunks import ChunkProfile
from .engines.base import Sequence as EngineSequence
from .engines.checks import check_room
from .errors import (
    ContextError,
    EngineError,
    InputError,
    MemoryLimitError,
    SessionError,
    UalmError,
)
from .files import replacing_file
from .generate import Modality
from .reading import check_file, check_values, first_line, parse_json
from .sampling import AudioSampling, TextSampling, check_options
from .saved_arrays import SavedArrays
from .segment import Segment
from .sound_limits import DECODED_BYTES
from .transcript import Said, packed, unpacked
from .turn import Turn

if TYPE_CHECKING:
    from .model import Model

#: Bytes of what a saved session says about itself: where its turns end, and the texts that were said.
MOST_ABOUT = 16 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of each turn of a session; None or infinity: no limit of its own.

    ``memory`` in bytes of cache (the model's ``max_context`` limits it in rows); ``seconds``, ``segments`` a turn.
    Memory and time are looked at every few rows; the time that a slow consumer takes counts.
    """

    memory: int | None = None
    seconds: float = math.inf
    segments: int = 8

    def __post_init__(self) -> None:
        if self.memory is not None and (type(self.memory) is not int or self.memory < 1):
            raise InputError(f"memory_limit = {self.memory!r}: give a number of bytes, or None")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, (int, float)) or not self.seconds > 0:
            raise InputError(f"time_limit = {self.seconds!r}: give a positive number of seconds")
        if type(self.segments) is not int or self.segments < 1:
            raise InputError(f"max_segments = {self.segments!r}: give a whole number of at least 1")


class Session:
    """A conversation with a model. Made by :meth:`Model.session`; one turn at a time.

    Several sessions of one model may run at once; a session itself must not be used by two threads at once, except for
    :meth:`Turn.cancel`. It needs no closing, since its cache goes with the last reference; as a context manager, also
    of ``async with``, or by :meth:`close`, it gives the cache back at once.
    """

    def __init__(self, model: Model, limits: Limits, sequence: EngineSequence | None = None) -> None:
        self._model, self.limits = model, limits
        self._sequence = model._engine.open_sequence() if sequence is None else sequence
        #: Cache rows at the end of each whole turn, the first entry before any.
        self._ends = [0]
        #: What was said in each whole turn; nothing where a saved session did not tell.
        self._said: list[tuple[Said, ...]] = []
        self._closed = False
        #: The turn that was begun last, until its end is read; one that is cancelled may still be stopping.
        self._running: Turn | None = None
        #: Guards ``_running`` and the end of a turn; no turn's own thread takes it.
        self._lock = threading.Lock()

    @property
    def turns(self) -> int:
        """Whole turns held."""
        return len(self._ends) - 1

    @property
    def rows(self) -> int:
        """Cache rows held by the whole turns; ``Model.max_context`` is the most."""
        return self._ends[-1]

    @property
    def transcript(self) -> tuple[Said, ...]:
        """What was said in the whole turns, as (role, content) pairs: messages as they were given, answers as texts and
        sounds. :meth:`Model.run` takes it."""
        return tuple(message for turn in self._said for message in turn)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.rows} of {self._model.max_context} rows"
        return f"Session({self.turns} turns, {state})"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """:meth:`close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Cancel a turn that is under way, wait until it has stopped, and give the cache back."""
        with self._lock:
            if self._closed:
                return
            if self._running is not None:
                self._running.close()
                self._running = None
            self._closed = True
            del self._sequence

    def turn(
        self,
        messages: Content | Sequence[Message],
        *,
        modality: Modality | None = None,
        audio: AudioSampling | None = None,
        text: TextSampling | None = None,
        profile: str | ChunkProfile = "balanced",
        max_seconds: float | None = None,
        max_tokens: int | None = None,
    ) -> Turn:
        """Say something; iterate over the returned :class:`Turn` for the answer's events.

        ``messages``: a str, a sound or a path as the user's message, or messages as in :meth:`Model.run`.
        ``max_seconds``: longest sound, in place of the ``max_steps`` of ``audio``; ``max_tokens``: longest text, in
        place of that of ``text``.
        ``profile``: how large the pieces of a sound are, "first_sound", "balanced", "throughput" or a ChunkProfile.
        Bad input is refused here; the work starts with the iteration.
        """
        with self._lock:
            self._refuse_if_busy("begin a turn")
        model = self._model
        given: Sequence[Any] = messages if isinstance(messages, (list, tuple)) else [_message(messages)]
        audio, text = model._options(audio, text, max_seconds, max_tokens)
        check_options("fixed", audio, text)
        model._check_modality(modality)
        given = model._read(given)
        checked = model._checked(given)
        return Turn(self, tuple(given), checked, modality, audio, text, ChunkProfile.named(profile))

    def ask(
        self,
        messages: Content | Sequence[Message],
        *,
        modality: Modality | None = None,
        audio: AudioSampling | None = None,
        text: TextSampling | None = None,
        profile: str | ChunkProfile = "balanced",
        max_seconds: float | None = None,
        max_tokens: int | None = None,
    ) -> list[Segment]:
        """One whole turn at once, as :meth:`turn` takes it: its segments."""
        limits: dict[str, Any] = {"max_seconds": max_seconds, "max_tokens": max_tokens}
        return self.turn(messages, modality=modality, audio=audio, text=text, profile=profile, **limits).segments()

    def truncate(self, turns: int) -> None:
        """Forget all but the first ``turns`` turns."""
        self._settle("truncate")
        if type(turns) is not int or not 0 <= turns <= self.turns:
            raise InputError(f"turns = {turns!r}: give a whole number from 0 to {self.turns}, the turns held")
        del self._ends[turns + 1 :], self._said[turns:]
        self._sequence.truncate(self.rows)

    def fork(self) -> Session:
        """A second session that holds the same turns; nothing is computed again."""
        self._settle("fork")
        other = Session(self._model, self.limits, self._sequence.fork())
        other._ends, other._said = list(self._ends), list(self._said)
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file (a NumPy ``.npz``), for :meth:`Model.restore`.

        :class:`SessionError` for what :meth:`Model.restore` would refuse: texts of more than :data:`MOST_ABOUT` bytes,
        or a sound of more than ``sound_limits.DECODED_BYTES``.
        """
        target = _path(path)
        self._settle("save")
        said, sounds = packed(self._said)
        about = {"format": "ualm-session", "version": 1, "model": self._model.identity, "ends": self._ends}
        written = np.frombuffer(json.dumps(about | {"said": said}).encode(), np.uint8)
        _check_saved(target, written, sounds)
        with replacing_file(target) as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = {"about": written, "cache": self._sequence.save(), **sounds}
            np.savez(file, **arrays)

    @classmethod
    def _restore(cls, model: Model, path: str | os.PathLike[str], limits: Limits) -> Session:
        file = _path(path)
        try:
            check_file(file)
            with SavedArrays(file) as stored:
                found, ends, turns = _about(stored)
                if found != model.identity:
                    raise SessionError(
                        f"{file}: was saved with another bundle ({found!s:.12}); open that one to restore it"
                    )
                needed = ends[-1] * model._engine.bytes_per_row
                if limits.memory is not None and needed > limits.memory:
                    raise MemoryLimitError(
                        f"{file}: its {ends[-1]} rows need {needed} bytes of cache, but memory_limit = {limits.memory}"
                    )
                try:
                    check_room(0, ends[-1], model.max_context)
                except ContextError as error:
                    raise ContextError(f"{file}: {error}") from error
                shape = model.bundle.manifest.model
                row = 2 * shape.layers * shape.kv_heads * shape.head_dim * np.dtype(np.float32).itemsize
                cache = stored.read("cache", ends[-1] * row)
                if not np.isfinite(cache).all():
                    raise ValueError("its cache holds NaN or infinity")
                said = unpacked(turns, stored)
        except FileNotFoundError:
            raise SessionError(f"{file}: no such file; save a session first") from None
        except OSError as error:
            why = error.strerror or error
            raise SessionError(f"{file}: cannot be read ({why}); check its name and permissions") from error
        except ValueError as error:
            if isinstance(error, UalmError):
                raise
            raise SessionError(f"{file}: not a saved session ({first_line(error)}); save it again") from error
        session = cls(model, limits)
        try:
            session._sequence.restore(cache)
        except EngineError as error:
            raise SessionError(f"{file}: {error}; save it again") from error
        session._ends, session._said = ends, said
        return session

    def _refuse_if_busy(self, what: str) -> None:
        """Call it with the lock held."""
        if self._closed:
            raise SessionError(f"cannot {what}: the session is closed; begin another")
        if self._running is not None and not self._running._cancelled:
            raise SessionError(f"cannot {what} while a turn is under way; read it to its end or cancel it first")

    def _settle(self, what: str) -> None:
        """Wait until a cancelled turn has stopped, and forget the rows of turns that were not whole."""
        with self._lock:
            self._refuse_if_busy(what)
            if self._running is not None:
                self._running._join()
                self._running = None
            self._sequence.truncate(self.rows)


def _about(stored: SavedArrays) -> tuple[object, list[int], list[object]]:
    """Which bundle a saved session is of, the rows at which its turns end, and what was said in each.

    ValueError where it is no session.
    """
    about = parse_json(stored.read("about", MOST_ABOUT).tobytes())
    if not isinstance(about, dict) or about.get("format") != "ualm-session" or about.get("version") != 1:
        raise ValueError("not a session of version 1")
    ends, cache = about.get("ends"), stored.describe("cache")
    if not isinstance(ends, list) or not all(type(end) is int for end in ends):
        raise ValueError("it does not say where its turns end")
    if ends != sorted({0, *ends}) or len(cache.shape) != 5 or cache.shape[3] != ends[-1]:
        shown = f"{ends!s:.80}"
        raise ValueError(f"turns that end at rows {shown} and a cache of {list(cache.shape)} do not agree")
    # a file of an earlier version does not tell what was said
    turns = about.get("said", [[] for _ in ends[1:]])
    if not isinstance(turns, list) or len(turns) != len(ends) - 1:
        raise ValueError(f"it does not tell of the {len(ends) - 1} turns that it holds")
    return about.get("model"), ends, turns


def _check_saved(target: Path, about: np.ndarray, sounds: Mapping[str, np.ndarray]) -> None:
    """Nothing is saved that would not be restored."""
    try:
        if about.nbytes > MOST_ABOUT:
            raise ValueError(f"what was said takes {about.nbytes} bytes, and at most {MOST_ABOUT} are restored")
        check_values(about.tobytes())
        for name, values in sounds.items():
            if values.nbytes > DECODED_BYTES:
                raise ValueError(f"{name} takes {values.nbytes} bytes, and at most {DECODED_BYTES} are restored")
    except ValueError as error:
        raise SessionError(f"{target}: {error}; truncate the session, and save it again") from error


def _path(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"a {type(path).__name__} names no file; give the path of a saved session")
    return Path(path)


def _message(content: object) -> object:
    """The one message that was given: in its own form, or as what the user says."""
    return content if isinstance(content, Mapping) else ("user", content)
