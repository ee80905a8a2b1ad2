"""Writing sounds: formats, what they can hold, and fitting a sound that is too loud for one."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from ..errors import InputError, OutputError
from ..files.reading import shown
from ..files.writing import check_place
from .reading import reason_of

#: What can be written: libsndfile's format by suffix, its subtypes, the default first.
_FORMATS = {
    ".wav": ("WAV", ("FLOAT", "PCM_16", "PCM_24")),
    ".flac": ("FLAC", ("PCM_24", "PCM_16")),
    ".mp3": ("MP3", ("MPEG_LAYER_III",)),
    ".ogg": ("OGG", ("VORBIS", "OPUS")),
    ".opus": ("OGG", ("OPUS",)),
}
SUFFIXES = ", ".join(_FORMATS)
#: Bits of integers; floats have no largest value.
_BITS = {"PCM_16": 16, "PCM_24": 24}
#: Frames handed to libsndfile at once: its Vorbis encoder needs stack space for all of them.
_BLOCK = 1 << 14
#: libsndfile crashes with more.
_VORBIS_CHANNELS = 255
#: A decoder may still clip what it decodes to exactly this: another half decibel is taken then.
_FULL, _STEP = 1.0, 10 ** (-0.5 / 20)
#: Half decibels that may be taken before a format is given up.
_TRIES = 60


@dataclass(frozen=True)
class Encoding:
    """``format`` and ``subtype``: libsndfile's names. Floats, integers of some ``bits``, or lossy: ``bits`` is None."""

    format: str
    subtype: str

    @property
    def bits(self) -> int | None:
        return _BITS.get(self.subtype)

    @property
    def lossy(self) -> bool:
        return self.subtype != "FLOAT" and self.bits is None


def named_target(target: object) -> tuple[Path | None, str]:
    """The path, None for a file object, and the name for messages."""
    if isinstance(target, (str, os.PathLike)):
        return Path(target), str(target)
    if not callable(getattr(target, "write", None)):
        raise InputError(
            f"a {type(target).__name__} cannot be written to; give a path, or a file object such as io.BytesIO()"
        )
    name = getattr(target, "name", None)
    return None, name if isinstance(name, str) else "file object"


def encoding_of(file: Path | None, subtype: str | None = None, format: str | None = None) -> Encoding:
    """How to write a file, by its suffix, or by ``format`` where it has no name."""
    for option, value in (("subtype", subtype), ("format", format)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{option} = {shown(value)}: give a name, as in format='wav' or subtype='PCM_16'")
    name, suffix = ("file object", f".{format or 'wav'}") if file is None else (str(file), file.suffix)
    suffix = suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"{name}: cannot write {suffix or 'a name without extension'}; use {SUFFIXES}")
    if format is not None and suffix != f".{format.lower()}":
        raise InputError(f"{name}: its name says {suffix}, but the format {format!r} was asked for; make them agree")
    format_name, subtypes = _FORMATS[suffix]
    if subtype is not None and subtype not in subtypes:
        raise InputError(f"{name}: subtype {subtype!r} is not written for {suffix}; use {' or '.join(subtypes)}")
    encoding = Encoding(format_name, subtype or subtypes[0])
    if not soundfile.check_format(encoding.format, encoding.subtype):
        version = soundfile.__libsndfile_version__
        raise InputError(f"{name}: libsndfile {version} cannot write {encoding.subtype} here; use .wav or .flac")
    return encoding


def check_writable(
    path: str | os.PathLike[str],
    subtype: str | None = None,
    *,
    sample_rate: int | None = None,
    channels: int = 1,
) -> None:
    """Refuse a file name that ``Sound.save`` would refuse, before the sound is made; with a rate, that form too."""
    target = Path(path)
    encoding = encoding_of(target, subtype)
    check_place(target)
    if sample_rate is not None:
        _encoded(np.zeros((1, channels), np.float32), sample_rate, encoding, str(target))


def encode(samples: np.ndarray, rate: int, encoding: Encoding, name: str) -> tuple[memoryview, float]:
    """The bytes of a file, and the gain that made the sound fit. ``samples``: float32 ``[n]`` or ``[n, channels]``."""
    if encoding.lossy:
        return _fitted(samples, rate, encoding, name)
    gain = 1.0
    if encoding.bits is not None:
        samples, gain = _quantised(samples, encoding.bits)
    view = _encoded(samples, rate, encoding, name)
    # the chunk PEAK of a float WAV holds the time of day: equal sounds must give equal files
    if encoding.format == "WAV" and (at := bytes(view[:256]).find(b"PEAK")) >= 0:
        view[at + 12 : at + 16] = bytes(4)
    return view, gain


def write_all(file: BinaryIO, data: memoryview | bytes, name: str, fix: str) -> None:
    """Write to a file object, also to one that takes little at a time. ``fix``: the fix, for error messages."""
    try:
        rest = memoryview(data)
        while len(rest):
            written: Any = file.write(rest)
            if written is None:  # a pipe that does not wait for its reader
                raise OutputError(f"{name} does not wait for its reader; give one that blocks")
            rest = rest[written:]
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{name}: {error.strerror or error}; {fix}") from error
    except (TypeError, ValueError) as error:  # opened as text; opened for reading, or closed
        raise InputError(f'{name}: takes no bytes ({error}); open it with mode "wb"') from error


def _fitted(samples: np.ndarray, rate: int, encoding: Encoding, name: str) -> tuple[memoryview, float]:
    """Lossy codecs change the waveform: it is decoded again, and made quieter until no decoder has to clip it."""
    peak = float(np.abs(samples).max())
    gain = 1.0 if peak <= 1 else 1 / peak
    for _ in range(_TRIES):
        view = _encoded(samples if gain == 1 else samples * np.float32(gain), rate, encoding, name)
        decoded, _ = soundfile.read(io.BytesIO(view), dtype="float32")
        top = float(np.abs(decoded).max()) if len(decoded) else 0.0
        if top < _FULL:
            return view, gain
        gain *= _STEP / top
    raise InputError(f"{name}: {encoding.subtype} does not keep this sound below full scale; use .wav or .flac")


def _encoded(samples: np.ndarray, rate: int, encoding: Encoding, name: str) -> memoryview:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    encoded = io.BytesIO()
    if encoding.subtype == "VORBIS" and channels > _VORBIS_CHANNELS:
        raise InputError(f"{name}: Vorbis cannot hold {channels} channels; use .wav, or {_VORBIS_CHANNELS} at most")
    try:
        with soundfile.SoundFile(
            encoded, "w", samplerate=rate, channels=channels, format=encoding.format, subtype=encoding.subtype
        ) as file:
            for start in range(0, len(samples), _BLOCK):
                file.write(samples[start : start + _BLOCK])
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{name}: {encoding.format} cannot hold {channels} channels at {rate} Hz ({reason_of(error)}); "
            "use .wav, fewer channels or a lower rate"
        ) from error
    return encoded.getbuffer()


def _quantised(samples: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """Integers of ``bits`` bits (left-justified in int32 when they are 24), and the gain that made them fit.

    Full scale is 2^(bits-1), as libsndfile reads it: -1.0 can be written and +1.0 cannot, by one step.
    """
    full = float(2 ** (bits - 1))
    high, low = float(samples.max()), float(samples.min())
    fits = np.rint(high * full) <= full - 1 and np.rint(low * full) >= -full
    gain = 1.0 if fits else (full - 1) / full / max(high, -low)
    steps = np.rint(samples.astype(np.float64) * (gain * full))
    return (steps.astype(np.int16), gain) if bits == 16 else (steps.astype(np.int32) << 8, gain)
