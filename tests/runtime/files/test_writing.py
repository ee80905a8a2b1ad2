"""Files and folders appear complete or not at all, and a failure leaves everything unchanged."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ualm.runtime import Sound
from ualm.runtime.errors import InputError, OutputError
from ualm.runtime.files.writing import check_place, replacing_file, replacing_folder, resolved


def content(folder: Path) -> dict[str, str | None]:
    """Every path below a folder, with the text of files."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, InputError, MemoryError, SystemExit])
def test_a_failing_block_leaves_an_existing_file_as_it_was(tmp_path, error):
    (tmp_path / "a.wav").write_text("old")
    with pytest.raises(error), replacing_file(tmp_path / "a.wav") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".wav" and temporary != tmp_path / "a.wav"
        temporary.write_text("half")
        raise error
    assert content(tmp_path) == {"a.wav": "old"}


def test_a_file_is_replaced_with_the_users_usual_permissions(tmp_path, umask):
    (tmp_path / "a.txt").write_text("old")
    with replacing_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert content(tmp_path) == {"a.txt": "new"}
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("target", ["none/a.wav", "file/a.wav"])
def test_a_file_in_no_folder_is_refused(tmp_path, target):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose a writable folder") as caught, replacing_file(tmp_path / target):
        pytest.fail("the block must not run")
    assert str(tmp_path / target) in str(caught.value)
    assert content(tmp_path) == {"file": "mine"}


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(OutputError, match="nothing was left behind"), replacing_file(tmp_path / "a.wav") as temporary:
        temporary.write_text("new")
    assert content(tmp_path) == {"a.wav": None}


