"""The named errors of ualm. Each message names the file or field, the value found, and the mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Segment


class UalmError(Exception):
    """Base of every error that ualm raises on purpose."""


class ExportError(UalmError):
    """A training run cannot be exported: a field, file or tensor is missing, extra, or not supported."""


class BundleError(UalmError):
    """A bundle cannot be opened: a file is missing, changed, from a newer version, or outside the folder."""


class InputError(UalmError, ValueError):
    """A message, sound, text or sampling option given by the caller cannot be used."""


class ContextError(InputError):
    """The conversation does not fit into the context that was reserved (``max_context``)."""


class ModalityError(UalmError):
    """The model chose to answer in a modality that it has no parts for (image, video, tool call).

    ``segments`` holds the segments of the turn that were finished before.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.segments: list[Segment] = []


class EngineError(UalmError):
    """An engine cannot be loaded, or failed while it ran."""


class OutputError(UalmError, OSError):
    """A file could not be written whole; nothing half-written is left behind."""
