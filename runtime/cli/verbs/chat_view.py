"""How ``ualm chat`` shows a turn: as text with a live line for people, or as one JSON object a line for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Protocol

from ...conversation.events import Event, SegmentEnded, SegmentStarted, SoundChunk, TextDelta
from ...errors import UalmError
from ...finish import FinishReason
from ...shown import in_a_line
from ...terminal.live import LiveLine, sound_progress
from ...terminal.report import print_any
from ...terminal.tables import CONTROLS as CONTROLS
from ..options import tell_cut


class View(Protocol):
    """What the chat shows its user."""

    def begin(self) -> None:
        """A turn begins; the model processes the messages."""
        ...

    def event(self, event: Event) -> None:
        """An event of a turn, as it arrives."""
        ...

    def rest(self) -> None:
        """The turn is over, however it ended."""
        ...

    def note(self, kind: str, plain: str, fields: Mapping[str, object]) -> None:
        """A command is done: ``plain`` for people, ``kind`` and ``fields`` for programs."""
        ...

    def error(self, error: UalmError) -> None:
        """A line or its turn failed; the chat goes on."""
        ...


class TextView:
    """Answers on standard output as they arrive; live line, notes and errors on standard error.

    ``notices``: a line there as well if a limit cuts an answer.
    """

    def __init__(self, *, notices: bool = True) -> None:
        self._notices = notices
        self._live = LiveLine()
        self._terminal = sys.stdout.isatty()
        self._mid_line = False
        self._started = 0.0

    def begin(self) -> None:
        self._live.show("thinking ...")

    def event(self, event: Event) -> None:
        if isinstance(event, SegmentStarted):
            self._started = time.perf_counter()
        elif isinstance(event, TextDelta):
            self._live.hide()
            print_any(event.text.translate(CONTROLS) if self._terminal else event.text)
            self._mid_line = not event.text.endswith("\n")
        elif isinstance(event, SoundChunk):
            made = (event.start + len(event.samples)) / event.sample_rate
            self._live.show(sound_progress(made, time.perf_counter() - self._started))
        elif isinstance(event, SegmentEnded):
            self.rest()
            self._tell_end(event)
        elif event.reason == "cancelled":
            self.rest()
            self._tell("stopped; the turn is taken back")

    def _tell_end(self, event: SegmentEnded) -> None:
        sound, elapsed = event.result.sound, time.perf_counter() - self._started
        if sound is not None:
            factor = f"real-time factor {elapsed / sound.duration:.2f}"
            print_any(f"[{sound.duration:.2f} s of sound in {elapsed:.2f} s, {factor}; keep it with /save FILE.wav]\n")
        if self._notices:
            tell_cut(event.result.finish_reason)

    def rest(self) -> None:
        self._live.hide()
        if self._mid_line:
            print_any("\n")
            self._mid_line = False

    def note(self, kind: str, plain: str, fields: Mapping[str, object]) -> None:
        self._tell(plain)

    def error(self, error: UalmError) -> None:
        self._tell("ualm: " + in_a_line(error))

    @staticmethod
    def _tell(text: str) -> None:
        print(text.translate(CONTROLS), file=sys.stderr, flush=True)


class JsonView:
    """Everything on standard output, one object with a ``type`` a line; samples are counted, never written."""

    def __init__(self) -> None:
        #: How the last segment ended.
        self._finish: FinishReason = "stop"

    def begin(self) -> None:
        pass

    def event(self, event: Event) -> None:
        if isinstance(event, SegmentStarted):
            self._write("segment_started", {"segment": event.segment, "modality": event.modality})
        elif isinstance(event, TextDelta):
            self._write("text", {"segment": event.segment, "text": event.text})
        elif isinstance(event, SoundChunk):
            fields = {"segment": event.segment, "start": event.start, "samples": len(event.samples)}
            self._write("sound", fields | {"sample_rate": event.sample_rate})
        elif isinstance(event, SegmentEnded):
            self._finish = event.result.finish_reason
            self._write("segment_ended", {"segment": event.segment} | _segment_fields(event))
        else:
            seconds = {name: round(value, 4) for name, value in event.seconds.items()}
            reason = event.reason if event.reason == "cancelled" else self._finish
            self._write("turn_ended", {"reason": reason, "seconds": seconds})

    def rest(self) -> None:
        pass

    def note(self, kind: str, plain: str, fields: Mapping[str, object]) -> None:
        self._write(kind, fields)

    def error(self, error: UalmError) -> None:
        self._write("error", {"error": type(error).__name__, "message": str(error)})

    @staticmethod
    def _write(kind: str, fields: Mapping[str, object]) -> None:
        print_any(json.dumps({"type": kind, **fields}) + "\n")


def _segment_fields(event: SegmentEnded) -> dict[str, object]:
    result = event.result
    fields: dict[str, object] = {"modality": result.modality, "finish": result.finish_reason, "rows": len(result.rows)}
    if result.sound is not None:
        fields |= {"seconds": round(result.sound.duration, 3), "sample_rate": result.sound.sample_rate}
    if result.text is not None:
        fields["text"] = result.text
    return fields
