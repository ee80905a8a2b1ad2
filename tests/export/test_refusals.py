"""What export refuses: each message names the file or field, the value found, and the fix; nothing is left behind."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.runs import CHECKPOINT, Run, make_run
from ualm.export.bundle import export_run
from ualm.export.run.recipe import find_run
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.errors import ExportError, OutputError, UalmError

CODEC = "multimodal_io_dict.discrete_audio.codec_model."
TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower."
DISCRETE = "multimodal_io.discrete_audio."


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the tiny run, to be damaged."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def refusal(run: Path | None, error: type[UalmError] = ExportError, **options: Any) -> str:
    """The message of a refused export, which left neither a bundle nor a temporary folder."""
    place = Path(options.pop("place", None) or (run or options["config"].parent).parent / "bundles")
    with pytest.raises(error) as caught:
        export_run(run, place / "bundle", **options)
    assert not place.exists() or not list(place.iterdir())
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_says(message: str, *pieces: object) -> None:
    for piece in pieces:
        assert str(piece) in message, f"{piece!r} is not in {message!r}"


def change_yaml(run: Path, field: str, value: Any) -> None:
    """Set a dotted field of train.yaml; an Ellipsis removes it."""
    path = run / "train.yaml"
    values = yaml.safe_load(path.read_text())
    change(values, field, value)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def change_json(path: Path, changes: Mapping[str, Any]) -> None:
    values = json.loads(path.read_text())
    for field, value in changes.items():
        change(values, field, value)
    path.write_text(json.dumps(values))


def change(values: dict[str, Any], field: str, value: Any) -> None:
    *sections, last = field.split(".")
    for section in sections:
        values = values[section]
    if value is ...:
        del values[last]
    else:
        values[last] = value


def change_checkpoint(run: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    path = run / CHECKPOINT
    saved = torch.load(path, weights_only=True)
    edit(saved["module"])
    torch.save(saved, path)
    return path


# ---- train.yaml ----


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        (DISCRETE + "ssl_choice", "ESPnet", "leaves it null"),
        (DISCRETE + "codec_choice", "ESPnet", "Xcodec"),
        (DISCRETE + "codec_choice", ..., "Xcodec"),
        (DISCRETE + "codec_max_token_per_frame", 4, "exactly 8 streams"),
        (DISCRETE + "delay_interleave", False, "delay pattern (true)"),
        (DISCRETE + "delay_interleave", ..., "delay pattern (true)"),
        (DISCRETE + "codec_hf_model_tag", ..., "name the codec"),
        (DISCRETE + "codec_hf_model_tag", 16000, "name the codec"),
        ("multimodal_io.text.tokenizer_name", ..., "name the tokenizer"),
        ("multimodal_io.text.tokenizer_name", ["a"], "name the tokenizer"),
        ("multimodal_io.continuous_audio.encoder_choice", "wav2vec", "AFWhisper"),
        ("multimodal_io.continuous_audio.encoder_hf_model_tag", 7, "name the encoder"),
        ("multimodal_io.text", ..., "section of fields"),
        ("multimodal_io.discrete_audio", None, "section of fields"),
        ("multimodal_io.image", {"a": 1}, "unknown modality"),
        ("multimodal_io", [1], "section of fields"),
        ("model.model_choice", "flat", "parallel"),
        ("model.model_hf_tag", "", "name the backbone"),
        ("preprocessor.audio_input", "discrete_audio", "heard through continuous_audio"),
        ("preprocessor.audio_output", "continuous_audio", "spoken through discrete_audio"),
        ("job_type", "tts", "only UALM"),
    ],
)
def test_an_unsupported_field_is_named_with_its_value(run, field, value, mend):
    change_yaml(run, field, value)
    found = {DISCRETE + "delay_interleave": False}.get(field) if value is ... else value
    assert_says(refusal(run), run / "train.yaml", f"{field} = {found!r}", mend)


def test_the_af_whisper_encoder_needs_its_folder(run):
    change_yaml(run, "multimodal_io.continuous_audio", {"encoder_choice": "AFWhisper"})
    assert_says(refusal(run), "multimodal_io.continuous_audio.encoder_local_path = None", "name the folder")


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        (b"", ["holds no fields", "train.yaml"]),
        (b"- a\n- b\n", ["holds no fields"]),
        (b"job_type: ualm\nmodel: {a: [1, 2\n", ["not a readable YAML file", "line 3", "fix it"]),
        (b"\xff\xfe\x00\x01", ["not a readable YAML file"]),
        (b"job_type: !!python/object/apply:os.system ['exit 1']\n", ["not a readable YAML file", "os.system"]),
        (b"date: 2026-13-45\n", ["not a readable YAML file", "month"]),
    ],
    ids=["empty", "list", "broken", "binary", "code", "no_such_date"],
)
def test_a_train_yaml_that_is_none_is_refused(run, content, pieces):
    (run / "train.yaml").write_bytes(content)
    assert_says(refusal(run), run / "train.yaml", *pieces)


def test_a_missing_train_yaml_is_told_with_the_places_looked_at(run):
    (run / "train.yaml").unlink()
    assert_says(refusal(run), run / "train.yaml", run / "conf" / "train.yaml", "--config")


@pytest.mark.parametrize("field", [DISCRETE + "codec_hf_model_tag", "multimodal_io.text.tokenizer_name"])
def test_a_hub_name_that_is_not_cached_comes_with_the_download_command(run, field):
    change_yaml(run, field, "nobody/no-such-model")
    assert_says(
        refusal(run),
        f"{field} = 'nobody/no-such-model'",
        "cache",
        'hf download nobody/no-such-model --include "*.json" --include "merges.txt"',
    )


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(run):
    change_yaml(run, "model.model_hf_tag", "./models/qwen")
    message = refusal(run)
    assert_says(message, "model.model_hf_tag = './models/qwen'", "no such folder", run)
    assert "hf download" not in message


# ---- the configurations that train.yaml names ----


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, ["architectures = ['Qwen2MoeForCausalLM']", "Qwen2ForCausalLM"]),
        ({"architectures": ["LlamaForCausalLM"]}, ["architectures = ['LlamaForCausalLM']", "Qwen2ForCausalLM"]),
        ({"architectures": None}, ["architectures = None", "Qwen2ForCausalLM"]),
        ({"model_type": "qwen3"}, ["model_type = 'qwen3'", "only qwen2"]),
        ({"hidden_act": "gelu"}, ["hidden_act = 'gelu'", "only silu"]),
        ({"use_sliding_window": True}, ["use_sliding_window = True", "not supported"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "sliding_attention"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["rope_scaling = {'type': 'yarn'", "unscaled"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["rope_parameters = {'rope_type': 'linear'", "unscaled"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling = 'yarn'", "unscaled"]),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "dynamic"}},
            ["rope_scaling = {'rope_type': 'dynamic'}", "unscaled"],
        ),
        ({"num_attention_heads": ...}, ["num_attention_heads = None", "positive whole number"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers = 0", "positive whole number"]),
        ({"hidden_size": "32"}, ["hidden_size = '32'", "positive whole number"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads = 3", "divide num_attention_heads = 4"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.", "missing"]),
        ({"num_hidden_layers": 1}, ["unexpected tensors", "model.layers.1."]),
        ({"intermediate_size": 50}, ["mlp.", "[48, 32]", "[50, 32]", "config.json"]),
    ],
    ids=str,
)
def test_a_backbone_of_another_kind_is_refused(run, changes, pieces):
    change_json(run / "Qwen" / "Qwen2.5-tiny" / "config.json", changes)
    assert_says(refusal(run), *pieces)


def test_codec_with_fewer_than_eight_quantizers_is_refused(tmp_path):
    make_run(tmp_path / "run", quantizers=6)
    assert_says(refusal(tmp_path / "run"), "target_bandwidths", "6 quantizers", "need 8")


def test_an_encoder_of_an_unknown_type_is_refused(run):
    folder = run / "Qwen" / "Qwen2.5-Omni-7B"
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    assert_says(refusal(run), "model_type = 'whisper'", "qwen2_5_omni_audio_encoder")


@pytest.mark.parametrize("content", ["", "{", "[1]", b"\xff"])
@pytest.mark.parametrize("folder", ["Qwen/Qwen2.5-tiny", "hf-audio/xcodec-tiny", "Qwen/Qwen2.5-Omni-7B"])
def test_a_config_json_that_is_none_is_named(run, folder, content):
    path = run / folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_says(refusal(run), path, "JSON")


def test_a_folder_without_config_json_is_named(run):
    (run / "hf-audio" / "xcodec-tiny" / "config.json").unlink()
    assert_says(refusal(run), "codec_hf_model_tag", "hf-audio/xcodec-tiny", "config.json is missing", "copy")


# ---- vocabulary ----


def test_tokenizer_and_backbone_must_agree_on_the_vocabulary_size(run, tiny_run):
    # as with a tokenizer from the 7B model and a backbone from the 1.5B model: each has its own padding
    other = Path(shutil.copytree(run / "Qwen" / "Qwen2.5-tiny", run / "Qwen" / "other"))
    change_json(other / "config.json", {"vocab_size": tiny_run.text_size + 128})
    change_yaml(run, "multimodal_io.text.tokenizer_name", "Qwen/other")
    size = tiny_run.text_size
    assert_says(refusal(run), f"vocab_size = {size}", size + 128, other / "config.json", "same model")


def test_a_tokenizer_larger_than_vocab_size_is_refused(tmp_path):
    make_run(tmp_path / "run", text_size=300)
    assert_says(refusal(tmp_path / "run"), "Qwen2.5-tiny", "tokenizer has 333 tokens", "vocab_size = 300", "same model")


@pytest.mark.parametrize("table", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_table_with_the_wrong_number_of_rows_is_refused(run, tiny_run, table):
    change_checkpoint(run, lambda module: module.update({table: module[table][:-8]}))
    rows = tiny_run.vocabulary
    assert_says(refusal(run), table, "wrong vocabulary size", f"[{rows - 8}, 32]", f"[{rows}, 32]", "train.yaml")


def test_a_codebook_size_that_the_tables_do_not_have_is_refused(run):
    change_json(run / "hf-audio" / "xcodec-tiny" / "config.json", {"codebook_size": 15})
    assert_says(refusal(run), "quantizer.quantizers.0.codebook.embed", "[16, ", "[15, ")


def test_an_embedding_table_whose_padding_row_is_not_zero_is_refused(run):
    change_checkpoint(run, lambda module: module["model.embed_tokens.weight"][0].fill_(1.0))
    assert_says(refusal(run), "model.embed_tokens.weight", "row 0", "not zero")


@pytest.mark.parametrize("content", ["", "{}", "not JSON", '{"model": 3}'])
def test_a_broken_tokenizer_is_refused(run, content):
    (run / "Qwen" / "Qwen2.5-tiny" / "tokenizer.json").write_text(content)
    assert_says(refusal(run), run / "Qwen" / "Qwen2.5-tiny", "tokenizer", "copy")


# ---- the checkpoint ----

ONE_OF_EACH_PART = [
    "model.norm.weight",
    "model.layers.1.self_attn.k_proj.bias",
    "stream_emb.weight",
    "lm_head.weight",
    "adaptor.continuous_audio.bias",
    TOWER + "layers.0.fc1.weight",
    CODEC + "fc2.weight",
    CODEC + "acoustic_decoder.conv1.weight",
    CODEC + "acoustic_decoder.snake1.alpha",
    CODEC + "quantizer.quantizers.7.codebook.embed",
]


@pytest.mark.parametrize("tensor", ONE_OF_EACH_PART)
def test_a_missing_tensor_is_named(run, tensor):
    change_checkpoint(run, lambda module: module.__delitem__(tensor))
    assert_says(refusal(run), tensor, "missing")


@pytest.mark.parametrize("tensor", [name for name in ONE_OF_EACH_PART if not name.endswith("alpha")])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(run, tensor):
    found: list[int] = []

    def edit(module: dict[str, torch.Tensor]) -> None:
        module[tensor] = torch.cat([module[tensor], module[tensor][:1]])
        found.extend(module[tensor].shape)

    change_checkpoint(run, edit)
    expected = [found[0] - 1, *found[1:]]
    assert_says(refusal(run), tensor, found, expected)


@pytest.mark.parametrize(
    "tensor", ["model.extra", "model.layers.0.self_attn.o_proj.bias", TOWER + "layers.2.fc1.weight", CODEC + "extra"]
)
def test_an_extra_tensor_is_named(run, tensor):
    path = change_checkpoint(run, lambda module: module.update({tensor: torch.ones(3)}))
    assert_says(refusal(run), path, "unexpected tensors", tensor, "do not describe this checkpoint")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", [n for n in ONE_OF_EACH_PART if n != "stream_emb.weight"])
def test_a_tensor_that_is_not_finite_is_named(run, tensor, value):
    path = change_checkpoint(run, lambda module: module[tensor].view(-1)[-1:].fill_(value))
    assert_says(refusal(run), path, tensor, "NaN or infinity", "diverged")


@pytest.mark.parametrize("kept", [0, 1, 2, 100, 5000, 0.5, 0.99, -200, -1])
def test_a_truncated_checkpoint_is_refused(run, kept):
    path = run / CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    message = refusal(run)
    size = path.stat().st_size
    assert_says(message, path, *{0: ["empty (0 bytes)"], 1: ["not a checkpoint"]}.get(size, ["truncated", size]))


def _zip_with(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"a text file\n" * 1000,
        b"\x80\x02}.",
        bytes(range(256)) * 20,
        _zip_with("a", b"b"),
        _zip_with("a/data.pkl", b"b"),
    ],
    ids=["text", "pickle", "bytes", "zip", "zip_with_bad_pickle"],
)
def test_a_file_that_is_no_checkpoint_is_refused(run, content):
    (run / CHECKPOINT).write_bytes(content)
    assert_says(refusal(run), run / CHECKPOINT)


@pytest.mark.parametrize(
    "saved", [{}, {"module": None}, {"module": [1]}, {"state_dict": {}}, [1, 2], torch.ones(3)], ids=str
)
def test_a_checkpoint_without_module_is_refused(run, saved):
    torch.save(saved, run / CHECKPOINT)
    assert_says(refusal(run), run / CHECKPOINT, '"module"', "DeepSpeed")


@pytest.mark.parametrize("module", [{"model.norm.weight": 3}, {3: torch.ones(1)}], ids=["number", "key"])
def test_a_module_that_holds_no_tensors_is_refused(run, module):
    torch.save({"module": module}, run / CHECKPOINT)
    assert_says(refusal(run), run / CHECKPOINT, "module", next(iter(module)), "tensor")


class _Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["beside", "inside", "bare"])
def test_code_in_a_checkpoint_is_refused_and_never_run(run, tmp_path, form):
    proof = tmp_path / "was_run"
    path = run / CHECKPOINT
    if form == "bare":
        path.write_bytes(pickle.dumps(_Touch(proof)))
    else:
        saved = torch.load(path, weights_only=True)
        (saved if form == "beside" else saved["module"])["extra"] = _Touch(proof)
        torch.save(saved, path)
    message = refusal(run)
    assert not proof.exists()
    assert_says(message, path, *(["not a checkpoint"] if form == "bare" else ["mkdir", "nothing in it was run"]))
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(path.read_bytes())
    assert proof.exists()  # the file really was dangerous


# ---- finding the run ----


def test_a_run_that_does_not_exist_or_is_not_named_is_refused(tmp_path, tiny_run):
    assert_says(refusal(tmp_path / "none"), tmp_path / "none", "no such folder", "--config and --weights")
    with pytest.raises(ExportError, match="name its folder, or both --config and --weights"):
        find_run(None, config=tiny_run.train_yaml)


def test_model_parallel_checkpoints_are_refused(run):
    (run / "mp_rank_01_model_states.pt").write_bytes(b"")
    assert_says(refusal(run), run, "mp_rank_01_model_states.pt", "model-parallel", "merge")


def test_an_empty_folder_is_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    assert_says(refusal(tmp_path / "run"), tmp_path / "run", CHECKPOINT, "checkpoints/step_N")


@pytest.fixture
def recipe(tiny_run: Run, tmp_path: Path) -> Path:
    """The recipe's folder with ``conf/train.yaml`` and a run of three steps in ``exp/tiny``, as left by training."""
    conf = tmp_path / "recipe" / "conf"
    shutil.copytree(tiny_run.folder, conf, ignore=shutil.ignore_patterns(CHECKPOINT))
    for step in (9, 10, 200):
        folder = conf.parent / "exp" / "tiny" / "checkpoints" / f"step_{step}" / f"global_step{step}"
        folder.mkdir(parents=True)
        if step != 200:  # saving the newest was interrupted
            os.link(tiny_run.checkpoint, folder / CHECKPOINT)
    return conf.parent


