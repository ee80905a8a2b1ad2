"""Hundreds of hostile training runs, and safetensors files, each drawn from a seed.

A refused run leaves nothing behind. One that exports must give what the unharmed run exports, file by file and tensor
by tensor, except for what its harm may change: a harm declares these outputs beforehand (``Harm.may_change``), and a
harm to bytes with a checksum declares none. So a flipped bit that goes undetected shows as an undeclared difference.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from support import fuzzing
from support.checkpoints.forms import FORMS, State
from support.runs import CHECKPOINT, make_run
from ualm.export.bundle import export_run
from ualm.export.run.checkpoint import Checkpoint
from ualm.runtime.bundle.bundle import MANIFEST, TOKENIZER, WEIGHTS
from ualm.runtime.errors import BundleError
from ualm.runtime.files.safetensors_reader import MappedTensors

pytestmark = pytest.mark.fuzz

#: Environment variable with the place of the unharmed run and its bundle, for the harness's processes.
PLACE = "UALM_FUZZ_CHECKPOINTS"
SEED = 15
RUNS = 600
SAFETENSORS = 300

QWEN, OMNI, CODEC = "Qwen/Qwen2.5-tiny", "Qwen/Qwen2.5-Omni-7B", "hf-audio/xcodec-tiny"
CONFIGS = [f"{folder}/config.json" for folder in (QWEN, OMNI, CODEC)] + [f"{OMNI}/preprocessor_config.json"]
TOKENIZERS = [f"{QWEN}/tokenizer.json", f"{QWEN}/tokenizer_config.json"]
#: Tables that come from a configuration and not from a tensor: each field may change its own.
TOLD = ("rope.inverse_frequencies", "null.keys", "null.values", "encoder.positions", "encoder.mel_filters")


@dataclass(frozen=True)
class Harm:
    """What was done. ``may_change``: tensors of the bundle's weights, or files of it, that may differ from the unharmed
    run's; the manifest always may, and what is computed from everything (the golden vector) if anything may."""

    what: str
    may_change: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Unharmed:
    """The run to be harmed, and its bundle. ``sources``: for each tensor of the bundle, the checkpoint's tensors that
    it is made of."""

    run: Path
    bundle: Path
    sources: dict[str, set[str]]


@functools.cache
def unharmed() -> Unharmed:
    place = Path(os.environ[PLACE]) if PLACE in os.environ else Path(tempfile.mkdtemp(prefix="ualm-fuzz-"))
    if not (place / "sources.json").exists():
        make_run(place / "run")
        sources: dict[str, set[str]] = {}
        with pytest.MonkeyPatch.context() as patched:
            _note_sources(patched, sources)
            export_run(place / "run", place / "bundle")
        (place / "sources.json").write_text(json.dumps({name: sorted(made) for name, made in sources.items()}))
    told = json.loads((place / "sources.json").read_text())
    return Unharmed(place / "run", place / "bundle", {name: set(made) for name, made in told.items()})


def _note_sources(patched: pytest.MonkeyPatch, sources: dict[str, set[str]]) -> None:
    """Make an export record which tensors of the checkpoint are read while each of its own is made."""
    from ualm.export.formats import store as weights

    add, read = weights.WeightStore.add, Checkpoint.read
    made: list[str] = []

    def noting_add(self: Any, name: str, shape: Any, make: Callable[[], np.ndarray], dtype: str = "float32") -> str:
        def noting_make() -> np.ndarray:
            made.append(name)
            return make()

        return add(self, name, shape, noting_make, dtype)

    def noting_read(self: Checkpoint, name: str, rows: slice = slice(None)) -> np.ndarray:
        if made:
            sources.setdefault(made[-1], set()).add(name)
        return read(self, name, rows)

    patched.setattr(weights.WeightStore, "add", noting_add)
    patched.setattr(Checkpoint, "read", noting_read)


# ---- harms to bytes that have a checksum: nothing may change ----


