"""The named errors of ualm. Each message names the file or field, the value found, and the fix."""

from __future__ import annotations

from typing import Any


class UalmError(Exception):
    """Base of every error that ualm raises on purpose.

    ``segments``: the :class:`Segment` objects that were finished before a model's answer failed.
    """

    segments: list[Any]  # of Segment, which imports this module

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.segments = []


class ExportError(UalmError):
    """A training run cannot be exported: a field, file or tensor is missing, extra, or not supported."""


class BundleError(UalmError):
    """A bundle cannot be opened: a file is missing, changed, from a newer version, or outside the folder."""


class InputError(UalmError, ValueError):
    """A message, sound, text or sampling option given by the caller cannot be used."""


class ContextError(InputError):
    """The conversation does not fit into the reserved context (``max_context``)."""


class LimitError(UalmError):
    """A session's turn reached a limit (memory, time, segments) and was taken back; the message says what is kept."""


class MemoryLimitError(LimitError):
    """The session's cache would outgrow its ``memory_limit``."""


class TimeLimitError(LimitError):
    """The turn took longer than the session's ``time_limit``."""


class SegmentLimitError(LimitError):
    """The turn went on after ``max_segments`` segments."""


class SessionError(UalmError):
    """A session cannot do this now: a turn is under way, or a saved session belongs to another model."""


class ModalityError(UalmError):
    """The model chose to answer in a modality that it has no parts for (image, video, tool call)."""


class EngineError(UalmError):
    """An engine cannot be loaded, or failed while it ran."""


class OutputError(UalmError, OSError):
    """A file could not be written whole; nothing half-written is left behind."""
