"""Changed bundles for tests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ualm.runtime.audio.post_codec import Resampler
from ualm.runtime.bundle.bundle import MANIFEST, Bundle


def changed_manifest(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A bundle with the same files, whose manifest is changed and signed again."""
    folder.mkdir()
    for file in bundle.iterdir():
        if file.name != MANIFEST:
            os.link(file, folder / file.name)
    document = json.loads((bundle / MANIFEST).read_text())
    change(document)
    del document["digest"]
    body = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.sha256(body.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(document))
    return folder


def changed_part(bundle: Bundle, folder: Path, role: str, graph: bytes) -> Path:
    """A bundle with another graph for a part, signed again."""
    name = bundle.part(role).name

    def change(document: dict[str, Any]) -> None:
        (folder / name).unlink()
        (folder / name).write_bytes(graph)
        document["files"][name] = {"size": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}

    return changed_manifest(bundle.folder, folder, change)


def with_post_codec(bundle: Path, folder: Path, *, sample_rate: int, channels: int) -> Path:
    """The bundle with a resampler after its codec."""
    stage = Resampler.describe(Bundle(bundle, verify="never").manifest.codec, sample_rate, channels)
    return changed_manifest(bundle, folder, lambda document: document.update(post_codec=vars(stage)))
