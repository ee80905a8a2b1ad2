"""Formats that libsndfile does not know, read through PyAV (the extra ``av``): what phones and browsers record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError
from ..process.stopping import raise_interrupt
from .limits import Limit

#: Containers that are opened. FFmpeg also knows playlists, which name further files and addresses: they are left out.
_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
)
#: Full scale of integers, by the sample format without its "p" for planar.
_FULL_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "s64": 9223372036854775808.0}
#: Containers whose length is stored, not guessed from their first packets.
_KNOW_DURATION = ("mov", "matroska", "caf")


class AvError(Exception):
    """PyAV cannot decode the file."""


def installed() -> bool:
    """Whether PyAV can be imported."""
    try:
        import av  # noqa: F401
    except (ImportError, OSError) as error:
        raise_interrupt(error)
        return False
    return True


def decode(file: BinaryIO, limit: Limit) -> tuple[np.ndarray, int, list[str]]:
    """Samples float32 ``[n, channels]``, rate in Hz, and notes, of the first audio stream of a seekable file.

    Samples that the container marks to be skipped at the beginning (the encoder's priming) are; the padding of a last
    AAC packet, up to 1,024 samples, is kept. Raises :class:`AvError`, or :class:`InputError` beyond ``limit``.
    """
    import av

    file.seek(0)
    try:
        with av.open(file, options={"format_whitelist": _CONTAINERS, "protocol_whitelist": ""}) as container:
            if not container.streams.audio:
                raise AvError("it holds no audio stream")
            stream = container.streams.audio[0]
            parts: list[np.ndarray] = []
            rate = held = 0
            for part, part_rate in _parts(container, stream):
                if not parts:
                    rate = part_rate
                    limit.check_form(rate, part.shape[1])
                elif (part_rate, part.shape[1]) != (rate, parts[0].shape[1]):
                    raise AvError("its rate or its number of channels changes on the way")
                held += len(part)
                limit.check(held, rate, part.shape[1])
                parts.append(part)
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            claims = container.format.name.split(",")[0] in _KNOW_DURATION
    except (av.error.FFmpegError, ValueError, MemoryError, OverflowError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise AvError(str(getattr(error, "strerror", None) or error or type(error).__name__)) from error
    if not parts:
        raise AvError("it holds no samples")
    notes = []
    if claims and held / rate < seconds - 0.1:
        notes.append(f"it claims {seconds:.2f} s, but {held / rate:.2f} s are there; it may have been cut off")
    return np.concatenate(parts), rate, notes


def _parts(container: Any, stream: Any) -> Iterator[tuple[np.ndarray, int]]:
    for frame in container.decode(stream):
        values = frame.to_ndarray()
        channels = len(frame.layout.channels)
        # planar: [channels, n]; packed: [1, n * channels]
        values = values.T if frame.format.is_planar else values.reshape(-1, channels)
        kind = frame.format.name.removesuffix("p")
        if values.size == 0:
            continue
        if kind in _FULL_SCALE:
            values = (values.astype(np.float64) - (128 if kind == "u8" else 0)) / _FULL_SCALE[kind]
        yield np.ascontiguousarray(values, np.float32), frame.sample_rate
