"""Files as written by recorders, browsers and pipes, made with FFmpeg and by hand."""

from __future__ import annotations

import io
import struct

import av
import numpy as np


class Pipe:
    """A file that cannot seek, as standard output for FFmpeg."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        return len(data)


def ffmpeg(samples: np.ndarray, container: str, codec: str, rate: int, *, pipe: bool = False, **options: str) -> bytes:
    """FFmpeg's encoding of float32 ``[channels, n]``; written to a ``pipe``, its headers contain no length."""
    layout = "mono" if len(samples) == 1 else "stereo"
    out: Pipe | io.BytesIO = Pipe() if pipe else io.BytesIO()
    with av.open(out, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000 * len(samples)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return bytes(out.data) if isinstance(out, Pipe) else out.getvalue()


def wav(
    steps: np.ndarray,
    riff: int | None = None,
    data: int | None = None,
    *,
    rate: int = 16000,
    channels: int = 1,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A WAV of int16 samples with the two given sizes in its header; ``before`` and ``after``: further chunks."""
    body = steps.astype("<i2").tobytes()
    about = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels & 0xFFFFFFFF, 2 * channels, 16)
    head = b"WAVEfmt " + struct.pack("<I", len(about)) + about + before + b"data"
    size = len(head) + 4 + len(body) + len(after)
    sizes = [struct.pack("<I", size if riff is None else riff), struct.pack("<I", len(body) if data is None else data)]
    return b"RIFF" + sizes[0] + head + sizes[1] + body + after


def rf64(steps: np.ndarray, sizes: tuple[int, int, int]) -> bytes:
    """An RF64 with the given 64-bit sizes (file, samples in bytes, frames) in its header."""
    plain = wav(steps, 0xFFFFFFFF, 0xFFFFFFFF)
    return b"RF64" + plain[4:12] + b"ds64" + struct.pack("<IQQQI", 28, *sizes, 0) + plain[12:]


def flac_total(flac: bytes, total: int) -> bytes:
    """The same FLAC with another number of samples in its header; 0: unknown."""
    packed = int.from_bytes(flac[21:26], "big") >> 36 << 36 | total
    return flac[:21] + packed.to_bytes(5, "big") + flac[26:]


def lag(found: np.ndarray, samples: np.ndarray) -> int:
    """Delay of ``found`` relative to ``samples``, in samples."""
    size = len(found) + len(samples)
    products = np.fft.irfft(np.fft.rfft(found, size) * np.fft.rfft(samples, size).conj(), size)
    late = int(products.argmax())
    return late if late < len(found) else late - size
