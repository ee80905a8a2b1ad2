"""The ``ualm`` command: results on standard output, errors as one line on standard error with exit status 1."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from support.runs import make_run
from support.told import but_cut
from ualm.export.bundle import export_run
from ualm.runtime import Answer, EngineError, Model, __version__
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.quality import GATES, Gate
from ualm.runtime.cli import main as cli

Command = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def generate(ualm: Command, tiny_bundle: Path, tmp_path: Path) -> Command:
    """``ualm generate`` into ``tmp_path / "a.wav"``, short."""

    def run(
        *arguments: object, text: str = "rain", output: Path = tmp_path / "a.wav", bundle: Path = tiny_bundle
    ) -> Any:
        return ualm("generate", text, "-o", output, "-b", bundle, "--threads", 1, "--max-seconds", 0.05, *arguments)

    return run


def assert_refused(result: tuple[int, str, str], *pieces: object) -> None:
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("ualm: ") and err.endswith("\n") and err.count("\n") == 1
    for piece in pieces:
        assert str(piece) in err


def no_model(*arguments: Any, **options: Any) -> Any:
    pytest.fail("the model was loaded")


# ---- generate ----


def test_generate_writes_a_float_wav_of_the_printed_duration(generate, tmp_path):
    status, out, err = generate()
    assert (status, err) == (0, "")
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "FLOAT", 16000, 1)
    assert out.startswith(f"{tmp_path / 'a.wav'}: {info.frames / 16000:.2f} s in ") and out.count("\n") == 1
    assert 0 < info.frames <= 0.05 * 16000


def test_generate_gives_one_json_object(generate, tmp_path):
    status, out, err = generate("--json", "--seed", 5)
    assert (status, but_cut(err), out.count("\n")) == (0, "", 1)
    report = json.loads(out)
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert report["output"] == str(tmp_path / "a.wav")
    assert (report["sample_rate"], report["seed"], report["gain"]) == (rate, 5, 1.0)
    assert report["seconds"] == round(len(samples) / rate, 3)
    assert report["peak"] == pytest.approx(np.abs(samples).max(), abs=1e-4)
    assert report["frames"] == len(samples) // 10


def test_equal_seeds_give_equal_files_and_others_do_not(generate, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert generate("--seed", seed, output=tmp_path / f"{name}.wav")[0] == 0
    files = [(tmp_path / f"{name}.wav").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_options_reach_the_model(generate, tiny_bundle, tmp_path):
    options = {"guidance": 1.5, "temperature": 0.3, "top_k": 3, "seed": 9}
    flags = [piece for name, value in options.items() for piece in (f"--{name.replace('_', '-')}", value)]
    assert generate(*flags)[0] == 0
    with Model.open(tiny_bundle, threads=1) as model:
        expected = model.generate("rain", max_steps=80 + 7, **options)  # 0.05 s in frames of 10 samples
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], expected.samples)


def test_the_bundle_may_come_from_the_environment(ualm, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("UALM_BUNDLE", str(tiny_bundle))
    assert ualm("generate", "rain", "-o", tmp_path / "a.wav", "--threads", 1, "--max-seconds", 0.01)[0] == 0


@pytest.fixture(scope="module")
def loud_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose sounds go far beyond full scale."""
    folder = tmp_path_factory.mktemp("loud")
    run = make_run(folder / "run")
    saved = torch.load(run.checkpoint, weights_only=True)
    saved["module"]["multimodal_io_dict.discrete_audio.codec_model.acoustic_decoder.conv2.weight"] *= 16
    torch.save(saved, run.checkpoint)
    return export_run(run.folder, folder / "bundle").bundle


def test_pcm16_scales_a_loud_sound_and_never_clips_it(generate, loud_bundle, tmp_path):
    assert generate(bundle=loud_bundle, output=tmp_path / "float.wav")[0] == 0
    status, out, _ = generate("--pcm16", "--json", bundle=loud_bundle)
    assert status == 0
    floats = soundfile.read(tmp_path / "float.wav", dtype="float64")[0]
    steps = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    report = json.loads(out)
    assert np.abs(floats).max() > 1.5 and report["gain"] < 0.7
    # half a step of rounding
    np.testing.assert_allclose(steps / 32768, report["gain"] * floats, atol=0.501 / 32768)
    assert "scaled by" in generate("--pcm16", bundle=loud_bundle)[1]


