"""Writes a checkpoint as ``torch.save`` would, for models larger than memory: first laid out, then filled.

:func:`lay_out` writes the file without values, and :class:`Filling` writes the values of each tensor into place, block
by block. There is never more than one block in memory.
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from ...runtime.errors import OutputError
from ...runtime.files.reading import first_line

#: Called with a stage's name, the bytes done and the total bytes.
Progress = Callable[[str, int, int], None]


def check_space(folder: Path, disk: Path, layout: Mapping[str, torch.Tensor]) -> None:
    """Raise :class:`OutputError`, naming ``folder``, if the disk that contains ``disk`` has no room for the checkpoint.

    ``layout`` as for :func:`lay_out`; another megabyte is reserved for configurations.
    """
    # each record has headers and padding of less than 512 bytes
    needed = sum(tensor.nbytes + 512 for tensor in layout.values()) + 2**20
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise OutputError(f"{folder}: needs {needed} bytes, and the disk has {free} free; make room or choose another")


def lay_out(path: Path, layout: Mapping[str, torch.Tensor]) -> None:
    """Save a checkpoint without values. ``layout``: name -> a meta tensor of the shape and type to come.

    Raises :class:`OutputError` when it cannot be written.
    """
    # fake tensors claim to be on the CPU and hold no memory
    with FakeTensorMode():
        states = {name: torch.empty(t.shape, dtype=t.dtype, device="cpu") for name, t in layout.items()}
    try:
        with skip_data(materialize_fake_tensors=True):
            torch.save({"module": states, "global_steps": 0}, path)
    except RuntimeError as error:  # torch's own writer reports a failed write like this
        raise OutputError(f"{path}: not written ({first_line(error)})") from error


class Filling:
    """Fills in the values of a checkpoint without values, tensor by tensor and in any order.

    In the end every record is the one that torch.save would have written, checksum included. Two differ, in details
    that are never read: the pickle repeats "cpu" for each tensor, and ``serialization_id`` is a hash of checksums that
    are not known yet.
    """

    def __init__(self, file: BinaryIO, names: Iterable[str], progress: Progress) -> None:
        """``names``: the tensors in the order in which they were laid out."""
        with zipfile.ZipFile(file) as archive:
            self._entries, self._directory = archive.infolist(), archive.start_dir
        records = {entry.filename.partition("/")[2]: entry for entry in self._entries}
        # torch.save numbers storages in order of first use
        self._records = {name: records[f"data/{index}"] for index, name in enumerate(names)}
        self._file, self._progress = file, progress
        self._done, self._total = 0, sum(record.file_size for record in self._records.values())
        self._checksums: dict[str, int] = {}

    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write a tensor, given as consecutive blocks of its values."""
        record, checksum, size = self._records[name], 0, 0
        self._file.seek(record.header_offset)
        self._file.seek(sum(struct.unpack("<26x2H", self._file.read(30))), os.SEEK_CUR)  # past name and extra fields
        for block in blocks:
            values = block.contiguous().reshape(-1).view(torch.uint8).numpy().data
            size += values.nbytes
            if size > record.file_size:
                break
            self._file.write(values)
            checksum = zlib.crc32(values, checksum)
            self._done += values.nbytes
            self._progress("weights", self._done, self._total)
        if size != record.file_size:
            raise ValueError(f"{name}: {size} bytes given, {record.file_size} laid out")
        if self._file.read(4) != b"PK\x07\x08":
            raise ValueError(f"{name}: no data descriptor follows its values")
        self._file.write(struct.pack("<I", checksum))
        self._checksums[record.filename] = checksum

    def finish(self) -> None:
        """Also write the checksums into the archive's directory at the end of the file."""
        missing = [name for name, record in self._records.items() if record.filename not in self._checksums]
        if missing:
            raise ValueError(f"{missing[0]}: laid out, and never written")
        position = self._directory
        for entry in self._entries:
            self._file.seek(position)
            sizes = struct.unpack("<28x3H12x", self._file.read(46))  # of name, extra fields and comment
            if entry.filename in self._checksums:
                self._file.seek(position + 16)
                self._file.write(struct.pack("<I", self._checksums[entry.filename]))
            position += 46 + sum(sizes)
