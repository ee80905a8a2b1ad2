"""A bundle: the folder that an export writes and an engine opens.

``manifest.json`` says what the model is and lists every other file with size and SHA-256. Files are mapped, never read
whole; hashes are checked at the first load, and again when a file's size or time has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import BundleError, InputError
from ..files.cache import cache_folder
from ..files.reading import check_file, first_line, read_json, shown
from ..files.safetensors_reader import MappedTensors
from ..files.writing import resolved
from .contents import check_contents
from .manifest import SCHEMA_VERSION, BundleFile, digest_of, parse_manifest

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
TOKENIZER = "tokenizer.json"

Verify = Literal["first", "always", "never"]


class Bundle:
    """An opened bundle: its manifest, the paths of its files, and its tables as read-only maps."""

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, digest {self.digest:.12})"

    def __init__(self, folder: str | os.PathLike[str], *, verify: Verify = "first") -> None:
        if verify not in ("first", "always", "never"):
            raise InputError(f'verify = {verify!r}: choose "first", "always" or "never"')
        if not isinstance(folder, (str, os.PathLike)):
            raise InputError(f"bundle = {shown(folder)}: give the path of a folder, or None for ualm's own model")
        self.folder = Path(folder)
        document = _read_manifest(self.folder)
        self.manifest = parse_manifest(self.folder / MANIFEST, document)
        #: Digest of the manifest, and through its hashes of every file.
        self.digest: str = document["digest"]
        self._sizes()
        if verify != "never":
            self._verify(self.digest, always=verify == "always")
        self._tables = MappedTensors(self.path(WEIGHTS))
        golden = MappedTensors(self.path(GOLDEN)) if GOLDEN in self.manifest.files else None
        check_contents(self.manifest, self.folder / MANIFEST, self.part, self._tables, golden)

    def path(self, name: str) -> Path:
        """Path of a file listed in the manifest."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder / MANIFEST}: lists no file {name!r}; export the run again")
        return self.folder / name

    def part(self, role: str) -> Path:
        """Path of the ONNX file that plays ``role``."""
        if role not in self.manifest.parts:
            raise BundleError(f"{self.folder / MANIFEST}: lists no part {role!r}; export the run again")
        return self.path(self.manifest.parts[role].file)

    def table(self, name: str) -> np.ndarray:
        """A tensor of the weights, mapped read-only; bfloat16 comes as its bits, uint16 (see ``widen``)."""
        return self._tables[name]

    def golden_vector(self) -> dict[str, np.ndarray]:
        """Inputs and expected outputs recorded at export."""
        tensors = MappedTensors(self.path(GOLDEN))
        return {name: tensors[name] for name in tensors}

    def _sizes(self) -> None:
        root = resolved(self.folder)
        for name, file in self.manifest.files.items():
            path = self.folder / name
            try:
                inside = resolved(path).is_relative_to(root)
                size = check_file(path).st_size if inside else 0
            except FileNotFoundError:
                raise BundleError(f"{path}: missing; copy the bundle again, or export the run again") from None
            except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
                raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again") from error
            if not inside:
                raise BundleError(f"{path}: leads outside the bundle; refused, export the run again")
            if size != file.size:
                raise BundleError(f"{path}: {size} bytes, the manifest says {file.size}; copy the bundle again")

    def _verify(self, digest: str, *, always: bool) -> None:
        stamp = _stamp_file(self.folder, digest)
        state = {}
        for name in self.manifest.files:
            info = (self.folder / name).stat()
            state[name] = [info.st_size, info.st_mtime_ns, info.st_ino]
        if not always and stamp is not None and _read_stamp(stamp) == state:
            return
        for name, file in self.manifest.files.items():
            logger.debug("verifying %s", self.folder / name)
            try:
                found = _sha256(self.folder / name)
            except OSError as error:
                raise BundleError(f"{self.folder / name}: cannot be read ({error}); copy the bundle again") from error
            if found != file.sha256:
                raise BundleError(
                    f"{self.folder / name}: its SHA-256 differs from the manifest's; the file was changed or damaged: "
                    "copy the bundle again"
                )
        if stamp is not None:
            try:
                stamp.parent.mkdir(parents=True, exist_ok=True)
                stamp.write_text(json.dumps(state))
            except OSError as error:  # a read-only home only costs the check next time
                logger.debug("cannot remember the verification in %s: %s", stamp, error)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        document = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        missing = (
            f"{MANIFEST} is missing" if folder.is_dir() else "it is a file" if folder.exists() else "no such folder"
        )
        raise BundleError(f"{folder}: no bundle here ({missing}); make one with: ualm export RUN -o BUNDLE") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable ({first_line(error)}); copy the bundle again") from error
    if not isinstance(document, dict) or document.get("format") != "ualm-bundle":
        raise BundleError(f"{path}: not the manifest of a ualm bundle; make one with: ualm export RUN -o BUNDLE")
    version = document.get("version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise BundleError(
            f"{path}: version = {shown(version)}: this ualm reads {SCHEMA_VERSION}; export the run again with this "
            "ualm, or use the ualm that made it"
        )
    if document.get("digest") != digest_of(document):
        raise BundleError(f"{path}: was changed after the export (digest differs); copy the bundle again")
    return document


def _sha256(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def describe_file(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> BundleFile:
    """Size and hash of a file, for a manifest being written; ``on_bytes`` gets the bytes hashed, block by block."""
    return BundleFile(path.stat().st_size, _sha256(path, on_bytes))


def _stamp_file(folder: Path, digest: str) -> Path | None:
    place = hashlib.sha256(str(resolved(folder)).encode()).hexdigest()[:16]
    cache = cache_folder()
    return None if cache is None else cache / "verified" / f"{digest[:32]}.{place}.json"


def _read_stamp(path: Path) -> object:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
