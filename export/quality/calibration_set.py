"""The calibration set: prompts and sounds from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ...runtime.bundle.entries import Calibration
from ...runtime.conversation.prompt import Message, as_pair
from ...runtime.errors import ExportError, InputError
from ...runtime.files.reading import first_line, read_text
from ...runtime.sound.limits import Limit
from ...runtime.sound.sound import Sound

#: Formats of the backbone that can be calibrated.
CALIBRATED = ("int8", "int4", "fp8")
#: Most bytes of a file of prompts.
MOST_PROMPTS = 4 << 20
#: Most prompts and sounds of a set: methods like this one use a few hundred.
MOST_EXAMPLES = 10_000
#: Most bytes of the samples (float32) of all its sounds, held until the body is fitted to them: two hours at 16 kHz.
MOST_SOUND_BYTES = 448 << 20
#: The question asked about each sound.
QUESTION = "What do you hear?"
_TEXT_SUFFIXES = (".txt", ".text")


@dataclass(frozen=True)
class CalibrationSet:
    """Conversations that the model answers: each a list of messages. ``source``: the name of what was read, or None."""

    conversations: Sequence[Sequence[Message]]
    source: str | None = None

    @classmethod
    def read(cls, path: Path) -> CalibrationSet:
        """``path``: a text file with one prompt per line, a sound, or a folder of both. An ExportError names what does
        not fit."""
        conversations: list[list[Message]] = []
        held = 0
        for file in calibration_files(path):
            if file.suffix.lower() in _TEXT_SUFFIXES:
                conversations += [[("user", line)] for line in _lines(file)]
            else:
                sound = _heard(path, file, held)
                held += sound.samples.nbytes
                conversations.append([("user", sound), ("user", QUESTION)])
            if len(conversations) > MOST_EXAMPLES:
                raise ExportError(
                    f"--calibrate {path}: more than {MOST_EXAMPLES} prompts and sounds; some hundred are enough"
                )
        if not conversations:
            raise _nothing(path)
        return cls(conversations, path.name)

    def entry(self) -> Calibration:
        """The manifest's record of it: how much there was, and only the name of a path, because a bundle is copied
        elsewhere."""
        sounds = sum(isinstance(as_pair(messages[0])[1], Sound) for messages in self.conversations)
        return Calibration(self.source, len(self.conversations) - sounds, sounds)


def check_calibrated(precision: str) -> None:
    """Raise :class:`ExportError` for a backbone format that has no calibration."""
    if precision not in CALIBRATED:
        raise ExportError(f"--calibrate: it is for int8, int4 and fp8, not for {precision}; leave it out")


def calibration_files(path: Path) -> list[Path]:
    """The texts and sounds that a path names, in order; ExportError if a file is neither, or if there are none."""
    if not path.exists():
        raise ExportError(f"--calibrate {path}: no such file or folder; give prompts (.txt, one a line) or sounds")
    # names that begin with a dot belong to the system
    found = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = sorted(found) if path.is_dir() else [path]
    known = {f".{kind.lower()}" for kind in soundfile.available_formats()} | {".mp3", ".opus", ".oga"}
    known |= {".m4a", ".mp4", ".3gp", ".webm"}  # with the extra av, which the error names if it is missing
    for file in files:
        if file.suffix.lower() not in known | set(_TEXT_SUFFIXES):
            raise ExportError(f"--calibrate {file}: neither a text (.txt) nor a sound; take it out of what is named")
    if not files:
        raise _nothing(path)
    return files


def _heard(path: Path, file: Path, held: int) -> Sound:
    """The channel of a sound that the model hears. ``held``: bytes of the sounds before it."""
    try:
        sound = Sound.read_within(file, Limit(most_bytes=MOST_SOUND_BYTES - held))
    except InputError as error:
        others = f" (all sounds together may take {MOST_SOUND_BYTES >> 20} MiB)" if held else ""
        raise ExportError(f"--calibrate {path}: {error}{others}") from error
    return sound if sound.samples.ndim == 1 else Sound(sound.samples[:, 0], sound.sample_rate)


def _nothing(path: Path) -> ExportError:
    return ExportError(f"--calibrate {path}: holds no prompt and no sound; give prompts (.txt, one a line) or sounds")


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in read_text(file, MOST_PROMPTS).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ExportError(f"--calibrate {file}: not a readable text in UTF-8 ({first_line(error)})") from error