def test_the_newest_whole_step_is_chosen_by_number(recipe):
    found = find_run(recipe / "exp" / "tiny")
    assert found.step == 10  # neither 9, the last by name, nor 200, whose weights are missing
    assert found.weights.parts[-3:] == ("step_10", "global_step10", CHECKPOINT)
    assert found.config == recipe / "conf" / "train.yaml"


def test_a_step_can_be_picked(recipe):
    found = find_run(recipe / "exp" / "tiny", step=9)
    assert (found.step, found.weights.parent.name) == (9, "global_step9")


@pytest.mark.parametrize("step", [8, 200])
def test_an_unknown_step_is_refused_with_those_found(recipe, step):
    run = recipe / "exp" / "tiny"
    assert_says(refusal(run, step=step), run, f"no checkpoint of step {step}", "9, 10")


def test_a_step_cannot_be_picked_where_no_folder_tells_it(run):
    assert_says(refusal(run, step=10), run / CHECKPOINT, "--step 10", "leave out")


def test_the_recipes_layout_exports(recipe, tmp_path):
    report = export_run(recipe / "exp" / "tiny", tmp_path / "bundle")
    assert report.run.step == 10
    assert Bundle(tmp_path / "bundle", verify="always").manifest.source["step"] == 10


def test_config_and_weights_may_lie_apart(recipe, tmp_path):
    config = recipe / "conf" / "train.yaml"
    weights = Path(shutil.copy(find_run(recipe / "exp" / "tiny").weights, tmp_path / "renamed.pt"))
    report = export_run(None, tmp_path / "bundle", config=config, weights=weights)
    assert (report.run.config, report.run.weights, report.run.step) == (config, weights, None)