def test_an_error_of_the_system_is_told_with_the_files_name(tmp_path):
    with pytest.raises(OutputError) as caught, replacing_file(tmp_path / "a.wav"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert str(tmp_path / "a.wav") in str(caught.value) and "Disk quota exceeded" in str(caught.value)
    assert not content(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("target", ["bundle", "a/b/bundle"])
def test_a_failing_block_leaves_no_folder(tmp_path, error, target):
    raised = OutputError if error is OSError else error
    with pytest.raises(raised), replacing_folder(tmp_path / target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("half")
        raise error
    assert not content(tmp_path)


def test_a_failing_block_leaves_folders_that_were_there(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "a" / "b" / "bundle"):
        raise RuntimeError
    assert content(tmp_path) == {"a": None}


def test_a_folder_appears_whole_with_the_users_usual_permissions(tmp_path, umask):
    with replacing_folder(tmp_path / "a" / "bundle") as temporary:
        (temporary / "file").write_text("new")
        assert not (tmp_path / "a" / "bundle").exists()
    assert content(tmp_path) == {"a": None, "a/bundle": None, "a/bundle/file": "new"}
    assert stat.S_IMODE((tmp_path / "a" / "bundle").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "a" / "bundle" / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("there", ["file", "full folder"])
def test_what_is_there_already_is_not_touched(tmp_path, there):
    target = tmp_path / "bundle"
    if there == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(OutputError, match="exists already") as caught, replacing_folder(target):
        pytest.fail("the block must not run")
    assert str(target) in str(caught.value) and "remove it" in str(caught.value)
    assert content(tmp_path) == before


def test_a_folder_that_fills_while_the_block_runs_is_kept(tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputError, match="not written"), replacing_folder(tmp_path / "bundle") as temporary:
        (temporary / "ours").write_text("new")
        (tmp_path / "bundle" / "theirs").write_text("theirs")
    assert content(tmp_path) == {"bundle": None, "bundle/theirs": "theirs"}


def test_the_current_folder_is_not_replaced_under_ones_feet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is the current folder; name a folder"), replacing_folder("."):
        pytest.fail("the block must not run")
    assert not content(tmp_path)


@pytest.mark.parametrize("target", ["x" * 300, "x" * 300 + "/bundle"])
def test_a_name_that_the_file_system_cannot_hold_is_refused(tmp_path, target):
    with pytest.raises(OutputError, match="File name too long"), replacing_folder(tmp_path / target):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="File name too long"), replacing_file(tmp_path / f"{target}.wav"):
        pytest.fail("the block must not run")
    assert not content(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if sys.platform != "linux":
        pytest.skip("mounts a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_sound_that_does_not_fit_on_the_disk_leaves_the_old_file(small_disk, name):
    noise = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    target = small_disk / name
    Sound(noise[:100], 16000).save(target)
    before = target.read_bytes()
    for _ in range(3):  # space not freed after a failure would show
        with pytest.raises(OutputError, match="No space left") as caught:
            Sound(np.concatenate([noise] * 3), 16000).save(target)
        assert str(target) in str(caught.value) and "nothing was left behind" in str(caught.value)
        assert [path.name for path in small_disk.iterdir()] == [name]
        assert target.read_bytes() == before
    Sound(noise[:9000], 16000).save(target)
    assert Sound.from_file(target).duration == 9000 / 16000


def test_a_folder_on_a_read_only_disk_is_refused(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for target in ("bundle", "a/b/bundle"):
        with pytest.raises(OutputError, match="Read-only") as caught, replacing_folder(small_disk / target):
            pytest.fail("the block must not run")
        assert str(small_disk / target) in str(caught.value) and "choose a writable folder" in str(caught.value)


# ---- what a killed process leaves ----

HOLD = """
import sys
from ualm.runtime.files.writing import replacing_file, replacing_folder
write = replacing_folder if sys.argv[1] == "folder" else replacing_file
with write(sys.argv[2]) as temporary:
    (temporary / "half" if sys.argv[1] == "folder" else temporary).write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def held(kind: str, target: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing ``target``."""
    command = [sys.executable, "-c", HOLD, kind, str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def write(kind: str, target: Path) -> None:
    with (replacing_folder if kind == "folder" else replacing_file)(target) as temporary:
        (temporary / "file" if kind == "folder" else temporary).write_text("new")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
@pytest.mark.parametrize(("kind", "name"), [("file", "a.b.wav"), ("folder", "bundle"), ("folder", "bundle.v1 [x]")])
def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path, kind, name):
    (tmp_path / "other").mkdir()
    target = tmp_path / name
    killed, running = held(kind, target), held(kind, target)
    other = held(kind, tmp_path / f"other{name}")
    for process in (killed, other):
        process.kill()
        process.communicate()
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 3
    write(kind, target)
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(hidden) == 2 and sum(path.startswith(".other") for path in hidden) == 1  # of another name: not ours
    if kind == "folder":
        for path in target.iterdir():
            path.unlink()
    running.communicate("")
    assert running.returncode == 0
    assert content(tmp_path)[name if kind == "file" else f"{name}/half"] == "half"


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
def test_a_link_or_a_name_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.u1234567.wav").symlink_to(tmp_path / "mine")
    (tmp_path / ".a.1234567.wav").write_text("mine")
    (tmp_path / ".a.u123456g.wav").write_text("mine")
    before = content(tmp_path)
    write("file", tmp_path / "a.wav")
    assert content(tmp_path) == before | {"a.wav": "new"}


def test_a_name_as_long_as_a_file_system_takes_is_written(tmp_path):
    for name in ("x" * 251 + ".wav", "é" * 125 + ".wav"):
        with replacing_file(tmp_path / name) as temporary:
            assert temporary.suffix == ".wav"
            temporary.write_text("new")
        assert (tmp_path / name).read_text() == "new"
    assert len(content(tmp_path)) == 2


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for refused in (lambda: check_place(tmp_path / "pipe.wav"), replacing_file(tmp_path / "pipe.wav").__enter__):
        with pytest.raises(OutputError, match="is a device or a pipe; name a file"):
            refused()
    assert stat.S_ISFIFO((tmp_path / "pipe.wav").stat().st_mode)


def test_a_loop_of_links_leads_nowhere_and_raises_nothing(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert resolved(tmp_path / "loop") == tmp_path / "loop" and resolved(tmp_path / "a" / "..") == tmp_path


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for target in ("loop", "loop/bundle"):
        with pytest.raises(OutputError, match=r"loop|symbolic links"), replacing_folder(tmp_path / target):
            pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