def flipped(rng: random.Random, run: Path) -> Harm:
    path = run / CHECKPOINT
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return Harm("bits of the checkpoint flipped")


def flipped_at_the_end(rng: random.Random, run: Path) -> Harm:
    """In the directory, where one bit moves a record or renames it."""
    path = run / CHECKPOINT
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    content[rng.randrange(start, len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return Harm("a bit of the checkpoint's directory flipped")


def shortened(rng: random.Random, run: Path) -> Harm:
    path = run / CHECKPOINT
    content = path.read_bytes()
    first, last = sorted(rng.randrange(len(content)) for _ in range(2))
    path.write_bytes(rng.choice((content[:first], content[:first] + content[last:], content[first:])))
    return Harm("the checkpoint cut")


def overwritten(rng: random.Random, run: Path) -> Harm:
    path = run / CHECKPOINT
    content = bytearray(path.read_bytes())
    length = rng.choice((1, 16, 512, 4096))
    first = rng.randrange(len(content) - length)
    content[first : first + length] = rng.choice((bytes(length), rng.randbytes(length)))
    path.write_bytes(content)
    return Harm("a block of the checkpoint overwritten")


# ---- harms that fit their checksums: another valid checkpoint ----


def listed_otherwise(rng: random.Random, run: Path) -> Harm:
    """Change the pickle that lists the tensors and correct its checksum: the tensors that torch reads differently may
    change."""
    path = run / CHECKPOINT
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
        start_dir = archive.start_dir
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<2H", content, entry.header_offset + 26)
    start = entry.header_offset + 30 + name + extra
    for _ in range(rng.choice((1, 1, 4))):
        place = start + rng.randrange(entry.file_size)
        content[place] = rng.choice((content[place] ^ (1 << rng.randrange(8)), rng.randrange(256), 255, 0))
    checksum = struct.pack("<I", zlib.crc32(content[start : start + entry.file_size]))
    place = start_dir
    while content[place + 46 : place + 46 + len(entry.filename)] != entry.filename.encode():
        place += 46 + sum(struct.unpack_from("<3H", content, place + 28))
    content[place + 16 : place + 20] = checksum
    descriptor = start + entry.file_size
    if content[descriptor : descriptor + 4] == b"PK\x07\x08":
        content[descriptor + 4 : descriptor + 8] = checksum
    path.write_bytes(content)
    return Harm("the list of tensors changed", _made_of(_differing(path)))


def _differing(path: Path) -> set[str]:
    """Tensors in which a checkpoint differs from the unharmed one, as read by torch when it copies every record."""
    before = torch.load(unharmed().run / CHECKPOINT, weights_only=True)["module"]
    try:
        module = torch.load(path, weights_only=True)["module"]
        same = {name for name in before if name in module and torch.equal(module[name], before[name])}
    except Exception:  # then no export may succeed
        return set()
    return set(before) - same


def _made_of(names: set[str]) -> frozenset[str]:
    """Tensors of a bundle that are made of these tensors of a checkpoint."""
    made = {ours for ours, sources in unharmed().sources.items() if sources & names}
    return frozenset(made | {"null.keys", "null.values"} if made else made)


ODD: list[Callable[[torch.Tensor], Any]] = [
    lambda t: t.to_sparse(),
    lambda t: t.reshape(len(t), -1).float().to_sparse_csr(),
    lambda t: t.to("meta"),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8),
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.complex64).conj().imag,
    lambda t: torch.nested.nested_tensor([t.float(), t.float()]),
    lambda t: t.flatten()[:1].clone().expand(t.shape),
    lambda t: t.flatten()[:1].clone().as_strided(t.shape, [0] * t.ndim),
    lambda t: t.to(torch.int8),
    lambda t: t.bool(),
    lambda t: t.to(torch.float8_e5m2),
    lambda t: torch.full_like(t, float("nan")),
    lambda t: t[:0],
    lambda t: t[None],
    lambda t: t.t() if t.ndim == 2 else t.flip(0),
    lambda t: t.double(),
    lambda t: t.float() * 1e38,
    lambda t: torch.zeros(1).expand(10**6, 10**6),
    lambda t: torch.empty(10**9, 10**9, device="meta"),
    lambda t: [t],
    lambda t: 10**5000,
    lambda t: functools.reduce(lambda inner, _: [inner] * 9, range(12), "ha"),
    lambda t: functools.reduce(lambda inner, _: (inner,), range(400), ()),
]