def test_config_and_weights_override_the_run(recipe, tmp_path):
    run = recipe / "exp" / "tiny"
    config = Path(shutil.copy(recipe / "conf" / "train.yaml", tmp_path / "other.yaml"))
    assert find_run(run, config=config) == find_run(run).__class__(config, find_run(run).weights, 10)
    weights = find_run(run, step=9).weights
    assert find_run(run, weights=weights) == find_run(run, step=9)


def test_config_and_weights_must_be_files(recipe, tmp_path):
    run, none = recipe / "exp" / "tiny", tmp_path / "none"
    assert_says(refusal(run, config=none), none, "no such file", "--config")
    assert_says(refusal(run, weights=none), none, "no such file", "--weights")
    assert_says(refusal(run, weights=find_run(run).weights, step=9), "--step 9", "--weights")


def test_an_unknown_precision_is_refused(tiny_run, tmp_path):
    message = refusal(tiny_run.folder, precision="int3", place=tmp_path / "bundles")
    assert_says(message, "precision = 'int3'", "fp32")


# ---- the target ----


def test_a_target_that_holds_something_is_left_alone(tiny_run, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an empty folder; remove it") as caught:
        export_run(tiny_run.folder, tmp_path / "bundle")
    assert_says(str(caught.value), tmp_path / "bundle")
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "mine.txt"]


