"""Damaged or malicious runs are refused by name, in one line, at once, and nothing of them is exported.

``tests/fuzz/test_checkpoints.py`` generates hundreds more.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.runs import CHECKPOINT, Run
from ualm.export.bundle import export_run
from ualm.export.quality.calibration_set import CalibrationSet
from ualm.export.run import records, torch_file
from ualm.export.run.checkpoint import Checkpoint
from ualm.export.run.recipe import read_recipe
from ualm.export.run.yaml_file import MOST_YAML, MOST_YAML_VALUES
from ualm.runtime.errors import ExportError

QWEN = Path("Qwen") / "Qwen2.5-tiny"
WEIGHT = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the tiny run, to be damaged."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def refusal(run: Path) -> str:
    """The message of a refused export, which was quick and left nothing behind."""
    place = run.parent / "bundles"
    started = time.process_time()
    with pytest.raises(ExportError) as caught:
        export_run(run, place / "bundle")
    assert time.process_time() - started < 10
    assert not place.exists()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def save(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    edit(saved["module"])
    torch.save(saved, run / CHECKPOINT)


def place_of(path: Path, wanted: Callable[[zipfile.ZipInfo], bool]) -> tuple[int, int]:
    """The offset of a record's content in the file, and its number of bytes."""
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if wanted(entry))
    header = path.read_bytes()[entry.header_offset :][:30]
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return entry.header_offset + 30 + name + extra, entry.file_size


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


# ---- the checksums of a checkpoint ----


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_bit_flipped_in_a_tensor_is_found_where_it_is_read(run, where):
    values = torch.load(run / CHECKPOINT, weights_only=True)["module"][WEIGHT]
    raw = values.contiguous().view(torch.uint8).numpy().tobytes()
    content = (run / CHECKPOINT).read_bytes()
    assert content.count(raw) == 1
    flip(run / CHECKPOINT, content.index(raw) + int(where * len(raw)))
    other = torch.load(run / CHECKPOINT, weights_only=True, mmap=True)["module"][WEIGHT]
    assert not torch.equal(other, values)  # torch itself does not report it

    read = Checkpoint(run / CHECKPOINT)
    with pytest.raises(ExportError, match=f"tensor {WEIGHT} was damaged: the CRC-32 of its record"):
        read.read(WEIGHT, slice(0, 1))
    assert read.read("model.norm.weight").size  # the others are intact
    message = refusal(run)
    assert str(run / CHECKPOINT) in message and WEIGHT in message and "copy it again" in message


def test_every_record_is_compared_once_and_only_what_is_read(tiny_run, monkeypatch):
    read = Checkpoint(tiny_run.checkpoint)
    size = 2 * read.shape(WEIGHT)[0] * read.shape(WEIGHT)[1]
    seen: list[int] = []
    crc32 = records.zlib.crc32
    monkeypatch.setattr(records.zlib, "crc32", lambda data, value: seen.append(len(data)) or crc32(data, value))
    for _ in range(3):
        read.read(WEIGHT, slice(0, 2))
    assert seen == [size]


def test_a_bit_flipped_where_the_tensors_are_listed_is_found(run):
    start, size = place_of(run / CHECKPOINT, lambda entry: entry.filename.endswith("/data.pkl"))
    flip(run / CHECKPOINT, start + size // 2)
    assert "data.pkl was damaged" in refusal(run)


def test_a_checkpoint_without_checksums_is_read(run, tiny_bundle):
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved, run / CHECKPOINT)
    finally:
        torch.serialization.set_crc32_options(True)
    read = Checkpoint(run / CHECKPOINT)
    assert read.read(WEIGHT).size


def test_tensors_that_share_a_storage_are_read(run):
    save(run, lambda module: module.update(a=(whole := torch.arange(12.0))[2:6], b=whole.view(3, 4), c=whole[11]))
    read = Checkpoint(run / CHECKPOINT)
    assert read.read("a").tolist() == [2, 3, 4, 5]
    assert read.read("b", slice(1, 3)).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert read.read("c").tolist() == 11


