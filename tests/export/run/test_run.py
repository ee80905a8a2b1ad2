"""What is read from a training run and the folders that it names, and the corresponding contents of the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import onnx
import pytest
import yaml
from tokenizers import Tokenizer, normalizers

from support.runs import Run, make_run
from ualm.export.bundle import export_run
from ualm.export.run.qwen2 import backbone_shape
from ualm.export.run.recipe import read_recipe
from ualm.runtime import ExportError
from ualm.runtime.bundle.bundle import TOKENIZER, Bundle

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
}


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def test_a_folder_seen_from_the_working_folder_comes_before_one_beside_train_yaml(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((run / "train.yaml").read_text())
    config["model"]["model_hf_tag"] = "body"
    (run / "train.yaml").write_text(yaml.safe_dump(config))
    backbone = run / config["multimodal_io"]["text"]["tokenizer_name"]
    for place, eps in ((run / "body", 1e-4), (tmp_path / "work" / "body", 1e-3)):
        shutil.copytree(backbone, place)
        values = json.loads((place / "config.json").read_text()) | {"rms_norm_eps": eps}
        (place / "config.json").write_text(json.dumps(values))
    assert read_recipe(run / "train.yaml").backbone.rms_norm_eps == 1e-4
    monkeypatch.chdir(tmp_path / "work")
    assert read_recipe(run / "train.yaml").backbone.rms_norm_eps == 1e-3


def test_a_hub_name_is_found_in_the_local_cache(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((run / "train.yaml").read_text())
    backbone = run / config["multimodal_io"]["text"]["tokenizer_name"]
    cache = tmp_path / "hub"
    repository = cache / "models--someone--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(backbone, repository / "snapshots" / "abc")
    config["model"]["model_hf_tag"] = config["multimodal_io"]["text"]["tokenizer_name"] = "someone/some-model"
    (run / "train.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert read_recipe(run / "train.yaml").tokenizer_folder == repository / "snapshots" / "abc"


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 1000000}, 1e6),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 500000}}, 5e5),
    ],
)
def test_the_rotary_base_is_read_where_either_version_writes_it(changes: dict[str, object], theta: float) -> None:
    assert backbone_shape(Path("config.json"), QWEN2 | changes).rope_theta == theta


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"layer_types": 3}, "layer_types"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_a_backbone_field_that_cannot_be_meant_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ExportError, match=rf"config.json: {field} = "):
        backbone_shape(Path("config.json"), QWEN2 | changes)


def test_the_tokenizer_file_of_the_run_is_exported_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    file = run.backbone / "tokenizer.json"
    own = Tokenizer.from_file(str(file))
    own.normalizer = normalizers.Lowercase()  # no Qwen2 tokenizer built by a library has it
    own.save(str(file))
    export_run(run.folder, tmp_path / "bundle")
    exported = Tokenizer.from_file(str(tmp_path / "bundle" / TOKENIZER))
    for text in ("A Dog BARKS twice!", "  two  spaces\n", "ünï 日本 🎵", "<|im_start|>user"):
        assert exported.encode(text).ids == own.encode(text).ids
    assert exported.encode("DOG").ids == exported.encode("dog").ids


def test_equal_runs_give_equal_bundles(tiny_run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    again = export_run(tiny_run.folder, tmp_path / "again").bundle
    for file in tiny_bundle.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_every_part_is_valid_onnx_with_all_its_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    # its own files: other tests link those of the shared one, and onnx refuses weights with a second name
    bundle = Bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"), verify="never")
    for role in bundle.manifest.parts:
        onnx.checker.check_model(str(bundle.part(role)), full_check=True)
        model = onnx.load(str(bundle.part(role)))
        assert all(np.isfinite(onnx.numpy_helper.to_array(tensor)).all() for tensor in model.graph.initializer)


def test_an_onnxruntime_that_cannot_run_the_parts_is_refused_first(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    with pytest.raises(ExportError, match=r"onnxruntime 1\.23\.2: export needs 1\.25"):
        export_run(tiny_run.folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
