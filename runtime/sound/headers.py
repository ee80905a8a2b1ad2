"""Headers of sound files that state a wrong length, as pipes and interrupted recorders leave them.

libsndfile handles most of them by itself: a WAV or W64 whose size is larger than the file is read to the end. It fails
where a size is 0 (WAV, RF64), where all 64 or 63 bits of it are set (RF64, W64), and where a FLAC's total is missing or
wrong. Those few bytes are replaced as it reads them; the file stays as it is. It guesses the length of an MP3 without a
table of contents from the first bit rate and the size, and stops there: it is given a size that is never too small.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import BinaryIO, cast

#: Chunks searched for the samples; a file has a handful.
_CHUNKS = 1000
#: W64 names its chunks with 16 bytes, of which the first four are WAV's names.
_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_NAME = bytes.fromhex("f3acd3118cd100c04f8edb8a")
#: The highest bit rate of an MP3 over the lowest: no guess falls short by more.
_STRETCH = 40
#: Bytes at the beginning of an MP3 that hold its first frame, which may be a table of contents.
_MP3_HEAD = 4096
_CUT = "its header claims {claimed} bytes of samples, but {held} are there; it may have been cut off"
_EMPTY = "its header claims no samples, as an interrupted recorder leaves it; all {held} bytes to the end are read"


@dataclass
class Header:
    """``patches``: bytes to read in place of the file's, by offset. ``notes``: irregularities. ``frames``: what a FLAC
    claims.

    ``bytes_per_second``, ``start``: of the samples of a WAV or W64, and where they begin; 0 where that is not known.
    ``guessed``: libsndfile can only guess the length (an MP3 without a table of contents), and stops there.
    """

    patches: dict[int, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    frames: int = 0
    bytes_per_second: int = 0
    start: int = 0
    guessed: bool = False

    def patched(self, file: BinaryIO) -> BinaryIO:
        """The file as libsndfile (or FFmpeg, which needs no patches) reads it whole.

        Needed even where nothing is patched: a damaged header makes a library seek before the beginning, and the
        exception that a Python file raises at that would be printed, since nothing catches it.
        """
        return cast(BinaryIO, _Patched(file, self.patches, _STRETCH if self.guessed else 1))


def look(file: BinaryIO) -> Header:
    """What the header of a seekable file says; an empty :class:`Header` for formats that need no help."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(40)
    header = Header()
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        _wave(file, size, header)
    elif head[:16] == _W64:
        _w64(file, size, header)
    elif head[:4] == b"OggS":
        _ogg(file, size, header)
    else:
        at = 10 + _syncsafe(head[6:10]) if head[:3] == b"ID3" else 0
        file.seek(at)
        start = file.read(_MP3_HEAD)
        if start[:4] == b"fLaC":
            _flac(file, at, header)
        else:
            header.guessed = start[:1] == b"\xff" and not any(tag in start for tag in (b"Xing", b"Info", b"VBRI"))
    file.seek(0)
    return header


