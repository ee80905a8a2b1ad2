"""Sounds that come in from files and arrays, and sounds that go out as files."""

from __future__ import annotations

import io
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .errors import InputError, OutputError
from .files import replacing_file
from .vocabulary import STREAMS

_log = logging.getLogger(__name__)

#: What ``Sound.save`` can write: format by extension, its subtypes, the default first. 0 bits: floats, no limit.
_FORMATS = {".wav": ("WAV", ("FLOAT", "PCM_16", "PCM_24")), ".flac": ("FLAC", ("PCM_24", "PCM_16"))}
_BITS = {"FLOAT": 0, "PCM_16": 16, "PCM_24": 24}


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples at a rate.

    ``samples``: float32 ``[n]``, or ``[n, channels]`` as soundfile reads them, full scale at 1.0, read-only; floats of
    another width are converted. ``sample_rate``: Hz. ``codes``: int16 ``[frames, 8]``, the codes that a generated sound
    was decoded from. Raises :class:`InputError` for samples that are no sound: integers (whose full scale is unknown),
    none at all, NaN or infinity, channels first.
    """

    samples: np.ndarray
    sample_rate: int
    codes: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", _checked_samples(self.samples))
        rate = self.sample_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
            raise InputError(
                f"sample_rate: {rate!r} is not a positive whole number; give the rate in Hz, such as 16000"
            )
        object.__setattr__(self, "sample_rate", int(rate))
        if self.codes is not None:
            object.__setattr__(self, "codes", _checked_codes(self.codes))

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Sound:
        """Read a file that libsndfile knows: WAV, FLAC, OGG, MP3, AIFF and others. Mono comes as ``[n]``."""
        file = Path(path)
        if not file.exists():
            raise InputError(f"{file}: no such file; give the path of a sound file")
        if not file.is_file():
            raise InputError(f"{file}: not a file; give the path of a sound file")
        if file.stat().st_size == 0:
            raise InputError(f"{file}: the file is empty (0 bytes); record or copy it again")
        try:
            # an open file, not its name: libsndfile takes raw formats by their extension and hides the system's errors
            with open(file, "rb") as handle:
                samples, rate = soundfile.read(handle, dtype="float32", always_2d=True)
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from error
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{file}: not a sound file that can be read ({_reason(error)}); "
                "give WAV, FLAC, OGG, MP3 or AIFF, or convert it, for example with: ffmpeg -i INPUT OUTPUT.wav"
            ) from error
        try:
            return cls(samples[:, 0] if samples.shape[1] == 1 else samples, rate)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error

    def save(self, path: str | os.PathLike[str], subtype: str | None = None) -> float:
        """Write the sound, whole or not at all, and return the gain that was applied (1.0: none).

        ``.wav`` is written as ``FLOAT`` (32 bits, also beyond full scale) unless ``subtype`` is ``PCM_16`` or
        ``PCM_24``; ``.flac`` as ``PCM_24`` or ``PCM_16``. Integers have a largest value: a sound that passes it is made
        quieter as a whole, never clipped, and that is logged as a warning. Raises :class:`InputError` for another
        extension or subtype, :class:`OutputError` when the file cannot be written.
        """
        target = Path(path)
        format_name, subtype = _format(target, subtype)
        samples, gain = _quantised(self.samples, _BITS[subtype]) if _BITS[subtype] else (self.samples, 1.0)
        encoded = io.BytesIO()
        try:
            soundfile.write(encoded, samples, self.sample_rate, subtype=subtype, format=format_name)
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OverflowError) as error:
            channels = 1 if self.samples.ndim == 1 else self.samples.shape[1]
            raise InputError(
                f"{target}: {format_name} cannot hold {channels} channels at {self.sample_rate} Hz ({_reason(error)}); "
                "use .wav, fewer channels or a lower rate"
            ) from error
        # the chunk PEAK of a float WAV holds the time of day: equal sounds shall give equal files
        view = encoded.getbuffer()
        if (at := bytes(view[:256]).find(b"PEAK")) >= 0:
            view[at + 12 : at + 16] = bytes(4)
        # libsndfile writes to memory and Python to the disk, because only Python tells why a disk refused
        with replacing_file(target) as temporary:
            temporary.write_bytes(view)
        if gain != 1.0:
            level, peak = -20 * math.log10(gain), float(np.abs(self.samples).max())
            mend = "save .wav as FLOAT to keep the level"
            _log.warning("%s: %.2f dB quieter, to fit %s (peak %.4f); %s", target, level, subtype, peak, mend)
        return gain


@dataclass(frozen=True)
class Speech:
    """Marks a user's sound, or the file that holds it, as speech (the task ``speech_to_transcription``)."""

    content: Sound | str | os.PathLike[str]

    def __post_init__(self) -> None:
        if not isinstance(self.content, (Sound, str, os.PathLike)):
            raise InputError(
                f"Speech: {type(self.content).__name__} is not a sound; give a Sound or the path of a file"
            )


