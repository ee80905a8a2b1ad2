"""Calibration rounds a matrix according to its inputs."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ualm.bench.random_run.run import SHAPES, write_random_run
from ualm.export.bundle import export_run
from ualm.export.formats.blocks import LIMITS, dequantize, quantize
from ualm.export.quality import calibration_set
from ualm.export.quality.calibration_set import QUESTION, CalibrationSet
from ualm.export.quality.gptq import gptq
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.entries import Calibration
from ualm.runtime.cli.verbs.inspect import describe
from ualm.runtime.diagnostics.golden import check_golden
from ualm.runtime.engines.registry import open_engine
from ualm.runtime.errors import ExportError
from ualm.runtime.sound.sound import Sound


def correlated_rows(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """Activations as in real layers: few directions, some inputs much larger than others."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, inputs // 8)) @ random.standard_normal((inputs // 8, inputs))
    loudness = np.exp(random.standard_normal(inputs))
    return torch.from_numpy(((mixed + 0.2 * random.standard_normal((rows, inputs))) * loudness).astype(np.float32))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_products_change_less_than_by_rounding_to_the_nearest(dtype: str) -> None:
    random = np.random.default_rng(1)
    matrix = random.standard_normal((128, 48)).astype(np.float32)
    seen, held = correlated_rows(2000, 128), correlated_rows(2000, 128, seed=0)[1000:]

    def error(whole: np.ndarray, scales: np.ndarray) -> float:
        change = dequantize(whole, scales).astype(np.float64) - matrix
        return float(np.square(held.numpy() @ change).sum())

    ours, nearest = error(*gptq(matrix, seen[:1000], dtype)), error(*quantize(matrix, dtype))
    assert ours < 0.5 * nearest
    whole, scales = gptq(matrix, seen, dtype)
    assert LIMITS[dtype][0] <= whole.min() and whole.max() <= LIMITS[dtype][1] and scales.dtype == np.float16


def test_without_correlation_it_rounds_each_input_by_itself() -> None:
    """Second moments that are a multiple of the identity: no error can be compensated elsewhere."""
    matrix = np.random.default_rng(2).standard_normal((64, 8)).astype(np.float32)
    x = torch.eye(64).repeat(4, 1)
    for found, expected in zip(gptq(matrix, x, "int4"), quantize(matrix, "int4"), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_inputs_that_never_speak_and_too_few_rows_are_no_trouble() -> None:
    matrix = np.random.default_rng(3).standard_normal((64, 8)).astype(np.float32)
    x = correlated_rows(3, 64)
    x[:, 10:20] = 0
    whole, scales = gptq(matrix, x, "int4")
    assert np.isfinite(scales).all()
    assert np.abs(dequantize(whole, scales) - matrix).max() < 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks") / "run"
    write_random_run(folder, SHAPES["tiny"])
    return folder


def test_an_export_is_calibrated_on_prompts_and_sounds(run: Path, tmp_path: Path) -> None:
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "prompts.txt").write_text("wind in dry leaves\n\na bell\n", encoding="utf-8")
    noise = np.random.default_rng(0).standard_normal(4800).astype(np.float32)
    Sound(0.1 * noise, 16000).save(examples / "noise.wav")
    told: list[tuple[str, int, int]] = []
    made = export_run(
        run,
        tmp_path / "bundle",
        precision="int4",
        calibration=examples,
        accept_quality=True,
        progress=lambda *step: told.append(step),
    )
    plain = export_run(run, tmp_path / "plain", precision="int4", accept_quality=True)
    assert [step for step in told if step[0] == "calibrate"][-1] == ("calibrate", 16, 16)
    assert made.seconds["calibrate"] > 0 and "calibrate" not in plain.seconds
    ours, theirs = Bundle(made.bundle, verify="always"), Bundle(plain.bundle)
    # only the folder's name: a bundle is copied elsewhere
    assert ours.manifest.calibration == Calibration("examples", prompts=2, sounds=1)
    assert describe(ours)["calibration"] == {"source": "examples", "prompts": 2, "sounds": 1}
    assert theirs.manifest.calibration is None
    for name in ("backbone.3.down", "null.keys"):
        assert not np.array_equal(ours.table(name), theirs.table(name))
    np.testing.assert_array_equal(ours.table("head.audio"), theirs.table("head.audio"))
    # the null branch and the golden vector are those of the current weights
    engine = open_engine(None, ours, threads=1, max_context=128)
    assert all(check.passed for check in check_golden(ours, engine))
    engine.close()


def test_a_set_is_a_text_a_sound_or_a_folder(tmp_path: Path) -> None:
    text, sound = tmp_path / "a.txt", tmp_path / "b.wav"
    text.write_text("one\n  two \n")
    Sound(np.zeros(1600, np.float32), 16000).save(sound)
    assert CalibrationSet.read(text).conversations == [[("user", "one")], [("user", "two")]]
    (heard,) = CalibrationSet.read(sound).conversations
    assert heard[1] == ("user", QUESTION) and isinstance(heard[0][1], Sound)
    assert len(CalibrationSet.read(tmp_path).conversations) == 3


def zeros(path: Path, frames: int, channels: int) -> Path:
    with soundfile.SoundFile(path, "w", 16000, channels, format="FLAC", subtype="PCM_16") as out:
        for _ in range(frames // 100_000):
            out.write(np.zeros((100_000, channels), np.int16))
    return path


def test_a_small_file_that_unfolds_to_much_calibrates_nothing(tmp_path: Path) -> None:
    """Zeros that take 700 MB as floats."""
    file = zeros(tmp_path / "zeros.flac", 22_000_000, 8)
    assert file.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(ExportError, match=r"zeros\.flac: 8 channels at 16000 Hz take more than 448 MiB"):
            CalibrationSet.read(file)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_all_sounds_of_a_set_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_set, "MOST_SOUND_BYTES", 2 << 20)
    for name in "abcd":  # 0.8 MB as floats, half of it heard
        zeros(tmp_path / f"{name}.flac", 100_000, 2)
    found = CalibrationSet.read(tmp_path)
    assert [sound.samples.shape for sound in (messages[0][1] for messages in found.conversations)] == [(100_000,)] * 4
    for name in "ef":
        zeros(tmp_path / f"{name}.flac", 100_000, 2)
    with pytest.raises(ExportError, match=r"e.flac: 2 channels .* take more than .*all sounds together may take 2 MiB"):
        CalibrationSet.read(tmp_path)


def test_more_prompts_than_calibration_takes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("rain\n" * (calibration_set.MOST_EXAMPLES + 1))
    with pytest.raises(ExportError, match="more than 10000 prompts and sounds"):
        CalibrationSet.read(tmp_path / "a.txt")


def test_bad_sets_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("rain")
    (tmp_path / "mixed" / ".DS_Store").write_bytes(b"")
    (tmp_path / "mixed" / "notes.md").write_text("neither a prompt nor a sound")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    for name, message in (
        ("none", "no such file or folder"),
        ("empty", "holds no prompt and no sound"),
        ("x.png", "neither a text"),
        ("mixed", "notes.md: neither a text"),
        ("latin.txt", "UTF-8"),
        ("broken.wav", "broken.wav"),
    ):
        with pytest.raises(ExportError, match=message) as refused:
            CalibrationSet.read(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)
    with pytest.raises(ExportError, match="it is for int8, int4 and fp8, not for fp16"):
        export_run(run, tmp_path / "bundle", precision="fp16", calibration=tmp_path / "latin.txt")
    assert not (tmp_path / "bundle").exists()
