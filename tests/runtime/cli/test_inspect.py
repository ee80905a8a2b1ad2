"""``ualm inspect``: it describes the bundle correctly, and loads no engine."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bundles import changed_manifest, with_post_codec
from ualm.runtime import Model, __version__
from ualm.runtime.bundle.bundle import WEIGHTS
from ualm.runtime.bundle.compiled import EngineFile

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(ualm: Command) -> Command:
    """``ualm inspect`` in this process; returns exit status, standard output and standard error."""
    return functools.partial(ualm, "inspect")


def test_no_text_of_a_bundle_is_obeyed_by_a_terminal(ualm, tiny_bundle, tmp_path):
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\r"
    texts = {"created_by": f"ualm{evil}", "source": {f"by{evil}": f"me{evil}"}}
    texts["calibration"] = {"source": evil, "prompts": 1, "sounds": 0}

    def change(document):
        document.update(texts)
        document["golden"][f"more{evil}"] = 0.5
        document["parts"][f"codec.more{evil}"] = document["parts"]["codec"]

    folder = changed_manifest(tiny_bundle, tmp_path / f"bundle{evil.replace('/', '')}", change)
    for line in (["inspect", folder], ["doctor", folder], ["inspect", folder / "none"]):
        _, out, err = ualm(*line)
        told = (out + err).replace("\n", "").replace("\t", "")
        assert told and not [letter for letter in told if not letter.isprintable()], line
    status, out, _ = ualm("inspect", folder, "--json")
    assert status == 0 and json.loads(out)["created_by"] == f"ualm{evil}"


def test_json_says_what_the_bundle_is(run, tiny_bundle, tiny_run):
    status, out, err = run(tiny_bundle, "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    about = json.loads(out)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    for name in ("digest", "version", "created_by", "model", "features", "sampling", "source", "files"):
        assert about[name] == manifest[name]
    assert about["created_by"] == f"ualm {__version__}" and about["verified"] is False
    first = tiny_run.text_start
    assert about["vocabulary"]["special"] == [0, 256]
    assert about["vocabulary"]["text"] == [first, first + tiny_run.text_size]
    assert about["vocabulary"]["audio"] == [tiny_run.audio_start, tiny_run.audio_start + 8 * 17]
    assert about["vocabulary"]["size"] == tiny_run.vocabulary
    assert (about["codec"]["sample_rate"], about["codec"]["frames_per_second"]) == (16000, 1600)
    assert set(about["parts"]) == {
        "backbone",
        "head.text",
        "head.audio",
        "head.modality",
        "encoder",
        "codec",
        "codec.stream",
    }
    for part in about["parts"].values():
        assert part["precision"] == "fp32" and part["size"] == (tiny_bundle / part["file"]).stat().st_size
    assert about["bytes"] == sum((tiny_bundle / name).stat().st_size for name in about["files"])
    assert about["golden"]["tolerances"] == manifest["golden"]
    assert about["golden"]["tensors"]["rows"] == {"dtype": "int32", "shape": [22, 8]}
    assert about["golden"]["tensors"]["logits.modality"] == {"dtype": "float32", "shape": [1, 5]}
    ids = about["templates"]["ids"]
    assert (ids["bos"], ids["eos"], ids["eot"], ids["assistant"], ids["audio"]) == (1, 2, 3, 6, 8)


def test_the_cache_is_what_the_engine_takes(run, tiny_bundle):
    cache = json.loads(run(tiny_bundle, "--json")[1])["cache"]
    with Model.open(tiny_bundle, threads=1) as model:
        assert cache["bytes_per_row"] == model.resources.engine.bytes_per_row
        assert (cache["rows"], cache["bytes"]) == (16384, 16384 * model.resources.engine.bytes_per_row)


def test_text_shows_every_part_and_file_once(run, tiny_bundle):
    status, out, err = run(tiny_bundle)
    assert (status, err) == (0, "")
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    lines = out.splitlines()
    for name, file in manifest["files"].items():
        assert sum(line.split()[:1] == [name] and line.endswith(file["sha256"][:12]) for line in lines) == 1
    for role, part in manifest["parts"].items():
        assert sum(line.split()[:3] == [role, part["file"], part["precision"]] for line in lines) == 1
    for piece in ("hidden size    32", "text     256 to 597", "qwen2.5-omni", "22x8", "guidance     3.0", "8.0 MiB"):
        assert piece in out
    assert manifest["digest"] in out and "not verified" in out


def test_agreement_is_shown_beside_its_gates_and_engines_and_calibration_too(run, tiny_bundle, tmp_path):
    about = json.loads(run(tiny_bundle, "--json")[1])
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert (about["quality"], about["engines"], about["calibration"]) == (manifest["quality"], [], None)
    assert [(each["part"], each["figure"], each["met"]) for each in about["verdicts"]] == [
        ("audio", "top1", True), ("audio", "kl", True), ("text", "top1", True), ("text", "kl", True),
        ("features", "cosine_least", True), ("pcm", "snr_db", True),
    ]  # fmt: skip
    out = run(tiny_bundle)[1]
    assert re.search(r"^  sound: same likeliest token +1 +at least 0\.999 +met$", out, re.MULTILINE)
    engine = EngineFile("codec", "tensorrt-rtx", "codec.onnx", "1.7.1", (86, 89), "0", "0", 0, (), "in_place").to_json()
    calibration = {"source": "prompts.txt", "prompts": 3, "sounds": 0}

    def change(document):
        document.update(engines=[engine], calibration=calibration)
        document["quality"]["text"]["kl"] = 0.5

    other = changed_manifest(tiny_bundle, tmp_path / "other", change)
    about = json.loads(run(other, "--json")[1])
    assert (about["engines"], about["calibration"]) == ([engine], calibration)
    assert [each["met"] for each in about["verdicts"]] == [True, True, True, False, True, True]
    out = run(other)[1]
    assert "codec  tensorrt-rtx  1.7.1  sm86,sm89  codec.onnx" in out and "prompts.txt" in out and "MISSED" in out


def test_a_calibration_that_is_none_is_refused(run, tiny_bundle, tmp_path):
    other = changed_manifest(tiny_bundle, tmp_path / "other", lambda document: document.update(calibration=["a"]))
    status, out, err = run(other)
    assert (status, out, err.count("\n")) == (1, "", 1) and "calibration = ['a']" in err


def test_a_stage_behind_the_codec_is_shown(run, tiny_bundle, tmp_path):
    assert json.loads(run(tiny_bundle, "--json")[1])["post_codec"] is None
    bundle = with_post_codec(tiny_bundle, tmp_path / "bundle", sample_rate=48000, channels=2)
    stage = json.loads(run(bundle, "--json")[1])["post_codec"]
    assert (stage["kind"], stage["sample_rate"], stage["channels"], stage["delay"]) == ("resample", 48000, 2, 586)
    assert 'resample {"quality": "HQ"}: 48000 Hz, 2 channels, 586 samples behind' in run(bundle)[1]


def test_hashes_are_checked_only_when_asked(run, tiny_bundle, tmp_path):
    assert json.loads(run(tiny_bundle, "--verify", "--json")[1])["verified"] is True
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))
    with open(broken / WEIGHTS, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert run(broken)[0] == 0
    status, out, err = run(broken, "--verify")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert str(broken / WEIGHTS) in err and "SHA-256" in err


def test_a_folder_that_is_no_bundle_is_one_line(run, tmp_path):
    status, out, err = run(tmp_path)
    assert (status, out) == (1, "") and err.startswith(f"ualm: {tmp_path}: no bundle here") and err.count("\n") == 1


def test_no_engine_is_loaded(tiny_bundle):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        f"sys.argv = ['ualm', 'inspect', {str(tiny_bundle)!r}]\n"
        "from ualm.runtime.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_limit_of_positions_below_the_default_context_is_kept(run, tiny_bundle, tmp_path):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "short"))
    document = json.loads((copy / "manifest.json").read_text())
    document["model"]["max_positions"] = 1000
    del document["digest"]
    body = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.sha256(body.encode()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(document))
    assert json.loads(run(copy, "--json")[1])["cache"]["rows"] == 1000
