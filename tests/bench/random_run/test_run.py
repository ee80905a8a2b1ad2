"""Random training runs: streamed to disk, yet equal in form to those of training, and as random as claimed."""

from __future__ import annotations

import dataclasses
import filecmp
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import XcodecConfig
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from ualm.bench.random_run import run as random_run
from ualm.bench.random_run.run import CHECKPOINT, SHAPES, write_random_run
from ualm.export.bundle import export_run
from ualm.export.run.checkpoint import Checkpoint
from ualm.runtime import Model
from ualm.runtime.errors import InputError, OutputError

TINY = SHAPES["tiny"]
MIB, GIB = 2**20, 2**30
needs_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux to report private memory"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose larger matrices span many blocks; read-only."""
    folder = tmp_path_factory.mktemp("random") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_run, "BLOCK", 10_007)  # not a multiple of a row
        write_random_run(folder, TINY, seed=7)
    return folder


@pytest.fixture(scope="module")
def states(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / CHECKPOINT, weights_only=True)["module"]


def test_equal_seeds_give_equal_files_and_other_seeds_other_weights(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_random_run(tmp_path / name, TINY, seed=seed)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) == 8
    names = [str(file) for file in files]
    assert filecmp.cmpfiles(tmp_path / "first", tmp_path / "again", names, shallow=False) == (names, [], [])
    first, other = (
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True)["module"] for name in ("first", "other")
    )
    for part in ("lm_head.weight", random_run.CODEC_PREFIX + "fc2.weight", random_run.ENCODER_PREFIX + "proj.weight"):
        assert (first[part] != other[part]).float().mean() > 0.9


def test_the_checkpoint_holds_the_records_that_torch_would_have_saved(run: Path, tmp_path: Path) -> None:
    torch.save(torch.load(run / CHECKPOINT, weights_only=True), tmp_path / CHECKPOINT)
    streamed, saved = (_records(folder / CHECKPOINT) for folder in (run, tmp_path))
    assert [name for name, _, _ in streamed] == [name for name, _, _ in saved]
    unlike = [name for (name, *one), (_, *other) in zip(streamed, saved, strict=True) if one != other]
    assert [name.partition("/")[2] for name in unlike] == ["data.pkl", ".data/serialization_id"]
    with zipfile.ZipFile(run / CHECKPOINT) as archive:
        assert archive.testzip() is None  # every checksum matches the values


