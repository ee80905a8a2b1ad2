"""Bundles that were changed and signed again, so that every hash fits, are refused in one line, or work.

Faults are reported when the bundle is opened. Only faults that no header shows, in the operators of a graph or the
values of its weights, may be reported later: as a one-line error of a kind listed here, and rarely.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.fuzzing import LONGEST_MESSAGE, run_cases
from support.mutations import change_value, changed_bytes
from ualm.runtime import Model, Sound
from ualm.runtime.diagnostics.golden import check_golden
from ualm.runtime.errors import EngineError, UalmError

pytestmark = pytest.mark.fuzz

#: Environment variable with the path of the bundle that is changed.
BASE = "UALM_FUZZ_BUNDLE"
CASES, SEED = 2000, 15

#: Faults that no header shows: errors that may occur while a model runs, and words of each.
LATE = {
    "operators do not load": "cannot load it",
    "operators fail": "ONNX Runtime failed",
    "logits are not finite": "logits",
    "samples are not finite": "gave NaN or infinity",
}
#: Largest share of cases that may end in such an error.
MOST_LATE = 0.02

Files = dict[str, bytes]
Document = dict[str, Any]
Change = Callable[[random.Random, Document, Files], None]


def a_field(rng: random.Random, document: Document, files: Files) -> None:
    """Changes in the manifest, except the hashes, which are computed again."""
    section = rng.choice([name for name in document if name not in ("files", "digest")])
    if isinstance(document[section], (dict, list)) and rng.random() < 0.9:
        change_value(rng, document[section])
    else:
        change_value(rng, {section: document[section]} if rng.random() < 0.5 else document)


def a_size(rng: random.Random, document: Document, files: Files) -> None:
    section = document[rng.choice(["model", "vocabulary", "codec", "features"])]
    if not isinstance(section, dict):
        return
    names = [name for name, value in section.items() if type(value) is int]
    if names:
        name = rng.choice(names)
        section[name] = rng.choice([section[name] + 1, section[name] - 1, section[name] * 2, section[name] // 2])


def a_count(rng: random.Random, document: Document, files: Files) -> None:
    """Counts far beyond what a loop could go through."""
    huge = rng.choice([2**20, 10**8, 2**31 - 1, 2**31, 2**63, 10**18, 10**400])
    what = rng.randrange(8)
    parts, sections = document.get("parts"), ["model", "vocabulary", "codec", "features", "golden"]
    if what == 0 and isinstance(parts, dict) and parts:
        some = parts[rng.choice(sorted(parts))]
        parts |= {f"codec.{number}": some for number in range(rng.choice([60, 3000]))}
    elif what == 1:
        name = rng.choice(sorted(name for name in files if name.endswith(".onnx")))
        files[name] += rng.choice([b"\x08\x01", b"\x0a\x00", b"\x3a\x00"]) * rng.choice([1000, 1 << 20, 4 << 20])
    elif what == 2 and isinstance(document.get("model"), dict):
        document["model"]["layers"] = huge
    else:
        section = document.get(rng.choice(sections))
        names = sorted(section) if isinstance(section, dict) else []
        if names:
            section[rng.choice(names)] = huge


def parts_exchanged(rng: random.Random, document: Document, files: Files) -> None:
    parts = document.get("parts")
    if not isinstance(parts, dict) or len(parts) < 2 or not all(isinstance(part, dict) for part in parts.values()):
        return
    one, other = rng.sample(sorted(parts), 2)
    if rng.random() < 0.5:
        parts[one], parts[other] = parts[other], parts[one]
    else:
        parts[one]["file"] = parts[other].get("file")


def a_tensor(rng: random.Random, document: Document, files: Files) -> None:
    """Type, shape or offset of tensors of the blob or of the golden vector, in the header."""
    name = rng.choice(["weights.safetensors", "weights.safetensors", "golden.safetensors"])
    content = files[name]
    length = int.from_bytes(content[:8], "little")
    try:
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    except ValueError:
        return
    if not isinstance(header, dict) or len(header) < 3:
        return
    tables = [each for each in header if not each.startswith(("backbone", "encoder.layers", "codec.block", "_"))]
    one, other = rng.choice(tables or sorted(header)), rng.choice(sorted(header))
    what = rng.randrange(8)
    if what == 0:
        header[one], header[other] = header[other], header[one]
    elif what == 1:
        del header[one]
    elif what == 2 and isinstance(header[one], dict) and isinstance(header[one].get("shape"), list):
        header[one]["shape"] = rng.choice([header[one]["shape"][::-1], [1, *header[one]["shape"]], [-1], []])
    elif what == 3 and isinstance(header[one], dict):
        header[one]["dtype"] = rng.choice(["F32", "F16", "BF16", "I8", "U8", "I32", "I64", "F64", "BOOL", ""])
    elif what == 4:
        data = rng.randbytes(rng.choice([1, 2, 4, 64])) + data  # every number is shifted
    elif what == 5 and isinstance(header[one], dict) and isinstance(header[one].get("data_offsets"), list):
        header[one]["data_offsets"] = [
            offset + rng.choice([1, -1, 4, 64, 4096]) for offset in header[one]["data_offsets"]
        ]
    else:
        change_value(rng, header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * max(0, length - len(text))
    files[name] = len(text).to_bytes(8, "little") + text + data


def numbers_of_a_table(rng: random.Random, document: Document, files: Files) -> None:
    """A range of bytes of the blob: NaN, infinity, noise, zeros."""
    name = rng.choice(["weights.safetensors", "weights.safetensors", "golden.safetensors"])
    content = bytearray(files[name])
    at = rng.randrange(len(content) // 4) * 4
    number = rng.choice([np.nan, np.inf, -1e38, 1e-45, 0.0])
    count = rng.choice([1, 16, 1024])
    content[at : at + 4 * count] = rng.choice([np.float32(number).tobytes() * count, rng.randbytes(4 * count)])
    files[name] = bytes(content[: len(files[name])])


def a_file(rng: random.Random, document: Document, files: Files) -> None:
    name = rng.choice(sorted(files))
    files[name] = changed_bytes(rng, files[name], head=4096)


def a_graph(rng: random.Random, document: Document, files: Files) -> None:
    graphs = sorted(name for name in files if name.endswith(".onnx"))
    one = rng.choice(graphs)
    if rng.random() < 0.25:
        files[one] = files[rng.choice(graphs)]
    else:
        files[one] = changed_bytes(rng, files[one], head=len(files[one]))


def the_tokenizer(rng: random.Random, document: Document, files: Files) -> None:
    try:
        tokenizer = json.loads(files["tokenizer.json"])
    except ValueError:
        return
    for _ in range(rng.choice([1, 2, 4])):
        change_value(rng, tokenizer)
    files["tokenizer.json"] = json.dumps(tokenizer).encode()


CHANGES: tuple[Change, ...] = (
    *(a_field, a_size, a_tensor) * 3,
    *(a_count,) * 2,
    *(parts_exchanged, numbers_of_a_table, a_file, a_graph, the_tokenizer),
)


def signed(document: Document, files: Files, folder: Path) -> Path:
    """Write the bundle, with hashes and digest of its new contents; unchanged files are links."""
    base = Path(os.environ[BASE])
    folder.mkdir()
    for name, content in files.items():
        if content is ORIGINAL[1].get(name):
            os.link(base / name, folder / name)
        else:
            (folder / name).write_bytes(content)
        if isinstance(document.get("files"), dict) and isinstance(document["files"].get(name), dict):
            document["files"][name].update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    document.pop("digest", None)
    body = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.sha256(body.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


ORIGINAL: tuple[str, Files] = ("", {})


def a_changed_bundle(rng: random.Random, folder: Path) -> str:
    global ORIGINAL
    base = Path(os.environ[BASE])
    if not ORIGINAL[1]:
        files = {path.name: path.read_bytes() for path in base.iterdir() if path.name != "manifest.json"}
        ORIGINAL = ((base / "manifest.json").read_text(), files)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    document, files = json.loads(ORIGINAL[0]), dict(ORIGINAL[1])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(CHANGES)(rng, document, files)
    place = signed(document, files, folder / "bundle")
    model = Model.open(place, engine="onnxruntime", threads=1, max_context=256, verify="always")
    with model:
        try:
            return used(rng, model)
        except UalmError as error:
            assert "\n" not in str(error) and len(str(error)) <= LONGEST_MESSAGE, str(error)
            kinds = [kind for kind, words in LATE.items() if isinstance(error, EngineError) and words in str(error)]
            assert kinds, f"must not be reported this late: {error!r}"
            return f"late: {kinds[0]}"


def used(rng: random.Random, model: Model) -> str:
    what = rng.randrange(3)
    if what == 0:
        checks = check_golden(model.bundle, model.resources.engine)
        return "agrees" if all(check.passed for check in checks) else "disagrees"
    if what == 1:
        sound = model.generate("rain", max_steps=12, guidance=rng.choice([1.0, 2.0]), seed=1)
        assert np.isfinite(sound.samples).all()
        return "works"
    tone = np.sin(np.arange(4000, dtype=np.float32) / 9)
    assert isinstance(model.ask(Sound(tone, 16000), "What is it?", max_steps=4), str)
    return "works"


def test_a_changed_bundle_is_refused_in_a_line_or_works(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BASE, str(tiny_bundle))
    counted = run_cases(a_changed_bundle, CASES, SEED)
    assert sum(count for kind, count in counted.items() if kind.startswith("late")) <= MOST_LATE * CASES
    assert counted["refused"] > 0.5 * CASES and counted["works"] + counted["agrees"] > 0.02 * CASES