class _Patched(io.RawIOBase):
    """A seekable file, read with some of its bytes replaced, that claims to be ``stretch`` times as long."""

    def __init__(self, file: BinaryIO, patches: dict[int, bytes], stretch: int) -> None:
        self._file, self._patches, self._at = file, patches, 0
        self._held = file.seek(0, io.SEEK_END)
        self._length = self._held * stretch

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if self._at >= self._held:  # as far beyond as a damaged header sends it
            return 0
        self._file.seek(self._at)
        data = bytearray(self._file.read(len(view)))
        for at, patch in self._patches.items():
            for offset, value in enumerate(patch, at - self._at):
                if 0 <= offset < len(data):
                    data[offset] = value
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _wave(file: BinaryIO, size: int, header: Header) -> None:
    """RIFF and RF64: chunks of a name, 32 bits of size, and contents padded to an even number."""
    at, frame, long_at, long_size = 12, 1, 0, None
    for _ in range(_CHUNKS):
        file.seek(at)
        name, claimed = _chunk(file.read(8))
        if name == b"ds64":
            long_at, (long_size,) = at + 8, struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))
        elif name == b"fmt ":
            rate, per_second, frame = struct.unpack("<4xIIH2x", file.read(16).ljust(16, b"\0"))
            header.bytes_per_second = max(per_second, rate * frame)
        elif name == b"data":
            start, held = at + 8, size - at - 8
            header.start = start
            if long_size is not None and claimed == 0xFFFFFFFF:
                claimed = long_size
            if claimed == 0 and not _chunks_follow(file, start, size):
                header.notes.append(_EMPTY.format(held=held))
            elif claimed <= held:
                after = start + claimed + claimed % 2
                if claimed and not _chunks_follow(file, after, size):
                    header.notes.append(f"{size - after} bytes after its samples are not a chunk, and are not read")
                return
            elif not _unknown(claimed):
                header.notes.append(_CUT.format(claimed=claimed, held=held))
            if long_size is not None:
                header.patches[long_at] = struct.pack("<QQQ", size - 8, held, held // max(frame, 1))
            elif claimed == 0:
                header.patches[at + 4] = struct.pack("<I", min(held, 0xFFFFFFFF))
            return
        elif not name:
            return
        at += 8 + claimed + claimed % 2


def _w64(file: BinaryIO, size: int, header: Header) -> None:
    """Chunks of 16 bytes of name, 64 bits of size that count both, and contents padded to a multiple of 8."""
    at = 40
    for _ in range(_CHUNKS):
        file.seek(at)
        head = file.read(24)
        if len(head) < 24 or head[4:16] != _W64_NAME:
            return
        (claimed,) = struct.unpack("<Q", head[16:])
        if head[:4] == b"fmt ":
            (header.bytes_per_second,) = struct.unpack("<8xI", file.read(12).ljust(12, b"\0"))
        if head[:4] == b"data":
            held = size - at
            header.start = at + 24
            if claimed > held and claimed < 1 << 62:
                header.notes.append(_CUT.format(claimed=claimed - 24, held=held - 24))
            elif claimed <= 24 < held:
                header.notes.append(_EMPTY.format(held=held - 24))
            if claimed > held or claimed <= 24:
                header.patches = {16: struct.pack("<Q", size), at + 16: struct.pack("<Q", held)}
            return
        if claimed < 24:
            return
        at += claimed + -claimed % 8


def _flac(file: BinaryIO, at: int, header: Header) -> None:
    """The total of samples, 36 bits of STREAMINFO, becomes 0, "not known": the decoder reads to the end."""
    file.seek(at + 21)
    total = int.from_bytes(file.read(5).ljust(5, b"\0"), "big")
    header.frames = total & (1 << 36) - 1
    if header.frames:
        header.patches[at + 21] = (total >> 36 << 36).to_bytes(5, "big")


def _ogg(file: BinaryIO, size: int, header: Header) -> None:
    """The last page of a stream is marked as such."""
    file.seek(max(0, size - 2 * 65307))  # a page is 65,307 bytes long at most
    tail = file.read()
    last = tail.rfind(b"OggS")
    if last >= 0 and not tail[last + 5 : last + 6] > b"\x03":
        header.notes.append("its last page is missing; it may have been cut off")


def _chunk(head: bytes) -> tuple[bytes, int]:
    return (head[:4], struct.unpack("<I", head[4:])[0]) if len(head) == 8 else (b"", 0)


def _chunks_follow(file: BinaryIO, at: int, size: int) -> bool:
    """Whether the rest of a file is chunks to its end, or padding, or nothing."""
    for _ in range(_CHUNKS):
        if at >= size:
            return True
        file.seek(at)
        name, claimed = _chunk(file.read(8))
        if not name or name == bytes(4):
            file.seek(at)
            return not any(file.read(min(size - at, 1 << 16)))
        if not all(0x20 <= letter < 0x7F for letter in name):
            return False
        at += 8 + claimed + claimed % 2
        if at > size + 1:
            return False
    return True


def _unknown(claimed: int) -> bool:
    """Whether a size stands for "not known": 2^31 - 1, 2^31, 2^32 - 1 or 2^64 - 1, some minus a header's length."""
    return 0x7FFFEF00 <= claimed <= 0x80000000 or 0xFFFFEF00 <= claimed <= 0xFFFFFFFF or claimed >= 1 << 62


def _syncsafe(size: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(size)))
