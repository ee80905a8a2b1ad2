"""Errors in the arguments of an export are reported before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.runs import Run
from ualm.export.arguments import check_request
from ualm.export.targets.registry import TAKES, TARGETS, ExportRequest
from ualm.runtime.errors import OutputError, UalmError

#: Runs commands in one process, and reports the error of each, and whether torch was loaded for it.
_COMMANDS = """
import contextlib, io, json, sys
from ualm.runtime.cli import main as cli
for command in json.loads(sys.stdin.read()):
    sys.argv, error = ["ualm", "export", *command], io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.suppress(SystemExit):
        cli.main()
    print(json.dumps([error.getvalue(), [name for name in ("torch", "transformers", "onnx") if name in sys.modules]]))
"""


@pytest.fixture
def places(tiny_run: Run, tiny_bundle: Path, tmp_path: Path) -> Callable[[str], str]:
    """Replaces words in capitals with paths."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "a.xyz").write_text("")
    (tmp_path / "hollow").mkdir()
    broken = tmp_path / "broken.yaml"
    broken.write_text("job_type: other\n")
    known = {"RUN": tiny_run.folder, "BUNDLE": tiny_bundle, "YAML": broken, "PT": tiny_run.checkpoint}
    names = {"NEW": "new", "FULL": "full", "FILE": "full/file", "STRANGE": "strange", "HOLLOW": "hollow", "NONE": "no"}
    known |= {word: tmp_path / name for word, name in names.items()}
    known["INDEX"] = tmp_path / "bare.safetensors.index.json"
    known["INDEX"].write_text('{"weight_map": {}}')
    known["BELOW"] = tmp_path / "full" / "file" / "below"
    return lambda word: str(known.get(word, word))


CASES = [
    (["RUN"], "--output: name the folder"),
    (["RUN", "-o", "NEW", "--engine", "abacus"], "--engine abacus: choose onnxruntime, "),
    (["RUN", "-o", "NEW", "--precision", "fp4"], "precision = 'fp4': choose fp32, "),
    (["RUN", "-o", "NEW", "--encoder-precision", "int4"], "encoder precision = 'int4'"),
    (["RUN", "-o", "NEW", "--codec-precision", "int8"], "codec precision = 'int8'"),
    (["RUN", "-o", "NEW", "--prefill", "fp16"], "prefill precision = 'fp16'"),
    (["RUN", "-o", "NEW", "--calibrate", "STRANGE"], "--calibrate: it is for int8, int4 and fp8, not for fp32"),
    (["RUN", "-o", "NEW", "--precision", "int4", "--calibrate", "NONE"], "no such file or folder"),
    (["RUN", "-o", "NEW", "--precision", "int4", "--calibrate", "STRANGE"], "a.xyz: neither a text (.txt) nor a sound"),
    (["RUN", "-o", "NEW", "--precision", "int4", "--calibrate", "HOLLOW"], "holds no prompt and no sound"),
    (["-o", "NEW"], "no training run given"),
    (["NONE", "-o", "NEW"], "no such folder"),
    (["HOLLOW", "-o", "NEW"], "holds neither mp_rank_00_model_states.pt"),
    (["RUN", "-o", "NEW", "--step", "3"], "--step 3"),
    (["RUN", "-o", "NEW", "--config", "NONE"], "no such file; --config names"),
    (["RUN", "-o", "NEW", "--config", "YAML"], "job_type = 'other'"),
    (["RUN", "-o", "NEW", "--weights", "NONE"], "no such file; --weights names"),
    (["RUN", "-o", "NEW", "--weights", "STRANGE"], "holds no weights (mp_rank_00_model_states.pt, "),
    (["RUN", "-o", "NEW", "--weights", "INDEX"], "bare.safetensors.index.json: weight_map lists no tensors"),
    (["RUN", "-o", "NEW", "--sound-rate", "0"], "resample to 0 Hz"),
    (["RUN", "-o", "NEW", "--sound-channels", "0"], "0 channels"),
    (["RUN", "-o", "NEW", "--max-context", "64"], "--max-context: does not apply to --engine onnxruntime"),
    (["RUN", "-o", "NEW", "--target", "sm89"], "--target: does not apply to --engine onnxruntime"),
    (["RUN", "-o", "FULL"], "exists already and is not an empty folder"),
    (["RUN", "-o", "FILE"], "exists already and is not an empty folder"),
    (["RUN", "-o", "BELOW"], "cannot write here"),
    (["RUN", "-o", "NEW", "--engine", "tensorrt", "--target", "sm89"], "TensorRT builds for the GPU that it sees"),
    (["RUN", "-o", "NEW", "--engine", "tensorrt-rtx", "--max-context", "0"], "--max-context 0"),
    (["RUN", "-o", "NEW", "--engine", "tensorrt-rtx", "--max-context", "999999999"], "this model's limit"),
    (["BUNDLE", "-o", "NEW", "--engine", "tensorrt-rtx", "--step", "0"], "--step: "),
    (["BUNDLE", "-o", "FULL", "--engine", "tensorrt-rtx", "--target", "sm89"], "exists already"),
    (["RUN", "-o", "NEW", "--engine", "huggingface", "--precision", "int8"], "precision = 'int8': choose fp32, bf16"),
    (["RUN", "-o", "NEW", "--engine", "tensorrt-llm", "--prefill", "int8"], "--prefill: does not apply"),
]


def test_a_slip_is_told_without_loading_torch(places: Callable[[str], str]) -> None:
    import json

    commands = [[places(word) for word in words] for words, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS], input=json.dumps(commands), capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(CASES)
    for (words, piece), (error, loaded) in zip(CASES, told, strict=True):
        assert error.startswith("ualm: ") and error.count("\n") == 1 and piece in error, (words, error)
        assert loaded == [], words


def test_what_is_right_is_not_refused(tiny_run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    request = ExportRequest(tiny_run.folder, tmp_path / "new" / "bundle")
    for engine in TARGETS:
        check_request(request, engine)
    check_request(dataclasses.replace(request, run=tiny_bundle, output=tiny_bundle), "tensorrt")
    assert not (tmp_path / "new").exists()


def test_every_target_says_what_it_takes() -> None:
    assert set(TAKES) == set(TARGETS)
    assert {name for taken in TAKES.values() for name in taken} <= {
        field.name for field in dataclasses.fields(ExportRequest)
    }


def test_a_folder_that_may_not_be_written_is_told(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ualm.export.arguments.os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot write here") as refused:
        check_request(ExportRequest(tiny_run.folder, tmp_path / "bundle"), "onnxruntime")
    assert isinstance(refused.value, UalmError)
