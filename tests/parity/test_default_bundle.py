"""Without a named bundle, the model that comes with ualm is used, and a notice says so."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

from support.choosing import choosing_what_it_can
from support.sounds import make_sound
from ualm.runtime import BundleError, InputError, Model
from ualm.runtime.bundle import packaged
from ualm.runtime.bundle.bundle import WEIGHTS
from ualm.runtime.cli import once as cli_once

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--threads", 1, "--max-seconds", 0.05)


@pytest.fixture
def within(clean_environment: None, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build of ualm that contains a model."""
    folder = tmp_path / "within" / "tiny"
    shutil.copytree(tiny_bundle, folder)
    monkeypatch.setattr(packaged, "PACKAGED", folder)
    return folder


@pytest.fixture
def able() -> Iterator[None]:
    with choosing_what_it_can():
        yield


def test_open_without_a_name(within):
    with Model.open(threads=1) as model:
        assert model.bundle.folder == within


NOTICE = "ualm: no bundle named, so the model that comes with ualm is used\n"


def test_every_verb_takes_it_and_says_so_at_a_terminal(ualm: Command, within, able, tmp_path, monkeypatch):
    heard = tmp_path / "heard.wav"
    soundfile.write(heard, make_sound(0.1).T, 16000)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    verbs = {
        "generate": ("rain", "-o", tmp_path / "a.wav", *SHORT),
        "ask": (heard, "what is it?", "--threads", 1, "--max-tokens", 4),
        "chat": (*SHORT, "--max-tokens", 4),
        "reason": ("rain", "--max-tokens", 4, *SHORT),
        "inspect": (),
        "bench plan": ("--device", "orin-nano"),
        "bench codec": ("--seconds", 0.1, "--repeat", 2, "--threads", 1),
    }
    monkeypatch.setattr("ualm.runtime.cli.options.first_in_this_shell", lambda: True)
    for verb, arguments in verbs.items():
        status, _, err = ualm(*verb.split(), *arguments)
        assert (status, err.count("no bundle named")) == (0, 0), (verb, err)
        for options, said in (((), 1), (("-q",), 0)):
            with monkeypatch.context() as patch:
                patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
                patch.setattr("sys.stdin", io.StringIO("hello\n"))
                status, _, err = ualm(*verb.split(), *arguments, *options)
            assert (status, err.count(NOTICE)) == (0, said), (verb, err)


def test_doctor_says_so_too(ualm: Command, within, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("ualm.runtime.cli.options.first_in_this_shell", lambda: True)
    assert [ualm("doctor", *options)[::2] for options in ((), ("-q",))] == [(0, NOTICE), (0, "")]


def test_a_shell_hears_it_once(ualm: Command, within, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    told = tmp_path / "cache" / "ualm" / "told.json"
    assert [ualm("inspect")[2] for _ in range(3)] == [NOTICE, "", ""]
    assert [each.name for each in told.parent.iterdir() if each.name != "verified"] == ["told.json"]
    monkeypatch.setattr("ualm.runtime.cli.once._shells", lambda: [[os.getpid(), cli_once._began(os.getpid())]])
    assert [ualm("inspect")[2] for _ in range(2)] == [NOTICE, ""]


def test_a_shell_is_the_one_of_the_session_or_the_parent_and_those_that_ended_are_forgotten(tmp_path, monkeypatch):
    if not Path("/proc/self/stat").exists():
        pytest.skip("the system does not report when a process began")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ended, shell = (subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in ("", "input()"))
    ended.wait()
    place = tmp_path / "ualm" / "told.json"
    place.parent.mkdir()
    place.write_text(json.dumps([[ended.pid, "1"], [os.getpid(), "0"], "odd", [1]]))
    try:
        for session, parent, first in ((shell.pid, os.getpid(), True), (shell.pid, 0, False), (0, os.getpid(), False)):
            monkeypatch.setattr(os, "getsid", lambda _, number=session: number)
            monkeypatch.setattr(os, "getppid", lambda number=parent: number)
            assert cli_once.first_in_this_shell() == first
        kept = json.loads(place.read_text())
        assert kept == [[each, cli_once._began(each)] for each in sorted((os.getpid(), shell.pid))]
    finally:
        shell.communicate(b"\n")
    monkeypatch.setattr(os, "getppid", lambda: 0)
    assert cli_once.first_in_this_shell(), "nothing to remember it by"


@pytest.mark.parametrize("damage", ["", "{", "[[1]]", "3", '[["a", "b"]]', "folder", "no place", "nobody"])
def test_remembering_never_fails(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = tmp_path / "ualm" / "told.json"
    if damage == "no place":
        place.parent.write_text("a file")
    elif damage == "nobody":
        monkeypatch.setattr(cli_once, "_began", lambda number: None)
    else:
        place.parent.mkdir()
        place.mkdir() if damage == "folder" else place.write_text(damage)
    assert cli_once.first_in_this_shell()
    if damage not in ("folder", "no place", "nobody"):
        assert not cli_once.first_in_this_shell()


def test_the_answer_on_standard_output_stays_clean(ualm: Command, within, tmp_path):
    status, out, _ = ualm("generate", "rain", "-o", tmp_path / "a.wav", "--json", *SHORT)
    assert status == 0 and json.loads(out)["output"] == str(tmp_path / "a.wav")


def test_a_bundle_that_is_named_goes_before(ualm: Command, within, tiny_bundle, monkeypatch):
    for arguments in ((), (tiny_bundle,)):
        if not arguments:
            monkeypatch.setenv("UALM_BUNDLE", str(tiny_bundle))
        status, out, err = ualm("inspect", *arguments, "--json")
        assert (status, err) == (0, "") and json.loads(out)["bundle"] == str(tiny_bundle)
        monkeypatch.delenv("UALM_BUNDLE", raising=False)


def test_doctor_examines_it(ualm: Command, within):
    status, out, _ = ualm("doctor", "--json")
    about = json.loads(out)
    assert status == 0 and about["bundle"]["folder"] == str(within) and about["bundle"]["hashes"] == "verified"


def test_its_hashes_are_checked_as_of_any_bundle(within):
    damaged = bytearray((within / WEIGHTS).read_bytes())
    damaged[-1] ^= 1
    (within / WEIGHTS).write_bytes(damaged)
    with pytest.raises(BundleError, match="SHA-256"):
        Model.open()


def test_a_build_without_one_says_so(ualm: Command, clean_environment, tmp_path):
    with pytest.raises(InputError, match="comes without a model"):
        Model.open()
    for verb in (("generate", "rain", "-o", tmp_path / "a.wav"), ("reason", "rain"), ("inspect",)):
        status, out, err = ualm(*verb)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "no bundle given" in err and "UALM_BUNDLE" in err and "comes without a model" in err
    status, out, _ = ualm("doctor", "--json")
    assert status == 0 and "bundle" not in json.loads(out)


def test_it_lies_where_the_wheel_takes_files_from():
    assert packaged.packaged_bundle() in (None, ROOT / "runtime" / "tiny")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a checkout")
    names = [
        f"runtime/tiny/{name}" for name in ("manifest.json", "weights.safetensors", "codec.onnx", "tokenizer.json")
    ]
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout == "", "the wheel leaves out what git ignores"