def test_an_empty_target_folder_is_taken(tiny_run, tmp_path):
    (tmp_path / "bundle").mkdir()
    export_run(tiny_run.folder, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    Bundle(tmp_path / "bundle", verify="always")


def test_a_target_below_a_file_is_refused(tiny_run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose a writable folder") as caught:
        export_run(tiny_run.folder, tmp_path / "file" / "deep" / "bundle")
    assert_says(str(caught.value), tmp_path / "file" / "deep" / "bundle")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("stage", ["weights", "hashes"])
@pytest.mark.parametrize("target", ["bundle", "new/deep/bundle"])
def test_an_interrupt_leaves_nothing_behind(tiny_run, tmp_path, stage, target):
    seen = []

    def progress(name: str, done: int, total: int) -> None:
        seen.append((name, [path.name for path in (tmp_path / target).parent.iterdir()]))
        if name == stage and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(tiny_run.folder, tmp_path / target, progress=progress)
    assert seen[-1][0] == stage and len(seen[-1][1]) == 1  # there was a temporary folder
    assert not list(tmp_path.iterdir())


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# the bundle takes about 500 kB: the disk is full at the first graph, in the middle of the weights, at the tokenizer
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("size", [4 << 10, 20 << 10, 200 << 10, 460 << 10, 470 << 10], ids="{}B".format)
def test_a_full_disk_is_told_and_left_as_it_was(tiny_run, tmp_path, size):
    with small_disk(tmp_path / "disk", size) as disk:
        message = refusal(tiny_run.folder, OutputError, place=disk)
        assert_says(message, disk / "bundle", "No space left", "nothing was left behind")


# ---- the command ----


def _export_command(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ualm.export", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_the_command_leaves_nothing_behind(tmp_path, number, status):
    # large enough that writing it takes a while: the signal arrives in the middle
    make_run(tmp_path / "run", hidden=64, text_size=80_000)
    place = tmp_path / "bundles"
    place.mkdir()
    # a shell that starts the tests in the background has them ignore SIGINT, and children inherit that
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = _export_command(tmp_path / "run", "-o", place / "bundle", preexec_fn=default)
    until = time.monotonic() + 60
    while not list(place.iterdir()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "", "")
    assert not list(place.iterdir())


def test_the_command_exports(tiny_run, tmp_path):
    process = _export_command(tiny_run.folder, "-o", tmp_path / "bundle", "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    report = json.loads(out)
    assert out.count("\n") == 1
    assert report["bundle"] == str(tmp_path / "bundle")
    assert report["weights"] == str(tiny_run.checkpoint)
    assert report["bytes"] == {path.name: path.stat().st_size for path in (tmp_path / "bundle").iterdir()}
    assert report["seconds"] and all(seconds >= 0 for seconds in report["seconds"].values())
    Bundle(tmp_path / "bundle", verify="always")