def odd_tensor(rng: random.Random, run: Path) -> Harm:
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    module = saved["module"]
    name = rng.choice(sorted(module))
    make = rng.randrange(len(ODD))
    module[name if rng.random() < 0.8 else rng.choice(("extra", "a" * 10**4, "a\nb"))] = ODD[make](module[name])
    torch.save(saved, run / CHECKPOINT)
    return Harm(f"tensor {name} made odd ({make})", _made_of({name}))


# ---- other forms of the same checkpoint ----


def another_form(rng: random.Random, run: Path) -> Harm:
    """Save the checkpoint in any form, and harm one of its files, or none."""
    state = torch.load(run / CHECKPOINT, weights_only=True)["module"]
    (run / CHECKPOINT).unlink()
    others = set(run.iterdir())
    form = rng.choice(sorted(FORMS))
    FORMS[form](state, run)
    files = sorted(set(run.iterdir()) - others)
    path = rng.choice(files)
    what = rng.choice(("whole", "flipped", "cut", "overwritten", "relisted", "removed", "doubled"))
    content = bytearray(path.read_bytes())
    first = rng.randrange(len(content))
    # most of a header of safetensors, and all of its errors, are in the first bytes
    first = min(first, rng.choice((8, 4096, len(content))))
    if what == "flipped":
        content[first] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del content[first:]
    elif what == "overwritten":
        content[first : first + 16] = rng.randbytes(len(content[first : first + 16]))
    path.write_bytes(content)
    if what == "relisted" and path.suffix == ".json":
        values = json.loads(path.read_text())
        _changed_field(rng, values)
        path.write_text(json.dumps(values))
    elif what == "removed":
        path.unlink()
    elif what == "doubled":
        name = rng.choice((CHECKPOINT, "pytorch_model.bin", "model.safetensors", rng.choice(files).name))
        (run / name).write_bytes(content)
    return Harm(f"{form}: {path.name} {what}", _made_of(_differing_safetensors(run, state)))


def _differing_safetensors(run: Path, state: State) -> set[str]:
    """Tensors in which the safetensors of a run differ from ``state``: unlike torch's files, they have no checksums."""
    found: dict[str, torch.Tensor] = {}
    try:
        for file in run.glob("*.safetensors"):
            found |= load_file(file)
    except Exception:  # then no export may succeed
        return set()
    plain = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return {name for name in plain if name in state and plain[name].tolist() != state[name].tolist()}


# ---- harms to texts, which have no checksum ----

VALUES: list[Callable[[random.Random], Any]] = [
    lambda rng: None,
    lambda rng: True,
    lambda rng: rng.choice((0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**6, 10**30, 10**400)),
    lambda rng: rng.choice((0.0, -1.5, 1e-300, 1e300, float("inf"), float("nan"))),
    lambda rng: rng.choice(("", "a\nb", "../..", "/", "\0", "\ud800", "x" * 10**5, "/dev/zero", "~nobody", "a/b", "1")),
    lambda rng: [],
    lambda rng: {},
    lambda rng: [[[["a"]]]] * 1000,
    lambda rng: functools.reduce(lambda inner, _: [inner], range(rng.choice((60, 300))), 1),
    lambda rng: {str(index): index for index in range(rng.choice((1, 5000)))},
]