def resampled_length(samples: int, rate: int, new_rate: int) -> int:
    """Samples after resampling, as librosa counts them: in floats, whose rounding adds a sample at odd rates."""
    return samples if rate == new_rate else math.ceil(samples * (float(new_rate) / rate))


def to_mono(sound: Sound, sample_rate: int) -> np.ndarray:
    """Channel 0 at ``sample_rate`` Hz, float32 ``[n]``.

    Does what ``librosa.resample`` does by default: soxr at its HQ setting, then zeros or a cut at the end, so that the
    length is that of :func:`resampled_length`. Nothing is computed when the rates agree.
    """
    samples = sound.samples if sound.samples.ndim == 1 else np.ascontiguousarray(sound.samples[:, 0])
    if sound.sample_rate == sample_rate:
        return samples
    length = resampled_length(len(samples), sound.sample_rate, sample_rate)
    resampled = np.zeros(length, np.float32)
    converted = soxr.resample(samples, sound.sample_rate, sample_rate, quality="HQ")[:length]
    resampled[: len(converted)] = converted
    return resampled


def _checked_samples(values: object) -> np.ndarray:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"samples: {array.dtype} has no known full scale; give floats, 1.0 being full scale (int16 samples / 32768)"
        )
    if array.ndim not in (1, 2):
        raise InputError(f"samples: shape {array.shape} is not a sound; give [n] or [n, channels]")
    if array.size == 0:
        raise InputError(f"samples: shape {array.shape} holds no samples; a sound needs at least one")
    if array.ndim == 2 and array.shape[1] > array.shape[0]:
        raise InputError(f"samples: shape {array.shape} has more channels than samples; transpose it to [n, channels]")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported next
        samples = np.array(array, dtype=np.float32, order="C")  # a copy: what was checked must stay as it is
    # max and min propagate NaN: the mask, as large as the sound, is made only to tell where
    if not (math.isfinite(samples.max()) and math.isfinite(samples.min())):
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(samples))[0])
        where = place[0] if samples.ndim == 1 else place
        raise InputError(f"samples: {array[place]} at index {where}; every sample must be a finite number")
    samples.flags.writeable = False
    return samples


def _checked_codes(values: object) -> np.ndarray:
    codes = np.asarray(values)
    if not np.issubdtype(codes.dtype, np.integer) or codes.ndim != 2 or codes.shape[1] != STREAMS:
        raise InputError(f"codes: {codes.dtype} of shape {codes.shape}; whole numbers [frames, {STREAMS}] are expected")
    if codes.size and (codes.min() < 0 or codes.max() > np.iinfo(np.int16).max):
        raise InputError(f"codes: values from {codes.min()} to {codes.max()}; a code is 0 or more and fits 16 bits")
    codes = codes.astype(np.int16)
    codes.flags.writeable = False
    return codes


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


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")


def check_writable(path: str | os.PathLike[str], subtype: str | None = None) -> None:
    """Refuse a file name that :meth:`Sound.save` would refuse, before the sound is made."""
    target = Path(path)
    _format(target, subtype)
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist; create it first")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file")


def _format(target: Path, subtype: str | None) -> tuple[str, str]:
    """Container and sample format of a file to be written."""
    if target.suffix.lower() not in _FORMATS:
        raise InputError(f"{target}: cannot write {target.suffix or 'a name without extension'}; use .wav or .flac")
    format_name, subtypes = _FORMATS[target.suffix.lower()]
    if subtype is not None and subtype not in subtypes:
        raise InputError(f"{target}: subtype {subtype!r} is not written for {format_name}; use {' or '.join(subtypes)}")
    return format_name, subtype or subtypes[0]