@pytest.mark.parametrize(
    ("output", "pieces"),
    [
        ("none/a.wav", ["none/a.wav", "the folder", "does not exist; create it"]),
        ("a.m4a", ["a.m4a", "cannot write .m4a", ".wav, .flac, .mp3"]),
        ("a", ["cannot write a name without extension", ".wav, .flac"]),
        ("folder.wav", ["folder.wav", "is a folder"]),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    generate, tmp_path, monkeypatch, output, pieces
):
    (tmp_path / "folder.wav").mkdir()
    monkeypatch.setattr(Model, "open", no_model)
    assert_refused(generate(output=tmp_path / output), *pieces)


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["--max-seconds", "0"], ["--max-seconds 0", "one frame"]),
        (["--max-seconds", "nan"], ["--max-seconds nan", "one frame"]),
        (["--max-seconds", "inf"], ["--max-seconds inf", "one frame"]),
        (["--max-seconds", "1e308"], ["--max-seconds 1e+308", "and less than"]),
        (["--max-seconds", "1e12"], ["--max-seconds 1e+12", "16384 are reserved", "--max-context"]),
        (["--temperature", "-1"], ["temperature = -1.0", "from 0"]),
        (["--temperature", "nan"], ["temperature = nan"]),
        (["--top-k", "0"], ["top_k = 0"]),
        (["--guidance", "0.5"], ["guidance = 0.5"]),
        (["--seed", "-1"], ["seed = -1"]),
        (["--seed", str(2**64)], [f"seed = {2**64}"]),
        (["--threads", "0"], ["--threads 0"]),
        (["--max-context", "0"], ["max_context = 0"]),
        (["--max-context", "12"], ["--max-seconds 0.05", "12 are reserved"]),
        (["--max-context", "9", "--max-seconds", "0.001"], ["max_context = 9", "shorten the input"]),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_one_line_and_leaves_no_file(generate, tmp_path, arguments, pieces):
    assert_refused(generate(*arguments), *pieces)
    assert not list(tmp_path.glob("*.wav"))


@pytest.mark.parametrize(("text", "piece"), [("", "text is empty"), ("rain \udcff", r"not valid UTF-8 (character 5")])
def test_a_text_that_is_none_is_one_line(generate, text, piece):
    assert_refused(generate(text=text), piece)


def test_a_missing_or_damaged_bundle_is_one_line(ualm, generate, tiny_bundle, tmp_path):
    assert_refused(generate(bundle=tmp_path / "none"), tmp_path / "none", "ualm export RUN")
    assert_refused(ualm("generate", "rain", "-o", tmp_path / "a.wav"), "no bundle given", "--bundle", "UALM_BUNDLE")
    (tmp_path / "cut").mkdir()
    for file in tiny_bundle.iterdir():
        os.link(file, tmp_path / "cut" / file.name)
    (tmp_path / "cut" / "codec.onnx").unlink()
    assert_refused(generate(bundle=tmp_path / "cut"), tmp_path / "cut" / "codec.onnx", "missing")


def test_an_error_of_several_lines_becomes_one(generate, monkeypatch):
    def fail(*arguments: Any, **options: Any) -> Any:
        raise EngineError("part backbone: failed (first\nsecond)")

    monkeypatch.setattr(Model, "generate", fail)
    assert_refused(generate(), "failed (first second)")


def test_ctrl_c_says_nothing_and_leaves_no_file(generate, tmp_path, monkeypatch):
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "generate", interrupt)
    assert generate() == (130, "", "")
    assert not list(tmp_path.glob("*.wav"))


# ---- ask ----


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    soundfile.write(tmp_path / "heard.wav", samples, 16000)
    return tmp_path / "heard.wav"


def test_ask_prints_the_answer(ualm, tiny_bundle, sound):
    arguments = ("ask", sound, "What is it?", "-b", tiny_bundle, "--threads", 1, "--max-tokens", 5)
    with Model.open(tiny_bundle, threads=1) as model:
        expected = model.ask(sound, "What is it?", max_steps=5)
    status, out, err = ualm(*arguments, "--json")
    assert (status, but_cut(err), out.count("\n")) == (0, "", 1)
    assert (json.loads(out)["answer"], json.loads(out)["finish"]) == (expected, expected.finish)
    status, out, err = ualm(*arguments)
    assert (status, out, but_cut(err)) == (0, expected + "\n", "")