def test_a_compressed_checkpoint_is_refused(run):
    with zipfile.ZipFile(run / CHECKPOINT) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(run / CHECKPOINT, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    assert "is compressed; save it with torch.save" in refusal(run)


def test_a_list_of_tensors_beyond_the_limit_is_refused(run, monkeypatch):
    monkeypatch.setattr(records, "MOST_PICKLE", 1000)
    assert "at most 1000 are read: save the module's tensors alone" in refusal(run)


# ---- tensors of other kinds ----


def _quantised(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


KINDS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (lambda t: t.to_sparse(), "sparse_coo"),
    "rows": (lambda t: t.float().to_sparse_csr(), "sparse_csr"),
    "nested": (lambda t: torch.nested.nested_tensor([t.float(), t.float()]), "is nested"),
    "meta": (lambda t: t.to("meta"), "device meta"),
    "quantised": (_quantised, "is quantised (qint8)"),
    "complex": (lambda t: t.to(torch.complex64), "is complex"),
    "imaginary": (lambda t: t.to(torch.complex64).conj().imag, "is complex, or part of a complex tensor"),
    "repeated": (lambda t: t[:1, :1].clone().expand(t.shape), "repeats its values"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_no_plain_one_is_named(run, kind, extra):
    make, said = KINDS[kind]
    name = "model.extra" if extra else WEIGHT
    save(run, lambda module: module.update({name: make(module[WEIGHT])}))
    message = refusal(run)
    assert f"tensor {name} " in message and said in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_weights_that_are_no_floating_point_are_named(run, dtype):
    save(run, lambda module: module.update({WEIGHT: module[WEIGHT].to(dtype)}))
    message = refusal(run)
    assert f"tensor {WEIGHT} is {str(dtype).removeprefix('torch.')}" in message and "float32, bfloat16" in message


def test_values_that_are_shared_many_times_are_refused(run, monkeypatch):
    whole = torch.ones(1000, 1000)
    save(run, lambda module: module.update({f"copy.{index}": whole for index in range(torch_file.MOST_SHARED + 2)}))
    assert f"share values more than {torch_file.MOST_SHARED} times over" in refusal(run)


@pytest.mark.parametrize("name", ["a" * 1000, "a\nb", ""], ids=["long", "lines", "empty"])
def test_a_name_that_no_message_can_hold_is_refused(run, name):
    save(run, lambda module: module.update({name: torch.ones(1)}))
    assert "not a tensor's name" in refusal(run)


# ---- configurations ----


def laughs(field: str) -> str:
    """A document of a kilobyte whose ``field`` expands to nine to the ninth values."""
    lines = ["zero: &zero [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
    for below, name in itertools.pairwise(names):
        lines.append(f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]")
    sections = field.split(".")
    lines += [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    return "\n".join(lines) + " *eight\n"


@pytest.mark.parametrize("field", ["job_type", "multimodal_io.text.tokenizer_name", "model.model_choice", "anywhere"])
def test_aliases_that_multiply_are_refused(run, field):
    (run / "train.yaml").write_text(laughs(field))
    message = refusal(run)
    assert f"more than {MOST_YAML_VALUES} values" in message and "aliases" in message


def test_aliases_that_do_not_multiply_are_read(tiny_run, run):
    values = yaml.safe_load((run / "train.yaml").read_text())
    name = values["model"]["model_hf_tag"]
    text = (run / "train.yaml").read_text().replace(f"model_hf_tag: {name}", "model_hf_tag: *name")
    (run / "train.yaml").write_text(f"name: &name {name}\nmore: &more {{<<: {{a: 1}}, b: *name}}\nagain: *more\n{text}")
    assert read_recipe(run / "train.yaml").names == read_recipe(tiny_run.train_yaml).names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("job_type: " + "[" * 500 + "]" * 500, "deeper than 64 levels"),
        ("job_type: " + "[" * 100_000, "nesting depth"),
        ("a: &a [*a]\n", "an alias occurs within what it names"),
        ("job_type: [" + "a," * 30_000 + "]", "more than 10000 values"),
        ("# " + "a" * MOST_YAML, f"at most {MOST_YAML} are read"),
        ("job_type: 0x" + "f" * 50_000, "a number or date of"),
        ("job_type: 1" + ":1" * 50_000, "a number or date of"),
        ("job_type: !!int ''", "does not fit its tag"),
        ("job_type: !!bool maybe", "does not fit its tag"),
        ("job_type: !!timestamp noon", "does not fit its tag"),
    ],
    ids=["deep", "deeper", "cycle", "many", "long", "hexadecimal", "sexagesimal", "int", "bool", "timestamp"],
)
def test_a_train_yaml_beyond_the_limits_is_refused(run, text, said):
    (run / "train.yaml").write_text(text)
    message = refusal(run)
    assert str(run / "train.yaml") in message and said in message


@pytest.mark.parametrize("value", ["x" * 10**5, [[["a"] * 1000] * 5] * 1], ids=["long", "list"])
def test_a_value_is_shortened_in_a_message(run, value):
    values = yaml.safe_load((run / "train.yaml").read_text())
    values["multimodal_io"]["text"]["tokenizer_name"] = value
    (run / "train.yaml").write_text(yaml.safe_dump(values, width=10**6))
    assert "multimodal_io.text.tokenizer_name = " in refusal(run)


CONFIGS = {
    "backbone": QWEN / "config.json",
    "codec": Path("hf-audio") / "xcodec-tiny" / "config.json",
    "encoder": Path("Qwen") / "Qwen2.5-Omni-7B" / "config.json",
    "features": Path("Qwen") / "Qwen2.5-Omni-7B" / "preprocessor_config.json",
    "tokenizer": QWEN / "tokenizer.json",
    "tokenizer_config": QWEN / "tokenizer_config.json",
    "templates": Path("templates.json"),
    "knows": Path("knows.json"),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500], ids=["deeper", "deep"])
def test_json_that_is_nested_too_deep_is_refused(run, config, content):
    (run / CONFIGS[config]).write_bytes(content)
    message = refusal(run)
    assert str(run / CONFIGS[config]) in message and "deeper than 64 levels" in message


@pytest.mark.parametrize("config", [*CONFIGS, "train.yaml", "weights"])
def test_a_named_pipe_in_place_of_a_file_is_refused_at_once(run, config):
    path = run / {"train.yaml": "train.yaml", "weights": CHECKPOINT}.get(config, CONFIGS.get(config, ""))
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    command = [sys.executable, "-m", "ualm.export", run, "-o", run.parent / "bundle"]
    if config == "weights":
        command += ["--weights", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"{path}: " in done.stderr and "it is a named pipe" in done.stderr
    assert not (run.parent / "bundle").exists()


def test_prompts_in_a_named_pipe_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "prompts.txt")
    with pytest.raises(ExportError, match=r"prompts.txt: not a readable text in UTF-8 \(it is a named pipe"):
        CalibrationSet.read(tmp_path / "prompts.txt")


def change_json(path: Path, field: str, value: Any) -> None:
    values = json.loads(path.read_text())
    *sections, last = field.split("/")
    inside = values
    for section in sections:
        inside = inside[section]
    inside[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("config", "field", "value", "said"),
    [
        ("backbone", "num_hidden_layers", 10**6, "num_hidden_layers = 1000000: at most 1024"),
        ("backbone", "hidden_size", 10**30, "hidden_size = 1"),
        ("backbone", "rms_norm_eps", 10**400, "rms_norm_eps = a whole number of 1329 bits"),
        ("backbone", "vocab_size", True, "vocab_size = True"),
        ("encoder", "thinker_config/audio_config/encoder_layers", 10**6, "layers.2."),
        ("encoder", "thinker_config/audio_config/max_source_positions", 10**9, "at most 3000"),
        ("encoder", "thinker_config/audio_config/n_window", 10**9, "exceeds max_source_positions"),
        ("features", "n_fft", 10**8, "n_fft = 100000000, expected at most 65536"),
        ("features", "chunk_length", 10**9, "chunk_length = 1000000000, expected at most 3600"),
        ("codec", "sample_rate", 10**12, "sample_rate"),
        ("codec", "acoustic_model_config/upsampling_ratios", [2] * 10**5, "at most 16 numbers"),
        ("codec", "target_bandwidths", [["a"] * 1000], "codec config"),
        ("codec", "codebook_size", 10**400, "codec config"),
    ],
)
def test_a_size_beyond_the_limits_is_refused(run, config, field, value, said):
    change_json(run / CONFIGS[config], field, value)
    assert said in refusal(run)


@pytest.mark.parametrize("times", [9, 12])
def test_a_tokenizer_that_multiplies_a_text_is_refused(run, times):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    change_json(run / CONFIGS["tokenizer"], "normalizer", {"type": "Sequence", "normalizers": [step] * times})
    message = refusal(run)
    assert "tokenizer.json" in message and "times as long; at most 256" in message


@pytest.mark.parametrize("index", [10**6, 2**40, -1])
@pytest.mark.parametrize("place", ["vocab", "added", "settings"])
def test_ids_beyond_the_vocabulary_are_refused(run, place, index):
    token = {"content": "<new>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    if place == "vocab":
        change_json(run / CONFIGS["tokenizer"], "model/vocab/h", index)
    elif place == "added":
        document = json.loads((run / CONFIGS["tokenizer"]).read_text())
        document["added_tokens"].append({"id": index, "special": True, **token})
        (run / CONFIGS["tokenizer"]).write_text(json.dumps(document))
    else:
        change_json(run / CONFIGS["tokenizer_config"], "added_tokens_decoder", {str(index): {"special": True, **token}})
    assert "tokenizer" in refusal(run)


# ---- a killed export ----


def test_the_next_export_removes_what_a_killed_one_left(tiny_run, tmp_path):
    (tmp_path / ".bundle.0123456789abcdef").mkdir()  # of another process
    stopped = (
        "import os, signal, sys; from pathlib import Path; from ualm.export.bundle import export_run\n"
        "def progress(stage, done, total):\n"
        "    if stage == 'weights' and done: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export_run(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)"
    )
    command = [sys.executable, "-c", stopped, str(tiny_run.folder), str(tmp_path / "bundle")]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".bundle.u")]
    assert len(left) == 1 and (tmp_path / left[0] / "weights.safetensors").exists()
    export_run(tiny_run.folder, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.0123456789abcdef", "bundle"]
