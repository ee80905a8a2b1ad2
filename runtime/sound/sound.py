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

    Attributes
    ----------
    samples : numpy.ndarray
        float32 [n], or [n, channels] as soundfile reads them, full scale at 1.0; read-only. Floats of another width are
        converted.
    sample_rate : int
        Hz.
    codes : numpy.ndarray or None, default None
        int16 [frames, 8], the codes that a generated sound was decoded from; read-only.
    notes : tuple of str, default ()
        What was irregular about its file.
    finish : str or None, default None
        How a sound that a model made ended: "stop", or "max_seconds" where its limit cut it. None for other sounds.
    seed : int or None, default None
        What a sound that a model made was drawn with.

    Raises
    ------
    InputError
        For samples that are not a sound: integers (whose full scale is unknown), none at all, NaN or infinity, channels
        first. For a rate that is no positive whole number, and codes of another shape or type.

    Examples
    --------
    >>> tone = Sound(np.sin(np.arange(8000) * 2 * np.pi * 440 / 16000), sample_rate=16000)
    >>> tone
    Sound(0.50 s at 16000 Hz)
    >>> tone.samples.dtype, tone.samples.shape
    (dtype('float32'), (8000,))
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
        """Read a sound file.

        Formats that libsndfile knows (WAV, FLAC, OGG, MP3, AIFF and others); with the extra ``av`` also m4a, mp4, 3gp,
        webm and others.

        Parameters
        ----------
        source : str, path-like, bytes or binary file
            A path, the bytes of a file, or a file object opened in binary mode. A file object that cannot seek, such as
            a pipe, is read to its end, at most ``limits.STREAM_BYTES``.
        longest : float or None, default None
            Seconds; anything longer is refused before it is held. None: no limit but ``limits.DECODED_BYTES``, which
            the samples of any sound may take.

        Returns
        -------
        Sound
            The sound; mono comes as [n]. An irregularity that does not prevent reading, such as a file that ends before
            its header says, is logged as a warning and kept in ``notes``.

        Raises
        ------
        InputError
            If it cannot be read or is too long; the message names the file.

        Examples
        --------
        >>> gain = sound.save("trumpet.wav")
        >>> Sound.from_file("trumpet.wav").samples.shape == sound.samples.shape
        True
        """
        if longest is not None and (isinstance(longest, bool) or not isinstance(longest, Real) or not longest > 0):
            raise InputError(f"longest = {shown(longest)}: give a positive number of seconds, or None")
        return cls.read_within(source, Limit(longest))

    @classmethod
    def read_within(cls, source: Source, limit: Limit) -> Sound:
        """Read a sound file as :meth:`from_file` does, within a limit in seconds or in bytes.

        Parameters
        ----------
        source : str, path-like, bytes or binary file
            As in :meth:`from_file`.
        limit : Limit
            How much is read, see ``sound.limits``.

        Returns
        -------
        Sound
            The sound.

        Raises
        ------
        InputError
            If it cannot be read, or goes beyond the limit; the message names the file.

        Examples
        --------
        >>> from ualm.runtime.sound.limits import Limit
        >>> gain = sound.save("trumpet.wav")
        >>> Sound.read_within("trumpet.wav", Limit(seconds=0.1))
        Traceback (most recent call last):
        ualm.runtime.errors.InputError: trumpet.wav: holds ... s or more, longer than the 0.1 s that are heard; ...
        """
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
        """Write the sound, whole or not at all, and return the gain that was applied.

        Parameters
        ----------
        target : str, path-like or binary file
            A path, whose suffix says the format, or a file object opened in binary mode, for which ``format`` says it.
        subtype : str or None, default None
            How samples are written. "wav": "FLOAT" (the default; 32 bits, also beyond full scale), "PCM_16" or
            "PCM_24"; "flac": "PCM_24" (the default) or "PCM_16"; "ogg": "VORBIS" (the default) or "OPUS". "mp3" and
            "opus" have one each.
        format : str or None, default None
            "wav", "flac", "mp3", "ogg" or "opus"; None takes the suffix of a path, and "wav" for a file object.

        Returns
        -------
        float
            The gain, 1.0 for none. All subtypes but "FLOAT" have a largest value: a sound that passes it is made
            quieter as a whole, never clipped, and that is logged as a warning. For "mp3", "ogg" and "opus", the decoded
            samples count.

        Raises
        ------
        InputError
            For another suffix, format or subtype, or a rate that the format lacks.
        OutputError
            When the file cannot be written.

        Examples
        --------
        >>> sound.save("trumpet.wav")
        1.0
        >>> Sound(np.array([0.0, 2.0, 0.0, -2.0]), 16000).save("loud.wav", "PCM_16") < 0.51
        True
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
            fix = "save .wav as FLOAT to keep the level"
            _log.warning("%s: %.2f dB quieter, to fit %s (peak %.4f); %s", name, level, encoding.subtype, peak, fix)
        return gain


@dataclass(frozen=True)
class Speech:
    """Marks a user's sound, or the file that holds it, as speech (the task ``speech_to_transcription``).

    Attributes
    ----------
    content : Sound, str or path-like
        The sound, or the path of its file; here a ``str`` is a path, too.

    Raises
    ------
    InputError
        For content of another type.

    Examples
    --------
    >>> messages = [("user", "Transcribe the speech."), ("user", Speech(sound))]
    >>> [segment] = model.run(messages, modality="text", max_tokens=2, max_segments=1)
    >>> segment.modality
    'text'
    """

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