@pytest.mark.parametrize(
    ("content", "pieces"),
    [(None, ["no such file"]), (b"", ["empty (0 bytes)"]), (b"text", ["not a sound file"])],
    ids=["missing", "empty", "text"],
)
def test_ask_about_a_file_that_is_no_sound_is_one_line(ualm, tiny_bundle, tmp_path, content, pieces):
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    result = ualm("ask", tmp_path / "a.wav", "What is it?", "-b", tiny_bundle, "--threads", 1)
    assert_refused(result, tmp_path / "a.wav", *pieces)


def test_an_answer_that_the_terminal_has_no_letters_for_is_printed_all_the_same(tiny_bundle, sound, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    monkeypatch.setattr(sys, "argv", ["ualm", "ask", str(sound), "What?", "-b", str(tiny_bundle), "--threads", "1"])
    monkeypatch.setattr(Model, "ask", lambda *arguments, **options: Answer("a café 🐕"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, raw.getvalue()) == (0, b"a caf\\xe9 \\U0001f415\n")


# ---- export ----


def test_export_reports_bytes_and_seconds_as_json(ualm, tiny_run, tmp_path):
    status, out, err = ualm("export", tiny_run.folder, "-o", tmp_path / "bundle", "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    report = json.loads(out)
    assert report["bundle"] == str(tmp_path / "bundle") and report["config"] == str(tiny_run.train_yaml)
    assert report["bytes"] == {path.name: path.stat().st_size for path in (tmp_path / "bundle").iterdir()}
    assert sum(report["seconds"].values()) > 0
    Bundle(tmp_path / "bundle", verify="always")


def test_export_prints_what_it_made(ualm, tiny_run, tmp_path, monkeypatch):
    status, out, err = ualm("export", tiny_run.folder, "-o", tmp_path / "bundle")
    assert (status, err) == (0, "")
    for name in ("weights.safetensors", "KiB", "write", f"{tmp_path / 'bundle'}: exported"):
        assert name in out
    lines = out.splitlines()
    quality = Bundle(tmp_path / "bundle").manifest.quality
    judged = [re.split(" {2,}", line.strip()) for line in lines[lines.index("agreement with fp32") + 1 : -1]]
    assert len(judged) == 6 and all(line[-1] == "met" for line in judged)
    told = [" ".join(line) for line in judged]
    assert told[1] == f"sound: KL in nats {quality['audio']['kl']:.6g} at most 1e-07 met"
    assert told[5] == f"samples: SNR in dB {quality['pcm']['snr_db']:.6g} at least 80 met"
    end = rf".*: exported, [\d.]+ [KM]iB in [\d.]+ s; next: (ualm generate .* -b {re.escape(str(tmp_path / 'bundle'))})"
    following = re.fullmatch(end, lines[-1])
    assert following is not None
    monkeypatch.chdir(tmp_path)
    assert ualm(*shlex.split(following[1])[1:], "--max-seconds", 0.01)[0] == 0 and (tmp_path / "rain.wav").exists()


def test_export_says_which_gate_was_missed(ualm, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(GATES, "fp32", Gate(top1=1.01, audio_kl=1e-7, text_kl=1e-7))
    status, out, err = ualm("export", tiny_run.folder, "-o", tmp_path / "bundle", "--accept-quality")
    assert (status, err) == (0, "") and "BELOW ITS GATES, accepted as it is" in out
    verdicts = [line.rsplit("  ", 1)[-1] for line in out.splitlines() if "likeliest" in line or "KL" in line]
    assert verdicts == ["MISSED", "met", "MISSED", "met"]
    told = json.loads(ualm("inspect", tmp_path / "bundle", "--json")[1])["verdicts"]
    assert [each["met"] for each in told] == [False, True, False, True, True, True]


def test_export_puts_a_resampler_behind_the_codec(ualm, tiny_run, tmp_path):
    arguments = ("export", tiny_run.folder, "-o", tmp_path / "bundle")
    assert ualm(*arguments, "--sound-rate", 48000, "--sound-channels", 2)[0] == 0
    assert ualm("generate", "rain", "-o", tmp_path / "a.wav", "-b", tmp_path / "bundle", "--max-seconds", 0.01)[0] == 0
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels) == (48000, 2)
    assert_refused(ualm(*arguments[:3], tmp_path / "b", "--sound-rate", 0), "resample to 0 Hz")
    assert not (tmp_path / "b").exists()


def test_export_errors_are_one_line(ualm, tiny_run, tmp_path):
    assert_refused(ualm("export", tiny_run.folder), "--output")
    assert_refused(ualm("export", "-o", tmp_path / "bundle"), "no training run given")
    assert_refused(ualm("export", tmp_path / "none", "-o", tmp_path / "bundle"), tmp_path / "none", "no such folder")
    assert_refused(ualm("export", tiny_run.folder, "-o", tiny_run.folder), tiny_run.folder, "exists already")
    assert_refused(ualm("export", tiny_run.folder, "-o", tmp_path / "bundle", "--precision", "fp4"), "'fp4'")
    assert not (tmp_path / "bundle").exists()


def test_export_says_what_to_install_where_its_libraries_are_missing(ualm, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ualm.export.targets.bundle", None)
    assert_refused(ualm("export", tiny_run.folder, "-o", tmp_path / "bundle"), 'pip install ".[export]"')


# ---- the command itself ----


def test_help_names_the_extra_that_export_needs(ualm):
    assert 'pip install ".[export]"' in " ".join(ualm("export", "--help")[1].split())


def test_a_sound_longer_than_the_context_is_refused_before_it_is_made(ualm, tiny_bundle, tmp_path):
    arguments = ("generate", "rain", "-o", tmp_path / "a.wav", "-b", tiny_bundle, "--max-context", 64)
    assert_refused(ualm(*arguments, "--max-seconds", 10), "--max-seconds 10", "64 are reserved", "--max-context")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_result_that_cannot_be_printed_is_one_line(tiny_bundle):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ualm.runtime.cli", "inspect", tiny_bundle]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode != 0
    assert "standard output" in done.stderr and "Traceback" not in done.stderr


def test_version(ualm):
    assert ualm("--version") == (0, f"ualm {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["generate"], ["sing"], ["generate", "rain", "-o", "a.wav", "--seed", "x"]])
def test_a_usage_error_has_status_2(ualm, arguments):
    status, out, err = ualm(*arguments)
    assert (status, out) == (2, "") and "Usage" in err


@pytest.fixture
def process(tiny_bundle: Path, tmp_path: Path) -> Iterator[Command]:
    """The command as a separate process."""

    def run(*arguments: str | bytes | Path) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "ualm.runtime.cli", *arguments]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=120)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    yield run


def test_as_a_process_it_writes_a_sound_and_loads_no_export_library(process, tiny_bundle, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    arguments = (
        "generate",
        "rain",
        "-o",
        "a.wav",
        "-b",
        tiny_bundle,
        "--max-seconds",
        "0.05",
        "--threads",
        "1",
        "--json",
    )
    status, out, err = process(*arguments)
    assert (status, err) == (0, "")
    assert json.loads(out)["seconds"] == round(soundfile.info(tmp_path / "a.wav").duration, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are bytes")
def test_as_a_process_bytes_that_are_no_utf8_are_one_line_and_no_traceback(process, tiny_bundle, tmp_path):
    result = process("generate", b"rain \xff", "-o", "a.wav", "-b", tiny_bundle)
    assert_refused(result, "not valid UTF-8")
    assert not (tmp_path / "a.wav").exists()


def test_ask_takes_a_guidance_scale(ualm, tiny_bundle, sound):
    arguments = ("ask", sound, "What?", "-b", tiny_bundle, "--threads", 1, "--max-tokens", 12, "--json")
    plain, guided = (json.loads(ualm(*arguments, "--guidance", scale)[1])["answer"] for scale in (1, 8))
    assert plain != guided


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_chat_that_nobody_reads_ends_at_once(tiny_bundle):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ualm.runtime.cli", "chat", "-b", tiny_bundle]
        command += ["--modality", "text", "--max-tokens", "3", "--threads", "1"]
        done = subprocess.run(
            command, input="one\ntwo\nthree\n", stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode != 0
    assert done.stderr.count("standard output") == 1 and "Traceback" not in done.stderr
