"""A checkpoint of any form gives the same bundle, and one that is not whole is refused in one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints.forms import FORMS, SCRIPT, State, write_safetensors, write_shards, write_zero3
from support.runs import CHECKPOINT, Run
from ualm.export.bundle import export_run
from ualm.export.run.checkpoint import Checkpoint
from ualm.export.run.recipe import find_run
from ualm.runtime.bundle.bundle import MANIFEST
from ualm.runtime.bundle.manifest import digest_of
from ualm.runtime.errors import ExportError

NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def state(tiny_run: Run) -> State:
    module: State = torch.load(tiny_run.checkpoint, weights_only=True)["module"]
    return module


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    """The tiny run without its weights."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns(CHECKPOINT)))


def refusal(run: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        Checkpoint(find_run(run, **options).weights)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def without_source(bundle: Path) -> tuple[str, Mapping[str, Any]]:
    """The digest of a bundle whose weights came from a file of another name, and what it says of their source."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    source = manifest["source"]
    assert manifest["digest"] == digest_of(manifest)
    manifest["source"] = {name: value for name, value in source.items() if name != "weights"}
    return digest_of(manifest), source


# ---- forms ----


@pytest.mark.parametrize("form", [form for form in FORMS if form != "module"])
def test_every_form_exports_to_the_same_bundle(form, state, run, tiny_bundle, tmp_path):
    path = FORMS[form](state, run)
    made = export_run(run, tmp_path / "bundle").bundle
    (digest, source), (expected, _) = without_source(made), without_source(tiny_bundle)
    assert digest == expected  # it covers the hash of every file
    assert source["weights"] == path.name
    assert sorted(os.listdir(made)) == sorted(os.listdir(tiny_bundle))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_form_gives_the_same_tensors(form, dtype, state, tiny_run, tmp_path):
    path = FORMS[form]({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path)
    read, expected = Checkpoint(path), Checkpoint(tiny_run.checkpoint)
    assert sorted(read) == sorted(expected)
    for name in expected:
        assert name in read and read.shape(name) == expected.shape(name)
        assert read.dtype(name) == str(dtype).removeprefix("torch.")
        assert np.array_equal(read.read(name), expected.read(name))
    assert np.array_equal(read.read(HEAD, slice(7, 20)), expected.read(HEAD)[7:20])


@pytest.mark.parametrize("form", FORMS)
def test_weights_names_every_form_by_its_file_or_its_folder(form, state, tiny_run, tmp_path):
    (tmp_path / "gathered").mkdir()
    path = FORMS[form](state, tmp_path / "gathered")
    for named in (path, path.parent):
        found = find_run(tiny_run.folder, weights=named)
        assert (found.weights, found.config) == (path, tiny_run.train_yaml)
        assert NORM in Checkpoint(found.weights)


def test_weights_that_share_a_storage_are_read_from_a_bin(state, tmp_path):
    """An older zero_to_fp32 saves slices of one long vector."""
    whole = torch.cat([tensor.float().flatten() for tensor in state.values()])
    slices = torch.split(whole, [tensor.numel() for tensor in state.values()])
    views = {name: part.view(state[name].shape) for name, part in zip(state, slices, strict=True)}
    torch.save(views, tmp_path / "pytorch_model.bin")
    read = Checkpoint(tmp_path / "pytorch_model.bin")
    for name, tensor in state.items():
        assert np.array_equal(read.read(name), tensor.float().numpy())


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux to report private memory")
@pytest.mark.parametrize("form", ["module", "bin shards", "safetensors shards"])
def test_a_mapped_checkpoint_takes_no_memory_but_for_what_is_read(form, tmp_path):
    table = torch.zeros(16 << 10, 256)  # 16 MiB each
    path = FORMS[form]({f"table.{index}": table.clone() for index in range(8)}, tmp_path)
    code = (
        "import re, sys; from pathlib import Path; from ualm.export.run.checkpoint import Checkpoint\n"
        "def held(): return int(re.search(r'Anonymous: +(\\d+)', Path('/proc/self/smaps_rollup').read_text())[1])\n"
        "before, most = held(), 0\n"
        "read = Checkpoint(Path(sys.argv[1]))\n"
        "for name in read:\n"
        "    for row in range(0, read.shape(name)[0], 4096):\n"
        "        values = read.read(name, slice(row, row + 4096)); assert not values.any(); most = max(most, held())\n"
        "print(most - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48 << 10  # kB, of 128 MiB; a block of rows has 4 MiB


# ---- which of several ----


@pytest.mark.parametrize(
    ("first", "second"),
    [("module", "safetensors"), ("bin", "bin shards"), ("safetensors shards", "bin"), ("flat", "state_dict")],
)
def test_two_checkpoints_in_one_folder_are_named_with_the_option_that_chooses(first, second, state, run):
    paths = [FORMS[form](state, run) for form in (first, second)]
    message = refusal(run)
    assert str(run) in message and all(path.name in message for path in paths)
    assert "--weights FILE" in message
    assert refusal(run, weights=run) == message
    for path in paths:
        assert find_run(run, weights=path).weights == path


def test_a_checkpoint_of_training_comes_before_files_of_other_names(state, run):
    torch.save({"losses": [1.0]}, run / "history.pt")
    path = FORMS["module"](state, run)
    assert find_run(run).weights == path


@pytest.fixture
def steps(state: State, run: Path) -> Path:
    """The run as training leaves it, with steps 9 and 10."""
    for step in (9, 10):
        folder = run / "checkpoints" / f"step_{step}"
        tag = folder / f"global_step{step}"
        tag.mkdir(parents=True)
        (folder / "latest").write_text(tag.name)
        FORMS["module"]({NORM: state[NORM]}, tag)
    return run


@pytest.mark.parametrize("form", ["bin", "safetensors shards"])
def test_a_step_may_hold_any_form(form, steps, state):
    folder = steps / "checkpoints" / "step_11" / "gathered"
    folder.mkdir(parents=True)
    path = FORMS[form](state, folder)
    assert (find_run(steps).weights, find_run(steps).step) == (path, 11)
    assert find_run(steps, step=9).weights.parts[-3:] == ("step_9", "global_step9", CHECKPOINT)
    assert find_run(steps, weights=folder).step == 11


def test_a_step_with_two_checkpoints_is_refused(steps, state):
    path = FORMS["bin"](state, steps / "checkpoints" / "step_10")
    message = refusal(steps)
    assert f"global_step10/{CHECKPOINT}" in message and f"step_10/{path.name}" in message and "--weights" in message
    assert find_run(steps, step=9).step == 9


def test_latest_says_which_of_a_steps_folders_counts(steps, state):
    folder = steps / "checkpoints" / "step_10"
    (folder / "global_step7").mkdir()
    FORMS["module"](state, folder / "global_step7")
    assert find_run(steps).weights.parent.name == "global_step10"
    (folder / "latest").write_text("global_step7\n")
    assert find_run(steps).weights.parent.name == "global_step7"
    for text in ("", "global_step8"):
        (folder / "latest").write_text(text)
        assert "holds more than one checkpoint" in refusal(steps)
    (folder / "latest").write_text("a" * 256)
    assert f"{folder / 'latest'}: does not name the folder" in refusal(steps)


def test_a_link_that_is_called_latest_is_no_file_of_deepspeeds(steps):
    (steps / "checkpoints" / "latest").symlink_to("step_9")
    assert find_run(steps).step == 10


def test_deepspeeds_own_folder_is_a_run(run, state):
    """``save_checkpoint`` of DeepSpeed itself: a folder for each step, beside ``latest``."""
    for step in (9, 10):
        (run / f"global_step{step}").mkdir()
        FORMS["module"](state, run / f"global_step{step}")
    assert find_run(run).step == 10
    (run / "latest").write_text("global_step9")
    assert (find_run(run).step, find_run(run).weights.parent.name) == (9, "global_step9")
    assert find_run(run, step=10).weights.parent.name == "global_step10"


# ---- ZeRO-3 ----


def gather_command(message: str) -> list[str]:
    found = re.search(r"gather them with: (.*); then export with --weights OUTPUT", message)
    assert found, message
    return shlex.split(found[1])


@pytest.mark.parametrize("place", [".", "checkpoints/step_10", "checkpoints"])
def test_parts_of_zero3_are_named_with_the_command_that_gathers_them(place, state, run):
    folder = run / place
    part = write_zero3(state, folder)
    message = refusal(run)
    assert str(part) in message and "ZeRO-3" in message
    assert gather_command(message) == ["python", str(folder / SCRIPT), str(folder), "OUTPUT"]
    for named in (part, part.parent):
        assert refusal(run, weights=named) == message
    # what the command makes is exported, and so is the run if it was made within it
    (folder / "global_step10" / "out put").mkdir()
    path = FORMS["bin shards"](state, folder / "global_step10" / "out put")
    assert find_run(run, weights=path.parent).weights == path
    assert find_run(run).weights == path


def test_the_command_names_the_folder_where_latest_does_not(state, run):
    part = write_zero3(state, run / "step_10")
    (run / "step_10" / "latest").write_text("global_step11")
    assert gather_command(refusal(run))[-2:] == ["--tag", part.parent.name]
    (run / "step_10" / SCRIPT).unlink()
    assert gather_command(refusal(run))[:4] == ["python", SCRIPT, "CHECKPOINT_FOLDER", "OUTPUT"]


def test_parts_of_zero3_beside_the_states_are_not_taken_for_the_whole(state, run):
    part = write_zero3(state, run / "step_10")
    path = FORMS["module"](state, part.parent)
    for options in ({}, {"weights": path}):
        message = refusal(run, **options)
        assert str(part) in message and "ZeRO-3" in message and SCRIPT in message
    for file in part.parent.glob("*model_states.pt"):
        if file != path:
            file.unlink()
    assert find_run(run).weights == path  # ZeRO-1 and 2 leave optim_states in parts


@pytest.mark.parametrize("form", FORMS)
def test_a_placeholder_of_zero3_is_named_with_the_command(form, state, run):
    FORMS[form]({**state, NORM: torch.empty(0)}, run)
    message = refusal(run)
    assert f"{NORM} has no values (shape [0])" in message and "ZeRO-3" in message
    assert gather_command(message)[:4] == ["python", SCRIPT, "CHECKPOINT_FOLDER", "OUTPUT"]


# ---- what is not whole ----


def edit_index(run: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    (index,) = run.glob("*.index.json")
    values = json.loads(index.read_text())
    change(values["weight_map"])
    index.write_text(json.dumps(values))
    return index


def shard_of(index: Path, name: str) -> Path:
    return index.with_name(json.loads(index.read_text())["weight_map"][name])


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_index_that_names_missing_files_or_tensors_is_refused(kind, state, run):
    index = write_shards(state, run, kind=kind)
    whole = index.read_text()
    assert len({*json.loads(whole)["weight_map"].values()}) > 2
    edit_index(run, lambda listed: listed.update({"model.extra": listed[NORM]}))
    message = refusal(run)
    assert f"tensor 'model.extra' is not in {shard_of(index, NORM).name}" in message and str(index) in message
    index.write_text(whole)
    edit_index(run, lambda listed: listed.update({HEAD: listed[NORM]}) or listed.pop(NORM))
    assert shard_of(index, HEAD).name in refusal(run)
    index.write_text(whole)
    edit_index(run, lambda listed: listed.pop(NORM))
    assert f"tensor {NORM} of " in refusal(run) and "is not listed" in refusal(run)
    index.write_text(whole)
    shard = shard_of(index, NORM)
    shard.unlink()
    message = refusal(run)
    assert f"{index}: {shard.name} is missing (1 of its " in message


def test_a_tensor_in_two_shards_is_refused(state, run):
    index = write_shards(state, run)
    first, second = shard_of(index, NORM), shard_of(index, HEAD)
    assert first != second
    save_file(load_file(second) | {NORM: state[NORM]}, second)
    message = refusal(run)
    assert f"tensor {NORM} is in " in message and first.name in message and second.name in message


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "", "..", "a/b", "a\0b", 3, None, ["a"]])
def test_a_shard_that_is_no_file_beside_the_index_is_refused(name, state, run):
    write_shards(state, run)
    index = edit_index(run, lambda listed: listed.update({NORM: name}))
    assert f"{index}: weight_map.{NORM!r} = " in refusal(run) and "a file beside the index" in refusal(run)


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": 3}', "{", "[" * 10**5, ""])
def test_an_index_that_lists_nothing_is_refused(text, state, run):
    index = write_shards(state, run)
    index.write_text(text)
    assert str(index) in refusal(run)


def test_a_shard_that_leads_outside_the_folder_is_refused(state, run, tmp_path):
    index = write_shards(state, run)
    shard = shard_of(index, NORM)
    outside = Path(shutil.move(shard, tmp_path / "outside.safetensors"))
    shard.symlink_to(outside)
    assert f"{shard.name} is a link to {outside}, outside the folder" in refusal(run)
    shard.unlink()
    shard.symlink_to("nowhere.safetensors")
    assert str(shard) in refusal(run)
    shard.unlink()
    shard.symlink_to(shard.name)
    assert str(shard) in refusal(run)


def test_the_links_of_a_hub_cache_are_followed(state, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    index = write_shards(state, snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    assert NORM in Checkpoint(index)


def test_one_shard_of_one_needs_no_index(state, run):
    path = write_safetensors(state, run).rename(run / "model-00001-of-00001.safetensors")
    assert find_run(run).weights == find_run(run, weights=path).weights == path


def test_shards_without_their_index_are_refused(state, run):
    index = write_shards(state, run)
    shard = shard_of(index, NORM)
    assert f"name their index, {index.name}" in refusal(run, weights=shard)
    index.unlink()
    assert f"a shard without its index, {index.name}" in refusal(run)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0, 1, 7, 9, 0.5, -1])
def test_a_truncated_file_is_refused(form, kept, state, run):
    path = FORMS[form](state, run)
    if path.suffix == ".json":
        path = shard_of(path, NORM if "wrapped" not in form else f"module.{NORM}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert str(path) in refusal(run)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_weights_of_another_dtype_are_named(form, dtype, state, run):
    FORMS[form]({**state, NORM: state[NORM].to(dtype)}, run)
    with pytest.raises(ExportError) as caught:
        Checkpoint(find_run(run).weights).read(NORM)
    assert f"{NORM} is " in str(caught.value) and "\n" not in str(caught.value)


class _Touch:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", [form for form in FORMS if "safetensors" not in form])
def test_code_in_any_form_is_refused_and_never_run(form, state, run, tmp_path):
    FORMS[form]({**state, "model.extra": _Touch(tmp_path / "was_run")} if "shards" not in form else state, run)
    if "shards" in form:
        torch.save({NORM: _Touch(tmp_path / "was_run")}, shard_of(next(run.glob("*.index.json")), NORM))
    message = refusal(run)
    assert "mkdir" in message and "nothing in it was run" in message
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"module": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}}, "holds two state dicts"),
        ({"a": torch.ones(1), "epoch": 3}, '"epoch" is a int, not a tensor'),
        ({"state_dict": {"epoch": 3}}, "state_dict['epoch'] is a int, not a tensor"),
        ({"model": {"a": torch.ones(1)}}, '"model" is a dict, not a tensor'),
        ({"module.a": torch.ones(1), "b": torch.ones(1)}, 'module.a begins with "module.", that of b does not'),
        ({"a" * 200: torch.ones(1)}, "not a tensor's name"),
    ],
)
def test_what_is_no_one_state_dict_is_refused(saved, said, run):
    torch.save(saved, run / "model.pt")
    message = refusal(run)
    assert str(run / "model.pt") in message and said in message


@pytest.mark.parametrize("name", ["a" * 200, "a\nb"])
def test_a_name_in_safetensors_that_no_message_can_hold_is_refused(name, run):
    write_safetensors({name: torch.ones(1)}, run)
    assert "not a tensor's name" in refusal(run)


def test_a_header_of_safetensors_beyond_the_limit_is_refused(run, monkeypatch):
    monkeypatch.setattr("ualm.export.run.safetensors_file.MOST_HEADER_VALUES", 10)
    write_safetensors({f"tensor.{index}": torch.ones(1) for index in range(10)}, run)
    assert "at most 10 are read" in refusal(run)
    monkeypatch.setattr("ualm.export.run.safetensors_file.MOST_HEADER", 100)
    assert "at most 100 are read" in refusal(run)


def test_a_named_pipe_in_place_of_a_shard_is_refused_at_once(state, run):
    shard = shard_of(write_shards(state, run), NORM)
    shard.unlink()
    os.mkfifo(shard)
    assert f"{shard}: " in refusal(run) and "it is a named pipe" in refusal(run)
