"""Arrays of a NumPy ``.npz`` file, read strictly: no Python is parsed, nothing is unpacked, sizes come first.

NumPy itself reads the header of an array as a Python literal, and its error about any other file explains how to allow
pickles. Here a header is what NumPy writes and nothing else, an array lies in the file as it is in memory, and its size
is known before any of it is read.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

#: Bytes of the longest header: NumPy's have 128.
MOST_HEADER = 4096
#: Bytes read at once.
_BLOCK = 1 << 20
_MAGIC = b"\x93NUMPY"
#: As NumPy writes a header: keys in order, a little-endian or single-byte type, a tuple.
_HEADER = re.compile(
    rb"\{'descr': '(?P<type>\|[iu]1|<[iu][248]|<f[248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:\d{1,15}, ?)*\d{0,15})\), \} *\n"
)


@dataclass(frozen=True)
class SavedArray:
    """An array as the file describes it."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SavedArrays:
    """The arrays of an ``.npz`` file, open; ValueError says what is wrong with it, OSError why it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        try:
            self._archive = zipfile.ZipFile(self._file)
        # NotImplementedError: a later version of zip. OSError: an offset before the file's beginning
        except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError, OSError) as error:
            self._file.close()
            raise ValueError(str(error) or "not an archive") from error

    def __enter__(self) -> SavedArrays:
        return self

    def __exit__(self, *about: object) -> None:
        self._archive.close()
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._archive.namelist()

    def describe(self, name: str) -> SavedArray:
        """Type and shape of an array, without reading it."""
        with self._member(name) as file:
            return self._header(name, file)

    def read(self, name: str, most: int) -> np.ndarray:
        """An array of at most ``most`` bytes."""
        try:
            with self._member(name) as file:
                header = self._header(name, file)
                if header.nbytes > most:
                    raise ValueError(f"{name}: {header.nbytes} bytes, and at most {most} are expected")
                values = np.empty(header.shape, header.dtype)
                view = values.reshape(-1).view(np.uint8)
                at = 0
                while at < len(view):
                    block = file.read(min(_BLOCK, len(view) - at))
                    if not block:
                        raise ValueError(f"{name} is cut off")
                    view[at : at + len(block)] = np.frombuffer(block, np.uint8)
                    at += len(block)
                file.read(1)  # the checksum is compared at the end
                return values
        except (zipfile.BadZipFile, EOFError, zlib.error, struct.error) as error:
            raise ValueError(str(error) or f"{name} is cut off") from error

    def _member(self, name: str) -> IO[bytes]:
        try:
            about = self._archive.getinfo(f"{name}.npy")
            if about.compress_type != zipfile.ZIP_STORED or about.compress_size != about.file_size:
                raise ValueError(f"{name} is packed; a session is saved as it is")
            return self._archive.open(about)
        except KeyError:
            raise ValueError(f"it holds no {name}") from None
        # RuntimeError: encrypted; NotImplementedError: a later version of zip
        except (zipfile.BadZipFile, EOFError, struct.error, RuntimeError, UnicodeDecodeError) as error:
            raise ValueError(str(error) or f"{name} cannot be read") from error

    def _header(self, name: str, file: IO[bytes]) -> SavedArray:
        try:
            start = file.read(10)
            if len(start) < 10 or start[:6] != _MAGIC or start[6:8] != b"\x01\x00":
                raise ValueError(f"{name} is not an array")
            (length,) = struct.unpack("<H", start[8:])
            header = file.read(length) if length <= MOST_HEADER else b""
            found = _HEADER.fullmatch(header)
            if found is None:
                raise ValueError(f"the header of {name} is not of the form that is written here")
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise ValueError(str(error) or f"{name} is cut off") from error
        shape = tuple(int(size) for size in re.findall(rb"\d+", found["shape"]))
        array = SavedArray(np.dtype(found["type"].decode()), shape)
        size = self._archive.getinfo(f"{name}.npy").file_size
        if len(start) + length + array.nbytes != size:
            raise ValueError(f"{name} says {array.nbytes} bytes, and {size - len(start) - length} are there")
        return array
