"""Reading sounds from files, bytes and pipes: in blocks, up to a limit, with notes on what is irregular."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import soundfile

from ..errors import InputError
from ..files.reading import first_line
from ..process.extras import install_hint
from . import containers as sound_av
from .headers import Header, look
from .limits import STREAM_BYTES, Limit

#: Where a sound can be read: a path, the bytes of a file, or a binary file object.
Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]

#: Values (samples of all channels) decoded at once.
_BLOCK = 1 << 18
#: Bytes taken from a pipe at once.
_READ = 1 << 16
#: From here on, libsndfile's number of samples means "not known" (it is 2^63 - 1).
_UNKNOWN = 1 << 62
#: Samples by which an MP3 may be shorter than its header says: what its encoder put before and after the sound.
_MP3_FRAMES = 2 * 1152
_MEND = "give WAV, FLAC, OGG, MP3 or AIFF, or convert it, for example with: ffmpeg -i INPUT OUTPUT.wav"


@dataclass(frozen=True)
class Read:
    """``samples``: float32 ``[n, channels]`` at ``rate`` Hz. ``name``: of the source. ``notes``: irregularities."""

    samples: np.ndarray
    rate: int
    name: str
    notes: tuple[str, ...]


def read(source: Source, limit: Limit) -> Read:
    """Read a sound, or raise an :class:`InputError` that names the source."""
    name = _name(source)
    try:
        with _opened(source, name, limit) as file:
            try:
                samples, rate, notes = _libsndfile(file, limit)
            except _DamagedError as error:
                samples, rate, notes = _other(file, limit, str(error))
                notes += [f"damaged or cut off ({error}); {len(samples) / rate:.2f} s could be read"]
            except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
                samples, rate, notes = _other(file, limit, reason_of(error))
                if "malformed" in reason_of(error) and not notes:
                    notes = [
                        f"may be damaged or cut off ({reason_of(error)}); {len(samples) / rate:.2f} s could be read"
                    ]
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error}); check its permissions") from error
    return Read(samples, rate, name, tuple(notes))


def _name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "bytes of a sound"
    name = getattr(source, "name", None)
    return "standard input" if name in ("<stdin>", 0) else name if isinstance(name, str) else "file object"


@contextmanager
def _opened(source: Source, name: str, limit: Limit) -> Iterator[BinaryIO]:
    """A seekable file that holds something and stands at its beginning."""
    if isinstance(source, (str, os.PathLike)):
        # an open file, not its name: libsndfile takes raw formats by their extension and hides the system's errors
        with _regular_file(source) as handle:
            yield handle
        return
    if isinstance(source, (bytes, bytearray, memoryview)):
        file: BinaryIO = io.BytesIO(source)
    elif callable(getattr(source, "read", None)):
        seekable = getattr(source, "seekable", None)
        if isinstance(source, io.TextIOBase):
            raise InputError('opened as text; open it with mode "rb"')
        rewound = callable(seekable) and seekable() and source.tell() == 0
        file = source if rewound else _held(source, limit)
    else:
        raise InputError(
            f"a {type(source).__name__} is not a sound; give the path of a sound file, its bytes, or a file opened "
            'with mode "rb"'
        )
    if not file.read(1):
        raise InputError("the file is empty (0 bytes); record or copy it again")
    file.seek(0)
    yield file


def _regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    file = Path(path)
    try:
        if not file.exists():
            raise InputError("no such file; give the path of a sound file")
        if file.is_fifo():
            raise InputError('a pipe, not a file; give "-" to the command and the sound on standard input')
        if not file.is_file():
            raise InputError("not a file; give the path of a sound file")
        if file.stat().st_size == 0:
            raise InputError("the file is empty (0 bytes); record or copy it again")
        return open(file, "rb")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not the name of a file ({error}); give the path of a sound file") from error


def _held(source: BinaryIO, limit: Limit) -> BinaryIO:
    """The content of a stream, in memory: at most :data:`STREAM_BYTES`, and no more than is ever heard."""
    held, most = io.BytesIO(), STREAM_BYTES
    while True:
        data: Any = source.read(_READ)
        if data is None:
            raise InputError("does not wait for its writer; give one that blocks")
        if isinstance(data, str):
            raise InputError('opened as text; open it with mode "rb"')
        if not data:
            held.seek(0)
            return held
        first = held.tell() == 0
        held.write(data)
        if first and limit.seconds is not None:
            header = look(held)
            held.seek(0, io.SEEK_END)
            if header.bytes_per_second and header.start:  # what a microphone sends never ends
                most = min(most, header.start + int((limit.seconds + 1) * header.bytes_per_second) + _READ)
        if held.tell() > most:
            why = f"the {limit.seconds:g} s that are heard" if most < STREAM_BYTES else "what is held of a stream"
            raise InputError(f"exceeds {most} bytes, longer than {why}; give a shorter one, or a file")


class _DamagedError(Exception):
    """libsndfile read the header, but not all that follows."""


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """Read from the beginning to the end. Seeking after each block, as usual, fails where a FLAC's total is wrong."""

    def seekable(self) -> bool:
        return False


