"""The records of a checkpoint, and their checksums.

``torch.save`` writes a zip, whose directory has a CRC-32 of each record. ``torch.load`` verifies it when it copies a
record; when the file is memory-mapped, as an export requires, nothing does, and a bit flipped in transit becomes part
of a weight. So each record is verified when its values are first read: its pages are in memory then, or about to be,
and the file is not read a second time. Safetensors files, which other trainers write, have no checksums at all: damage
there shows only in sizes.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...runtime.errors import ExportError
from ...runtime.files.reading import first_line, shown

#: Most bytes of a record that is not a tensor; the largest of these says where the tensors are.
MOST_PICKLE = 8 << 20
#: Bytes checked at a time.
_BLOCK = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass
class _Record:
    name: str
    size: int
    checksum: int
    checked: bool


class Records:
    """The records of a memory-mapped checkpoint file."""

    def __init__(self, path: Path) -> None:
        """Reads the directory and verifies everything except tensors. Raises :class:`ExportError`."""
        self._path = path
        try:
            self._bytes = np.memmap(path, np.uint8, mode="r")
            with zipfile.ZipFile(path) as archive:
                entries, end = archive.infolist(), archive.start_dir
            self._records = dict(self._place(entry, end) for entry in entries)
        except ExportError:
            raise
        except Exception as error:  # zipfile raises several kinds for a damaged directory
            raise ExportError(f"{path}: not a readable checkpoint ({first_line(error)}); copy it again") from error
        # torch writes 0 for all of them if checksums are turned off (set_crc32_options)
        none = not any(record.checksum for record in self._records.values())
        for start, record in self._records.items():
            record.checked = none
            if "/data/" not in record.name:
                if record.size > MOST_PICKLE:
                    raise ExportError(
                        f"{path}: {record.name} has {record.size} bytes, and at most {MOST_PICKLE} are read: save the "
                        "module's tensors alone"
                    )
                self.check(start, record.size, record.name)

    def check(self, start: int, size: int, what: str) -> None:
        """Verify the checksum, once, of the record that begins at byte ``start`` and holds ``what``."""
        record = self._records.get(start)
        if record is None or record.size != size:
            has = "no record" if record is None else f"{record.size} bytes"
            raise ExportError(f"{self._path}: {what} is {size} bytes, where the file has {has}; copy it again")
        if record.checked:
            return
        found = 0
        for first in range(start, start + size, _BLOCK):
            found = zlib.crc32(self._bytes[first : min(first + _BLOCK, start + size)].data, found)
        if found != record.checksum:
            raise ExportError(
                f"{self._path}: {what} was damaged: the CRC-32 of its record {record.name} is {found:08x}, and was "
                f"{record.checksum:08x} when it was saved; copy it again"
            )
        record.checked = True

    def _place(self, entry: zipfile.ZipInfo, end: int) -> tuple[int, _Record]:
        """The offset at which the content of an entry begins, and the record; ``end``: where the contents of the file
        end."""
        header = bytes(self._bytes[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size])
        magic, *sizes = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + sum(sizes)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ExportError(f"{self._path}: {shown(entry.filename)} is compressed; save it with torch.save")
        if magic != b"PK\x03\x04" or start + entry.file_size > end:
            raise ExportError(f"{self._path}: {shown(entry.filename)} is not where its directory says; copy it again")
        return start, _Record(entry.filename, entry.file_size, entry.CRC, False)
