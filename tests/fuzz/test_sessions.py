"""Mutated saved sessions: refused in one line, or restored to a session that can go on."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.fuzzing import run_cases
from support.mutations import change_value, changed_bytes
from ualm.runtime import Model, TextSampling

pytestmark = pytest.mark.fuzz

BASE = "UALM_FUZZ_BUNDLE"
CASES, SEED = 300, 15

#: Headers that numpy would evaluate as Python, and some that contradict the file.
HEADERS = (
    "__import__('os').abort()",
    "(" * 5000,
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2, 2, 9, 16), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 2, 2, 999999, 16), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2, 2, 9, 16), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
)


@functools.cache
def model() -> Model:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=Path(os.environ[BASE]).parent)
    return Model.open(os.environ[BASE], engine="onnxruntime", threads=1, max_context=256)


@functools.cache
def saved() -> bytes:
    session = model().session(max_segments=50)
    for said in ("rain", "thunder"):
        session.ask(said, modality="text", text=TextSampling(max_steps=4))
    with tempfile.TemporaryDirectory() as folder:
        session.save(Path(folder) / "saved.npz")
        return (Path(folder) / "saved.npz").read_bytes()


def rewritten(rng: random.Random) -> bytes:
    """The archive rebuilt from changed arrays, so that every checksum fits."""
    with np.load(io.BytesIO(saved())) as stored:
        about, cache = json.loads(stored["about"].tobytes()), np.array(stored["cache"])
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), "cache": cache}
    what = rng.randrange(8)
    if what == 0:
        for _ in range(rng.choice([1, 2])):
            change_value(rng, about)
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    elif what == 1:
        arrays["about"] = np.frombuffer(rng.choice([b"[" * 100_000, b"", b"\xff", b"3", rng.randbytes(99)]), np.uint8)
    elif what == 2:
        axis = rng.randrange(5)
        arrays["cache"] = rng.choice(
            [
                np.delete(cache, 0, axis),
                np.swapaxes(cache, 0, axis),
                cache.astype(np.float16),
                cache[0],
                cache[..., None],
            ]
        )
    elif what == 3:
        cache.flat[rng.randrange(cache.size)] = rng.choice([np.nan, np.inf, 3e38, 0.0])
    elif what == 4:
        arrays["cache"] = np.array([None, "x"], object)
    elif what == 5:
        del arrays[rng.choice(sorted(arrays))]
    made = io.BytesIO()
    pack = rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(made, "w", pack) as archive:
        for name, values in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(values), allow_pickle=True)
            data = content.getvalue()
            if what == 6 and name == "cache":
                header = rng.choice(HEADERS).encode() + b"\n"
                data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + cache.tobytes()
            elif what == 7:
                data = changed_bytes(rng, data, head=128)
            archive.writestr(f"{name}.npy", data)
    return made.getvalue()


def a_changed_session(rng: random.Random, folder: Path) -> str:
    content = changed_bytes(rng, saved()) if rng.random() < 0.4 else rewritten(rng)
    (folder / "saved.npz").write_bytes(content)
    session = model().restore(folder / "saved.npz", max_segments=50)
    (segment, *_) = session.ask("rain", modality="text", text=TextSampling(max_steps=4))
    assert isinstance(segment.text, str)
    return "restored"


def test_a_changed_session_is_refused_in_a_line_or_goes_on(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BASE, str(tiny_bundle))
    counted = run_cases(a_changed_session, CASES, SEED)
    assert counted["refused"] > 0.5 * CASES and counted["restored"] > 0.02 * CASES