def _records(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and checksum of each record, in order."""
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]


def test_values_lie_on_the_borders_that_mapping_asks_for(run: Path) -> None:
    mapped = torch.load(run / CHECKPOINT, mmap=True, weights_only=True)["module"]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values())


def test_a_run_exports_and_speaks(run: Path, tmp_path: Path) -> None:
    bundle = export_run(run, tmp_path / "bundle").bundle
    with Model.open(bundle) as model:
        sound = model.generate("rain", seed=1, max_steps=20)
    assert sound.codes is not None and len(sound.codes) > 0
    assert float(np.abs(sound.samples).max()) > 0


def test_matrices_are_normal_with_the_scale_of_their_kind(states: dict[str, torch.Tensor]) -> None:
    layer = "model.layers.2"
    scales = {
        "model.embed_tokens.weight": (0.0, 1.0),
        "lm_head.weight": (0.0, 2.0 / TINY.hidden**0.5),
        f"{layer}.self_attn.q_proj.weight": (0.0, 0.02),
        f"{layer}.mlp.down_proj.weight": (0.0, 0.02),
        f"{layer}.self_attn.k_proj.bias": (0.0, 0.1),
        f"{layer}.input_layernorm.weight": (1.0, 0.02),
        "adaptor.continuous_audio.weight": (0.0, 0.02),
    }
    for name, (mean, std) in scales.items():
        tensor = states[name]
        assert tensor.dtype == torch.bfloat16
        values = (tensor[1:] if name == "model.embed_tokens.weight" else tensor).double().flatten()
        error = 5 * std / len(values) ** 0.5  # five standard errors of a mean
        assert abs(values.mean().item() - mean) < error, name
        assert abs(values.std().item() - std) < error, name  # those of a deviation are smaller by the root of two
    values = states["lm_head.weight"].double().flatten()
    z = values / values.std()
    assert abs((z**4).mean().item() - 3) < 0.05  # a normal distribution's fourth moment
    assert 4.5 < z.abs().max().item() < 6.5  # of 1.1 million values


def test_row_zero_of_the_embeddings_alone_is_zero(states: dict[str, torch.Tensor]) -> None:
    rows = states["model.embed_tokens.weight"].float().abs().amax(dim=1)
    assert rows[0] == 0 and rows[1:].min() > 1


def test_no_row_column_or_run_of_values_comes_back(states: dict[str, torch.Tensor]) -> None:
    tables = [
        states["model.embed_tokens.weight"][1:],
        states["lm_head.weight"],
        states["model.layers.0.mlp.up_proj.weight"],
    ]
    for table in tables:
        for matrix in (table, table.T):
            assert len(torch.unique(matrix.float(), dim=0)) == len(matrix)
    stream = torch.cat([table.flatten() for table in tables]).view(torch.int16).numpy()
    runs = np.lib.stride_tricks.sliding_window_view(stream, 8)  # at every position, across the borders of blocks
    assert len(np.unique(np.ascontiguousarray(runs).view("V16"))) == len(runs)


def test_matrices_have_the_singular_values_of_independent_draws(states: dict[str, torch.Tensor]) -> None:
    for name in ("model.layers.1.mlp.gate_proj.weight", "model.layers.3.mlp.up_proj.weight"):
        rows, columns = states[name].shape
        singular = torch.linalg.svdvals(states[name].double()) / 0.02
        # Marchenko and Pastur 1967: between the difference and the sum of the roots of the sides
        assert singular.max() < 1.05 * (rows**0.5 + columns**0.5)
        assert singular.min() > 0.95 * (rows**0.5 - columns**0.5)


def test_every_code_of_every_codebook_sounds_different(states: dict[str, torch.Tensor]) -> None:
    books = [tensor for name, tensor in states.items() if name.endswith("codebook.embed")]
    assert len(books) == 8
    for book in books:
        assert len(torch.unique(book.float(), dim=0)) == XcodecConfig().codebook_size
        assert abs(book.float().std().item() - 0.3) < 0.01


def test_the_encoder_made_layer_by_layer_is_like_one_made_whole(states: dict[str, torch.Tensor]) -> None:
    prefix = random_run.ENCODER_PREFIX
    made = {name.removeprefix(prefix): tensor for name, tensor in states.items() if name.startswith(prefix)}
    whole = Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**TINY.encoder)).state_dict()
    assert made.keys() == whole.keys()
    for name, tensor in whole.items():
        assert made[name].shape == tensor.shape
        spread = tensor.std().item()
        assert made[name].float().mean().item() == pytest.approx(tensor.mean().item(), abs=spread / 4)
        assert made[name].float().std().item() == pytest.approx(spread, rel=0.25)
    assert (made["layers.0.fc1.weight"] != made["layers.1.fc1.weight"]).float().mean() > 0.9


def test_the_callers_random_numbers_are_not_disturbed(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_random_run(tmp_path / "run", TINY)
    assert torch.equal(torch.rand(3), expected)


#: Writes a run in a separate process, away from other tests' memory; prints the peak of what it held.
_WRITES = """
import dataclasses, re, sys
from pathlib import Path
from ualm.bench.random_run.run import SHAPES, write_random_run

def anonymous():
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous:\\s+(\\d+) kB", text, re.MULTILINE)[1]) * 1024

folder, tiny = Path(sys.argv[1]), SHAPES["tiny"]
write_random_run(folder / "warm", tiny)
before, peak, seen = anonymous(), 0, 0

def look(stage, done, total):
    global peak, seen
    if done - seen >= 4 * 2**20 or done == total:
        seen, peak = done, max(peak, anonymous() - before)

write_random_run(folder / "run", dataclasses.replace(tiny, hidden=512, ffn=1024, text_size=100_000), progress=look)
print(peak)
"""


@needs_smaps
def test_writing_holds_no_more_than_the_codec_and_a_block(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _WRITES, tmp_path], capture_output=True, text=True, check=True)
    assert (tmp_path / "run" / CHECKPOINT).stat().st_size > 220 * MIB
    # 55 to 80 MiB were seen, depending on whether the allocator keeps a block of each type; the largest tensor is 98
    # MiB more
    assert 0 < int(done.stdout) < 96 * MIB


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    write_random_run(tmp_path / "run", TINY, progress=lambda *step: seen.append(step))
    states = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["module"]
    total = sum(tensor.nbytes for tensor in states.values())
    assert seen[-1] == ("weights", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_too_little_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**10, 10**10))
    shape = SHAPES["7b"]
    with pytest.raises(OutputError, match=r"needs (\d+) bytes, and the disk has 10000000000 free") as error:
        write_random_run(tmp_path / "new" / "run", shape)
    needed = re.search(r"needs (\d+)", str(error.value))
    assert needed is not None and 17.0e9 < int(needed[1]) < 17.1e9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_appears_whole_or_not_at_all(tmp_path: Path, failure: BaseException) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done > total // 2:
            raise failure

    with pytest.raises((KeyboardInterrupt, OutputError)):
        write_random_run(tmp_path / "run", TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_met_by_torch_is_an_error_of_ours(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(OutputError, match="not written"):
            write_random_run(tmp_path / "run", TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seed", "layers", "field"), [(-1, 4, "seed = -1"), (2**32, 4, "seed"), (0, 0, "layers = 0")])
def test_seeds_and_layers_out_of_range_are_refused(tmp_path: Path, seed: int, layers: int, field: str) -> None:
    with pytest.raises(InputError, match=field):
        write_random_run(tmp_path / "run", dataclasses.replace(TINY, layers=layers), seed=seed)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_run_of_so_many_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["random_run", str(tmp_path / "run"), "--layers", "2", "--seed", "1"])
    random_run.main()
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: random tiny run, 2 layers, seed 1\n"
    names = set(Checkpoint(tmp_path / "run" / CHECKPOINT))
    assert "model.layers.1.mlp.up_proj.weight" in names and "model.layers.2.mlp.up_proj.weight" not in names
    assert '"num_hidden_layers": 2' in (tmp_path / "run" / "backbone" / "config.json").read_text()
    with pytest.raises(OutputError, match=r"run: exists already and is not an empty folder; "):
        random_run.main()


def test_help_and_the_page_tell_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["random_run.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        random_run.main()
    told = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and told.startswith("usage: python -m ualm.bench.random_run [-h]")
    page = (Path(__file__).resolve().parents[3] / "docs" / "bench.md").read_text(encoding="utf-8")
    assert "`ualm bench random-run FOLDER`" in page
    for option in re.findall(r"(--[a-z]+)", told.split("Then:")[0]):
        assert option == "--help" or f"| `{option}` |" in page, option
    for shape in SHAPES:
        assert shape in told and shape in page
    for step in ("must not exist yet", "ualm export FOLDER", "ualm bench decode BUNDLE", "docs/bench.md"):
        assert step in told


def test_the_large_shapes_are_those_of_qwen() -> None:
    sizes = {
        name: sum(int(np.prod(normal.shape)) for normal in random_run._backbone_states(shape, shape.text_size).values())
        for name, shape in SHAPES.items()
    }
    # parameters of Qwen2.5-7B; of Qwen2.5-1.5B, which has one table of 151,936 rows where UALM has two
    assert sizes["7b"] - 8 * 3584 == 7_615_616_512
    assert sizes["1.5b"] - 8 * 1536 - 151_936 * 1536 == 1_543_714_304


@pytest.mark.full
@needs_smaps
def test_the_tables_of_7b_are_streamed_too(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 6 * GIB:
        pytest.skip("needs 6 GiB of free disk")
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "ualm.bench.random_run", str(folder), "--shape", "7b", "--layers", "1"]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(str(process.pid)))
            time.sleep(0.02)
    assert process.returncode == 0
    assert peak < 1.5 * GIB < (folder / CHECKPOINT).stat().st_size / 2
    checkpoint = Checkpoint(folder / CHECKPOINT)
    assert checkpoint.shape("lm_head.weight") == (160_520, 3584)
    with zipfile.ZipFile(folder / CHECKPOINT) as archive:
        assert archive.testzip() is None


def anonymous_bytes(process: str) -> int:
    """Private memory not backed by a file."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        return 0
    match = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
