"""A conversation whose cache is kept: turns, fork, truncate, save and restore.

A turn counts once its TurnEnded has been delivered: a turn that is cancelled, left, fails or reaches a limit before
that is taken back, and the session is as it was before. A turn boundary is a number of cache rows, so taking a turn
back means forgetting the rows after it, which the next use of the session does first.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..audio.pacing import ChunkProfile
from ..engines.protocol import check_room
from ..errors import ContextError, EngineError, InputError, MemoryLimitError, SessionError, UalmError
from ..files.reading import check_file, check_values, first_line, parse_json
from ..files.saved_arrays import SavedArrays
from ..files.writing import replacing_file
from ..sampling import AudioSampling, TextSampling
from ..sound.limits import DECODED_BYTES
from ..vocabulary import Modality
from .prompt import Content, Message
from .resources import Resources
from .segment import Segment
from .state import Limits, SessionState
from .transcript import Entry, packed, unpacked
from .turn import Turn, open_turn

#: Bytes of a saved session's description: where its turns end, and the texts that were said.
MOST_ABOUT = 16 << 20


class Session:
    """A conversation with a model, whose cache is kept from turn to turn. Made by :meth:`Model.session`.

    It runs one turn at a time. It needs no closing, since its cache is freed with the last reference; as a context
    manager, also of ``async with``, or by :meth:`close`, it frees the cache immediately.

    Parameters
    ----------
    state : SessionState
        The cache and the limits, as :meth:`Model.session` makes them.

    Attributes
    ----------
    state : SessionState
        What turns and reasonings work on; not for callers.

    Notes
    -----
    A turn counts once its :class:`TurnEnded` has been read. One that is cancelled, left, fails or reaches a limit
    before that is taken back, and the session is as it was before.

    Several sessions of one model may run at once; a session itself must not be used by two threads at once, except for
    :meth:`Turn.cancel`.

    Examples
    --------
    >>> with model.session() as session:
    ...     [answer] = session.ask([("user", sound), ("user", "what is played?")], modality="text")
    ...     session.turns
    1
    """

    def __init__(self, state: SessionState) -> None:
        self.state = state  # what turns and reasonings work on

    @property
    def limits(self) -> Limits:
        """Limits of each turn (bytes, seconds, segments); another :class:`Limits` may be set for later turns."""
        return self.state.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.state.limits = limits

    @property
    def turns(self) -> int:
        """Number of whole turns held."""
        return self.state.turns

    @property
    def rows(self) -> int:
        """Cache rows held by the whole turns; ``Model.max_context`` is the most."""
        return self.state.rows

    @property
    def transcript(self) -> tuple[Entry, ...]:
        """What was said in the whole turns, as (role, content) pairs, for :meth:`Model.run`.

        Messages are as they were given, answers are texts and sounds.
        """
        return tuple(message for turn in self.state.transcript for message in turn)

    def __repr__(self) -> str:
        state = "closed" if self.state.closed else f"{self.rows} of {self.state.resources.max_context} rows"
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
        """Do what :meth:`close` does without blocking the event loop.

        Examples
        --------
        >>> import asyncio
        >>> session = model.session()
        >>> asyncio.run(session.aclose())
        >>> session
        Session(0 turns, closed)
        """
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Cancel a turn that is under way, wait until it has stopped, and free the cache.

        Examples
        --------
        >>> session = model.session()
        >>> session.close()
        >>> session
        Session(0 turns, closed)
        """
        self.state.close()

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
        """Say something; iterate over the returned turn for the answer's events.

        Bad input is refused here; the work starts with the iteration.

        Parameters
        ----------
        messages : str, Sound, Speech, path-like, bytes, binary file or list of messages
            The user's message, or messages as in :meth:`Model.run`: only what is new.
        modality : {"audio", "text"} or None, default None
            Modality of the answer's first segment; None lets the model choose.
        audio : AudioSampling or None, default None
            How sounds are drawn; None for the bundle's defaults.
        text : TextSampling or None, default None
            How texts are drawn; None for the bundle's defaults.
        profile : str or ChunkProfile, default "balanced"
            How large the pieces of a sound are: "first_sound", "balanced", "throughput" or a profile.
        max_seconds : float or None, default None
            Longest sound in seconds, in place of the ``max_steps`` of ``audio``; None changes nothing.
        max_tokens : int or None, default None
            Longest text in tokens, in place of the ``max_steps`` of ``text``; None changes nothing.

        Returns
        -------
        Turn
            The turn, not begun.

        Raises
        ------
        InputError
            For messages or options that cannot be used.
        SessionError
            While another turn is under way, and if the session is closed.

        Examples
        --------
        >>> turn = model.session().turn("a trumpet plays C5", modality="audio", max_seconds=0.1)
        >>> [type(event).__name__ for event in turn]
        ['SegmentStarted', 'SoundChunk', 'SegmentEnded', 'TurnEnded']
        """
        options: dict[str, Any] = {"modality": modality, "audio": audio, "text": text, "profile": profile}
        return open_turn(self.state, messages, **options, max_seconds=max_seconds, max_tokens=max_tokens)

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
        """Take one whole turn, and return its segments.

        The sound is not played meanwhile: its pieces follow the profile, not the clock, so that equal turns give equal
        bits.

        Parameters
        ----------
        messages : str, Sound, Speech, path-like, bytes, binary file or list of messages
            The user's message, or messages as in :meth:`Model.run`: only what is new.
        modality : {"audio", "text"} or None, default None
            Modality of the answer's first segment; None lets the model choose.
        audio : AudioSampling or None, default None
            How sounds are drawn; None for the bundle's defaults.
        text : TextSampling or None, default None
            How texts are drawn; None for the bundle's defaults.
        profile : str or ChunkProfile, default "balanced"
            How large the pieces are in which a sound is decoded: "first_sound", "balanced", "throughput" or a profile.
        max_seconds : float or None, default None
            Longest sound in seconds, in place of the ``max_steps`` of ``audio``; None changes nothing.
        max_tokens : int or None, default None
            Longest text in tokens, in place of the ``max_steps`` of ``text``; None changes nothing.

        Returns
        -------
        list of Segment
            The segments of the answer, in order.

        Raises
        ------
        InputError
            For messages or options that cannot be used.
        ContextError
            Where the rows do not fit into ``max_context``.
        LimitError
            Where the turn reaches a limit of the session.
        ModalityError
            Where the model chooses a modality that it has no parts for.
        SessionError
            While another turn is under way, and if the session is closed.
        EngineError
            Where the engine fails, or the model is closed.

        Examples
        --------
        >>> session = model.session()
        >>> [segment] = session.ask("a trumpet plays C5", modality="audio", max_seconds=0.1)
        >>> segment.sound.duration, session.turns
        (0.1, 1)
        """
        options: dict[str, Any] = {"modality": modality, "audio": audio, "text": text, "profile": profile}
        limits: dict[str, Any] = {"max_seconds": max_seconds, "max_tokens": max_tokens}
        return open_turn(self.state, messages, **options, **limits, live=False).segments()

    def truncate(self, turns: int) -> None:
        """Forget all but the first turns.

        Rows become free for later turns; memory is not freed.

        Parameters
        ----------
        turns : int
            Turns to keep, 0 to :attr:`turns`.

        Raises
        ------
        InputError
            For another number.
        SessionError
            While a turn is under way, and if the session is closed.

        Examples
        --------
        >>> session = model.session()
        >>> answer = session.ask("a trumpet plays C5", modality="audio", max_seconds=0.1)
        >>> session.truncate(0)
        >>> session.turns, session.rows
        (0, 0)
        """
        sequence = self.state.settle("truncate")
        if type(turns) is not int or not 0 <= turns <= self.turns:
            raise InputError(f"turns = {turns!r}: give a whole number from 0 to {self.turns}, the turns held")
        del self.state.ends[turns + 1 :], self.state.transcript[turns:]
        sequence.truncate(self.rows)

    def fork(self) -> Session:
        """Make a second session that holds the same turns; nothing is computed again.

        The rows are copied, the limits are kept.

        Returns
        -------
        Session
            The second session, independent of this one.

        Raises
        ------
        SessionError
            While a turn is under way, and if the session is closed.

        Examples
        --------
        >>> session = model.session()
        >>> answer = session.ask("a trumpet plays C5", modality="audio", max_seconds=0.1)
        >>> other = session.fork()
        >>> other.rows == session.rows
        True
        """
        sequence = self.state.settle("fork")
        other = SessionState(self.state.resources, self.limits, sequence.fork())
        other.ends, other.transcript = list(self.state.ends), list(self.state.transcript)
        return Session(other)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file (a NumPy ``.npz``), for :meth:`Model.restore`.

        The file holds the cache and what was said, sounds included; a sound that was given by its path is a path there
        too.

        Parameters
        ----------
        path : str or path-like
            The file; one that is there is replaced, whole or not at all.

        Raises
        ------
        SessionError
            While a turn is under way, if the session is closed, and for what :meth:`Model.restore` would refuse: texts
            of more than :data:`MOST_ABOUT` bytes, or a sound of more than ``limits.DECODED_BYTES``.
        OutputError
            If the file cannot be written.
        InputError
            If ``path`` is not a path.

        Examples
        --------
        >>> session = model.session()
        >>> answer = session.ask("a trumpet plays C5", modality="audio", max_seconds=0.1)
        >>> session.save("talk.npz")
        >>> model.restore("talk.npz").turns
        1
        """
        target = _path(path)
        sequence, state = self.state.settle("save"), self.state
        transcript, sounds = packed(state.transcript)
        model = state.resources.bundle.digest
        about = {"format": "ualm-session", "version": 1, "model": model, "ends": state.ends}
        written = np.frombuffer(json.dumps(about | {"said": transcript}).encode(), np.uint8)
        _check_saved(target, written, sounds)
        with replacing_file(target) as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = {"about": written, "cache": sequence.save(), **sounds}
            np.savez(file, **arrays)

    @classmethod
    def restored(cls, resources: Resources, path: str | os.PathLike[str], limits: Limits) -> Session:
        """Read a saved session; :meth:`Model.restore` is the door to it.

        Parameters
        ----------
        resources : Resources
            The opened model.
        path : str or path-like
            The file that :meth:`save` wrote.
        limits : Limits
            Limits of each turn.

        Returns
        -------
        Session
            A session with the turns of the saved one.

        Raises
        ------
        SessionError
            If the file is missing, cannot be read, is not a saved session, or belongs to another bundle.
        MemoryLimitError
            If its rows need more bytes than ``limits.memory``.
        ContextError
            If it has more rows than the model's ``max_context``.
        InputError
            If ``path`` is not a path.

        Examples
        --------
        >>> session = model.session()
        >>> session.save("empty.npz")
        >>> Session.restored(model.resources, "empty.npz", session.limits)
        Session(0 turns, 0 of ... rows)
        """
        file = _path(path)
        try:
            check_file(file)
            with SavedArrays(file) as stored:
                found, ends, turns = _about(stored)
                if found != resources.bundle.digest:
                    raise SessionError(
                        f"{file}: was saved with another bundle ({found!s:.12}); open that one to restore it"
                    )
                needed = ends[-1] * resources.engine.bytes_per_row
                if limits.memory is not None and needed > limits.memory:
                    raise MemoryLimitError(
                        f"{file}: its {ends[-1]} rows need {needed} bytes of cache, but memory_limit = {limits.memory}"
                    )
                try:
                    check_room(0, ends[-1], resources.max_context, most=resources.bundle.manifest.model.max_positions)
                except ContextError as error:
                    raise ContextError(f"{file}: {error}") from error
                shape = resources.bundle.manifest.model
                row = 2 * shape.layers * shape.kv_heads * shape.head_dim * np.dtype(np.float32).itemsize
                cache = stored.read("cache", ends[-1] * row)
                if not np.isfinite(cache).all():
                    raise ValueError("its cache holds NaN or infinity")
                transcript = unpacked(turns, stored)
        except FileNotFoundError:
            raise SessionError(f"{file}: no such file; save a session first") from None
        except OSError as error:
            why = error.strerror or error
            raise SessionError(f"{file}: cannot be read ({why}); check its name and permissions") from error
        except ValueError as error:
            if isinstance(error, UalmError):
                raise
            raise SessionError(f"{file}: not a saved session ({first_line(error)}); save it again") from error
        state = SessionState(resources, limits)
        try:
            state.sequence.restore(cache)
        except EngineError as error:
            raise SessionError(f"{file}: {error}; save it again") from error
        state.ends, state.transcript = ends, transcript
        return cls(state)


def _about(stored: SavedArrays) -> tuple[object, list[int], list[object]]:
    """The bundle that a saved session belongs to, the rows at which its turns end, and what was said in each.

    ValueError if it is not a session.
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
    # a file of an earlier version does not record what was said
    turns = about.get("said", [[] for _ in ends[1:]])
    if not isinstance(turns, list) or len(turns) != len(ends) - 1:
        raise ValueError(f"it has no record of the {len(ends) - 1} turns that it holds")
    return about.get("model"), ends, turns


def _check_saved(target: Path, about: np.ndarray, sounds: Mapping[str, np.ndarray]) -> None:
    """Refuse to save anything that would not be restored."""
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