def _libsndfile(file: BinaryIO, limit: Limit) -> tuple[np.ndarray, int, list[str]]:
    header = look(file)
    with _Stream(header.patched(file)) as stream:
        rate, channels, claimed = stream.samplerate, stream.channels, header.frames or stream.frames
        limit.check_form(rate, channels)
        # without a longest sound a false claim is harmless: what is there is read, and counted
        limited = limit.seconds is not None or limit.most_bytes is not None
        if limited and claimed < _UNKNOWN and not header.guessed:
            limit.check(claimed, rate, channels)
        parts, held = [], 0
        while True:
            try:
                part = stream.read(max(_BLOCK // channels, 1), dtype="float32", always_2d=True)
            except (soundfile.SoundFileError, RuntimeError) as error:
                raise _DamagedError(reason_of(error)) from error
            if not len(part):
                break
            held += len(part)
            limit.check(held, rate, channels)
            parts.append(part)
        notes = header.notes + _shortfall(stream, header, claimed, held)
    samples = np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)
    return samples, rate, notes


def _shortfall(stream: soundfile.SoundFile, header: Header, claimed: int, held: int) -> list[str]:
    """Notes for a file that holds another number of samples than it claims."""
    if header.notes or header.start or header.guessed or claimed >= _UNKNOWN:
        return []
    if stream.format == "MP3" and claimed - held <= _MP3_FRAMES:
        return []
    if claimed != held:
        less = "; it may have been cut off" if held < claimed else ""
        return [f"its header claims {claimed} samples, but {held} are there{less}"]
    problems = [line.strip() for line in stream.extra_info.splitlines() if "(should be" in line]
    unknown = ("0xffffffff", ": -1 ", ": 0 ")
    if problems and not any(word in problems[0].lower() for word in unknown):
        return [
            f"its header claims another length than it has ({' '.join(problems[0].split())}); it may have been cut off"
        ]
    return []


def _other(file: BinaryIO, limit: Limit, reason: str) -> tuple[np.ndarray, int, list[str]]:
    """Read through PyAV what libsndfile refused for ``reason``."""
    if not sound_av.installed():
        raise InputError(
            f"not a sound file that can be read ({reason}); {_MEND}. m4a, mp4, 3gp, webm and others are read with the "
            f"extra `av`: {install_hint('av')}"
        )
    try:
        return sound_av.decode(Header().patched(file), limit)
    except sound_av.AvError as error:
        raise InputError(f"not a sound file that can be read ({reason}; FFmpeg: {error}); {_MEND}") from error


def reason_of(error: Exception) -> str:
    """What libsndfile says, without the name of the file that soundfile puts before it."""
    text = getattr(error, "error_string", None)
    return first_line(ValueError(text) if text else error).rstrip(".")
