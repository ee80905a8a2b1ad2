"""Sounds read from files and arrays, and written to files."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from numbers import Real
from typing import BinaryIO, cast

import numpy as np
import soxr

from ..errors import InputError
from ..files.reading import shown
from ..files.writing import replacing_file
from ..finish import FinishReason
from ..vocabulary import STREAMS
from .limits import Limit
from .reading import Source, read
from .writing import check_writable, encode, encoding_of, named_target, write_all

__all__ = ["Sound", "Speech", "check_writable", "resampled_length", "to_mono"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples at a rate.

    ``samples``: float32 ``[n]``, or ``[n, channels]`` as soundfile reads them, full scale at 1.0, read-only; floats of
    another width are converted. ``sample_rate``: Hz. ``codes``: int16 ``[frames, 8]``, the codes that a generated sound
    was decoded from. ``notes``: what was irregular about its file. ``finish``: how a sound that a model made ended,
    "stop", or "max_seconds" where its limit cut it; ``seed``: what it was drawn with. Raises
    :class:`InputError` for samples that are not a sound: integers (whose full scale is unknown), none at all, NaN or
    infinity, channels first.
    """

    samples: np.ndarray
    sample_rate: int
    codes: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    finish: FinishReason | None = None
    seed: int | None = None

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

    def __repr__(self) -> str:
        parts = [f"{self.duration:.2f} s at {self.sample_rate} Hz"]
        if self.samples.ndim == 2:
            parts.append(f"{self.samples.shape[1]} channels")
        if self.codes is not None:
            parts.append(f"codes of {len(self.codes)} frames")
        parts += [f"{name} {value!r}" for name in ("finish", "seed") if (value := getattr(self, name)) is not None]
        if self.notes:
            parts.append(f"{len(self.notes)} notes")
        return f"Sound({', '.join(parts)})"

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    @classmethod
    def from_file(cls, source: Source, *, longest: float | None = None) -> Sound:
        """Read a sound file: a path, the bytes of a file, or a file object opened in binary mode.

        Formats that libsndfile knows (WAV, FLAC, OGG, MP3, AIFF and others); with the extra ``av`` also m4a, mp4, 3gp,
        webm and others. Mono comes as ``[n]``. A file object that cannot seek, such as a pipe, is read to its end, at
        most ``limits.STREAM_BYTES``; the samples of any sound may take ``limits.DECODED_BYTES``. ``longest``: seconds;
        anything longer is refused before it is held. An irregularity that does not prevent reading, such as a file that
        ends before its header says, is logged as a warning and kept in ``notes``. Raises :class:`InputError`, naming
        the file.
        """
        if longest is not None and (isinstance(longest, bool) or not isinstance(longest, Real) or not longest > 0):
            raise InputError(f"longest = {shown(longest)}: give a positive number of seconds, or None")
        return cls.read_within(source, Limit(longest))

    @classmethod
    def read_within(cls, source: Source, limit: Limit) -> Sound:
        """:meth:`from_file` within a ``limit``, in seconds or in bytes; :class:`InputError` beyond it."""
        found = read(source, limit)
        samples = found.samples[:, 0] if found.samples.shape[1] == 1 else found.samples
        try:
            sound = cls(samples, found.rate, notes=found.notes)
        except InputError as error:
            raise InputError(f"{found.name}: {error}") from error
        for note in found.notes:
            _log.warning("%s: %s", found.name, note)
        return sound

    def save(
        self, target: str | os.PathLike[str] | BinaryIO, subtype: str | None = None, *, format: str | None = None
    ) -> float:
        """Write the sound, whole or not at all, and return the gain that was applied (1.0: none).

        ``target``: a path, whose suffix says the format, or a file object opened in binary mode, for which ``format``
        says it (``"wav"`` by default). ``wav`` is written as ``FLOAT`` (32 bits, also beyond full scale) unless
        ``subtype`` is ``PCM_16`` or ``PCM_24``; ``flac`` as ``PCM_24`` or ``PCM_16``; ``mp3``; ``ogg`` as ``VORBIS`` or
        ``OPUS``; ``opus``. All but floats have a largest value: a sound that passes it is made quieter as a whole,
        never clipped, and that is logged as a warning. For ``mp3``, ``ogg`` and ``opus``, the decoded samples count.
        Raises :class:`InputError` for another suffix, format or subtype, or a rate that the format
        lacks, :class:`OutputError` when the file cannot be written.
        """
        file, name = named_target(target)
        encoding = encoding_of(file, subtype, format)
        data, gain = encode(self.samples, self.sample_rate, encoding, name)
        if file is None:
            write_all(cast(BinaryIO, target), data, name, "not all of the sound was written")
        else:
            # libsndfile writes to memory and Python to the disk, because only Python reports why a disk refused
            with replacing_file(file) as temporary:
                temporary.write_bytes(data)
        if gain != 1.0:
            level, peak = -20 * math.log10(gain), float(np.abs(self.samples).max())
            mend = "save .wav as FLOAT to keep the level"
            _log.warning("%s: %.2f dB quieter, to fit %s (peak %.4f); %s", name, level, encoding.subtype, peak, mend)
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


def _array(name: str, values: object) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: a {type(values).__name__} makes no array ({error}); give a NumPy array") from error


def _checked_samples(values: object) -> np.ndarray:
    array = _array("samples", values)
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
    # max and min propagate NaN: the mask, as large as the sound, is made only to find where
    if not (math.isfinite(samples.max()) and math.isfinite(samples.min())):
        place = tuple(int(index) for index in np.unravel_index(np.argmin(np.isfinite(samples)), samples.shape))
        where = place[0] if samples.ndim == 1 else place
        raise InputError(f"samples: {array[place]} at index {where}; every sample must be a finite number")
    samples.flags.writeable = False
    return samples


def _checked_codes(values: object) -> np.ndarray:
    codes = _array("codes", values)
    if not np.issubdtype(codes.dtype, np.integer) or codes.ndim != 2 or codes.shape[1] != STREAMS:
        raise InputError(f"codes: {codes.dtype} of shape {codes.shape}; whole numbers [frames, {STREAMS}] are expected")
    if codes.size and (codes.min() < 0 or codes.max() > np.iinfo(np.int16).max):
        raise InputError(f"codes: values from {codes.min()} to {codes.max()}; a code is 0 or more and fits 16 bits")
    codes = codes.astype(np.int16)
    codes.flags.writeable = False
    return codes