def _changed_field(rng: random.Random, values: Any) -> tuple[str, ...]:
    """Change a value anywhere within ``values``; its path."""
    path: list[str] = []
    while True:
        key = rng.choice(list(values) if isinstance(values, dict) else range(len(values)))
        path.append(str(key))
        inner = values[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.9:
            values = inner
            continue
        if isinstance(values, dict) and rng.random() < 0.15:
            del values[key]
        elif isinstance(inner, int) and not isinstance(inner, bool) and rng.random() < 0.4:
            values[key] = rng.choice((inner + 1, inner - 1, inner * 2, inner // 2, -inner, inner * 10**6))
        else:
            values[key] = rng.choice(VALUES)(rng)
        return tuple(path)


def changed_config(rng: random.Random, run: Path) -> Harm:
    file = rng.choice(CONFIGS)
    values = json.loads((run / file).read_text())
    path = _changed_field(rng, values)
    (run / file).write_text(json.dumps(values))
    return Harm(f"{file}: {'.'.join(path)}"[:200], frozenset(TOLD))


def changed_tokenizer(rng: random.Random, run: Path) -> Harm:
    file = rng.choice(TOKENIZERS)
    values = json.loads((run / file).read_text())
    path = _changed_field(rng, values)
    (run / file).write_text(json.dumps(values))
    return Harm(f"{file}: {'.'.join(path)}"[:200], frozenset({TOKENIZER}))


def changed_yaml(rng: random.Random, run: Path) -> Harm:
    values = yaml.safe_load((run / "train.yaml").read_text())
    path = _changed_field(rng, values)
    (run / "train.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return Harm(f"train.yaml: {'.'.join(path)}"[:200], frozenset({TOKENIZER, *TOLD}))


def spoilt_text(rng: random.Random, run: Path) -> Harm:
    """Flip, cut or repeat bytes of a text."""
    file = rng.choice((*CONFIGS, *TOKENIZERS, "train.yaml"))
    content = bytearray((run / file).read_bytes())
    first = rng.randrange(len(content))
    if rng.random() < 0.6:
        content[first] ^= 1 << rng.randrange(8)
    else:
        content = rng.choice((content[:first], content[:first] * 2, content[first:], content + content[first:]))
    (run / file).write_bytes(content)
    return Harm(f"bytes of {file} spoilt", frozenset({TOKENIZER, *TOLD}))


def nested_text(rng: random.Random, run: Path) -> Harm:
    file = rng.choice((*CONFIGS, *TOKENIZERS, "train.yaml", "templates.json", "knows.json"))
    deep = rng.choice((65, 500, 50_000))
    text = rng.choice(("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "[" * deep))
    if file == "train.yaml" and rng.random() < 0.5:
        lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
        field = rng.choice(("job_type", "model", "multimodal_io", "preprocessor", "anything"))
        text = "\n".join(["a: &a [ha, ha]", *lines, f"{field}: *i\n"])
    (run / file).write_text(text)
    return Harm(f"{file} nested")


def multiplying_tokenizer(rng: random.Random, run: Path) -> Harm:
    path = run / TOKENIZERS[0]
    values = json.loads(path.read_text())
    content = "a" * rng.choice((1, 2, 10, 1000, 10**6))
    pattern = rng.choice(({"String": "a"}, {"String": ""}, {"Regex": ".?"}, {"Regex": "(a+)+$"}))
    steps = [{"type": "Replace", "pattern": pattern, "content": content}] * rng.randrange(1, 30)
    name, inner = rng.choice((("normalizer", "normalizers"), ("decoder", "decoders")))
    values[name] = {"type": "Sequence", inner: steps}
    path.write_text(json.dumps(values))
    return Harm(f"a {name} that multiplies", frozenset({TOKENIZER}))


def no_file(rng: random.Random, run: Path) -> Harm:
    files = (*CONFIGS, *TOKENIZERS, "train.yaml", CHECKPOINT, "templates.json", "knows.json", f"{QWEN}/merges.txt")
    path = run / rng.choice(files)
    path.unlink(missing_ok=True)
    kind = rng.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/tty")))
    elif kind == 2:
        path.symlink_to(path.name)
    else:
        os.mkfifo(path)
    return Harm(f"{path.name} is no file")


HARMS = {
    flipped: 5,
    flipped_at_the_end: 2,
    shortened: 2,
    overwritten: 3,
    listed_otherwise: 4,
    odd_tensor: 4,
    another_form: 6,
    changed_config: 4,
    changed_tokenizer: 2,
    changed_yaml: 2,
    spoilt_text: 3,
    nested_text: 2,
    multiplying_tokenizer: 1,
    no_file: 2,
}


def hostile_run(rng: random.Random, folder: Path) -> str:
    """Harm a run, export it, and compare the result with the unharmed one's."""
    whole = unharmed()
    run, out = folder / "run", folder / "out"
    shutil.copytree(whole.run, run)
    harm = rng.choices(list(HARMS), list(HARMS.values()))[0](rng, run)
    out.mkdir()
    try:
        export_run(run, out / "bundle", accept_quality=rng.random() < 0.5)
    except BaseException:
        left = [path.name for path in out.iterdir()]
        assert not left, f"{harm.what}: left {left}"
        raise
    assert [path.name for path in out.iterdir()] == ["bundle"], harm.what
    _compare(harm, whole.bundle, out / "bundle")
    return "exported"


def _compare(harm: Harm, expected: Path, found: Path) -> None:
    """The bundles differ only in what the harm may change."""
    ours, theirs = MappedTensors(expected / WEIGHTS), MappedTensors(found / WEIGHTS)
    assert set(ours) == set(theirs), harm.what
    changed = {name for name in ours if not _equal(ours[name], theirs[name])}
    files = {path.name for path in expected.iterdir()} | {path.name for path in found.iterdir()}
    if not changed and not harm.may_change:
        files -= {MANIFEST}
        changed = {name for name in files if (expected / name).read_bytes() != (found / name).read_bytes()}
    elif (expected / TOKENIZER).read_bytes() != (found / TOKENIZER).read_bytes():
        changed.add(TOKENIZER)
    assert changed <= harm.may_change, f"{harm.what}: changed {sorted(changed - harm.may_change)[:5]}"


def _equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def hostile_safetensors(rng: random.Random, folder: Path) -> str:
    """Harm a bundle's weights, and read each of its tensors: those that can be read have the listed size."""
    path = folder / WEIGHTS
    content = bytearray((unharmed().bundle / WEIGHTS).read_bytes())
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.5:
        header = json.loads(content[8 : 8 + length])
        name = rng.choice(sorted(header))
        field = rng.choice(("dtype", "shape", "data_offsets"))
        odd = rng.choice(("F33", "C64", "", ["F32"], [-1], [10**30], [1.5], [0, 10**30], [10**30, 0], "[]"))
        header[name] = rng.choice(({**header[name], field: odd}, rng.choice(VALUES)(rng)))
        text = json.dumps(header).encode()
        content[: 8 + length] = struct.pack("<Q", len(text)) + text
    elif rng.random() < 0.5:
        content[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
    else:
        content = content[: rng.randrange(len(content))]
    path.write_bytes(content)
    tensors = MappedTensors(path)
    refused: BundleError | None = None
    for name in tensors:
        try:
            values = tensors[name]
            assert values.nbytes == values.size * values.itemsize <= len(content)
            tensors.stored_as(name)
        except BundleError as error:
            refused = error
    if refused is not None:
        raise refused
    return "read"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unharmed")


@pytest.fixture(autouse=True)
def one_unharmed_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made once, and shared by all processes."""
    monkeypatch.setenv(PLACE, str(place))
    unharmed()


def test_hostile_runs_are_refused_in_a_line_or_export_what_they_should() -> None:
    counted = fuzzing.run_cases(hostile_run, RUNS, SEED)
    assert counted["refused"] > RUNS // 2
    assert counted["exported"] > RUNS // 20  # harm to parts that no export reads


def test_hostile_safetensors_are_refused_in_a_line_or_read() -> None:
    counted = fuzzing.run_cases(hostile_safetensors, SAFETENSORS, SEED)
    assert counted["refused"] > SAFETENSORS // 4
