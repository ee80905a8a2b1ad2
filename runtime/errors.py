"""The named errors of ualm. Each message names the file or field, the value found, and the fix."""

from __future__ import annotations

from typing import Any


class UalmError(Exception):
    """Base of every error that ualm raises on purpose.

    The message names the file or field, the value found, and the fix.

    Parameters
    ----------
    *arguments : object
        The message, as of any exception.

    Attributes
    ----------
    segments : list of Segment
        Segments of the answer that were finished before it failed; empty where there are none.

    Examples
    --------
    >>> try:
    ...     model.session(memory_limit=1).ask("a trumpet plays C5", modality="audio")
    ... except UalmError as error:
    ...     print(type(error).__name__, error.segments)
    MemoryLimitError []
    """

    segments: list[Any]  # of Segment, which imports this module

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.segments = []


class ExportError(UalmError):
    """A training run cannot be exported: a field, file or tensor is missing, extra, or not supported.

    Raised by ``ualm export`` and ``ualm.export``; no bundle is written.
    """


class BundleError(UalmError):
    """A bundle cannot be opened: a file is missing, changed, from a newer version, or outside the folder.

    Raised by :meth:`Model.open`, and wherever else a bundle is read.

    Examples
    --------
    >>> Model.open("nowhere")
    Traceback (most recent call last):
    ualm.runtime.errors.BundleError: nowhere: no bundle here (no such folder); ...
    """


class InputError(UalmError, ValueError):
    """A message, sound, text, option or limit given by the caller cannot be used; it is a ``ValueError`` as well.

    Raised before anything is computed, wherever that can be known beforehand.

    Examples
    --------
    >>> model.generate("a trumpet plays C5", guidance=0)
    Traceback (most recent call last):
    ualm.runtime.errors.InputError: AudioSampling: guidance = 0 must be a number from 1 to ...; 1 turns guidance off
    """


class ContextError(InputError):
    """The conversation does not fit into the reserved context (``max_context`` of :meth:`Model.open`, in rows).

    Raised for a prompt, before it is computed, for an answer, at the row that finds no room, and for a saved session
    that has more rows.

    Attributes
    ----------
    segments : list of Segment
        Segments of the answer that were finished before.

    Examples
    --------
    >>> with Model.open(threads=1, max_context=16) as small:
    ...     small.ask(sound, "what is played?")
    Traceback (most recent call last):
    ualm.runtime.errors.ContextError: the conversation needs ... rows (...), but max_context = 16; ...
    """


class LimitError(UalmError):
    """A session's turn reached a limit (memory, time, segments) and was taken back; the message says what is kept.

    The base of the three limits of a turn. The session keeps the whole turns before.

    Attributes
    ----------
    segments : list of Segment
        Segments that were finished in the turn.

    Examples
    --------
    >>> session = model.session(time_limit=1e-6)
    >>> try:
    ...     session.ask("a trumpet plays C5", modality="audio")
    ... except LimitError as error:
    ...     print(type(error).__name__, session.turns)
    TimeLimitError 0
    """


class MemoryLimitError(LimitError):
    """The session's cache would outgrow its ``memory_limit`` (bytes).

    Raised by a turn, before the rows are computed, and by :meth:`Model.restore` for a session that already exceeds it.

    Attributes
    ----------
    segments : list of Segment
        Segments that were finished in the turn.

    Examples
    --------
    >>> model.session(memory_limit=1).ask("a trumpet plays C5", modality="audio")
    Traceback (most recent call last):
    ualm.runtime.errors.MemoryLimitError: the conversation needs ... bytes of cache (...), but memory_limit = 1; ...
    """


class TimeLimitError(LimitError):
    """The turn took longer than the session's ``time_limit`` (seconds).

    The time that a slow consumer of the events takes counts.

    Attributes
    ----------
    segments : list of Segment
        Segments that were finished in the turn.

    Examples
    --------
    >>> model.session(time_limit=1e-6).ask("a trumpet plays C5", modality="audio")
    Traceback (most recent call last):
    ualm.runtime.errors.TimeLimitError: the turn took longer than time_limit = 1e-06 s; the turn is taken back; ...
    """


class SegmentLimitError(LimitError):
    """The turn went on after ``max_segments`` segments.

    Raised by a session's turns. :meth:`Model.run` returns what it has instead; its last segment then has finish
    ``"eot"``.

    Attributes
    ----------
    segments : list of Segment
        Segments that were finished in the turn, ``max_segments`` of them.
    """


class SessionError(UalmError):
    """A session cannot do this now: a turn is under way, or a saved session belongs to another model.

    Raised for a second turn and for ``fork``, ``truncate`` and ``save`` while a turn is under way, for events that are
    read twice, on a closed session, for a file that is missing, not a session, or another bundle's, and for a session
    that is too large to be restored once it is saved. The session, and a turn under way, stay as they are.

    Examples
    --------
    >>> session = model.session()
    >>> session.close()
    >>> session.fork()
    Traceback (most recent call last):
    ualm.runtime.errors.SessionError: cannot fork: the session is closed; begin another
    """


class ModalityError(UalmError):
    """The model chose to answer in a modality that it has no parts for (image, video, tool call).

    Raised where the caller leaves the choice to the model; ``modality="audio"`` or ``"text"`` forces it.

    Attributes
    ----------
    segments : list of Segment
        Segments of the answer that were finished before.
    """


class EngineError(UalmError):
    """An engine cannot be loaded, or failed while it ran.

    Raised for an engine that is unknown or cannot run here, for a part that cannot be loaded, for memory that the
    engine does not get, for numbers that are not finite, and by every computation with a closed model.

    Attributes
    ----------
    segments : list of Segment
        Segments of the answer that were finished before.

    Examples
    --------
    >>> Model.open(engine="abacus")
    Traceback (most recent call last):
    ualm.runtime.errors.EngineError: engine 'abacus' is unknown; available: ...
    """


class OutputError(UalmError, OSError):
    """A file could not be written whole; nothing half-written is left behind. It is an ``OSError`` as well.

    Raised by :meth:`Sound.save`, :meth:`Session.save` and the commands that write files; a file that was there before
    stays as it was.

    Examples
    --------
    >>> sound.save("no such folder/trumpet.wav")
    Traceback (most recent call last):
    ualm.runtime.errors.OutputError: no such folder/trumpet.wav: cannot write here (No such file or directory); ...
    """
