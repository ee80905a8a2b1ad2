"""No more threads than cores: what a process may use, and refusals of more wherever they are requested."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ualm.bench.harness.subjects import Request
from ualm.export.tiny import __main__ as tiny
from ualm.runtime import InputError, Model
from ualm.runtime.diagnostics.machine import machine
from ualm.runtime.engines.onnxruntime.sessions import OnnxRuntimeParts
from ualm.runtime.process import cores

Command = Callable[..., tuple[int, str, str]]
#: One more than any machine has, a number that used to take gigabytes, and one that overflows the library's int.
TOO_MANY = (1000, 100_000, 2**31)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("threads", [3, *TOO_MANY])
def test_more_threads_than_cores_open_no_model(tiny_bundle: Path, threads: int) -> None:
    with pytest.raises(
        InputError, match=rf"threads = {threads}: this process may use [12] cores?, .* give at most [12]"
    ):
        Model.open(tiny_bundle, threads=threads)


def test_as_many_as_there_are_open_one(tiny_bundle: Path) -> None:
    Model.open(tiny_bundle, threads=cores.cores(), max_context=64).close()


@pytest.mark.parametrize("threads", TOO_MANY)
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "rain", "-o", "never.wav", "-b", "BUNDLE"),
        ("ask", "SOUND", "what?", "-b", "BUNDLE"),
        ("reason", "rain", "-o", "never.wav", "-b", "BUNDLE"),
        ("chat", "-b", "BUNDLE"),
        *(("bench", verb, "BUNDLE") for verb in ("decode", "prefill", "encode", "codec", "stream", "load")),
        ("bench", "gates", "BUNDLE", "--run", "RUN"),
        ("compare", "BUNDLE", "BUNDLE"),
    ],
    ids=" ".join,
)
def test_every_verb_refuses_them(
    ualm: Command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], threads: int
) -> None:
    from ualm.export.tiny.judging import examine

    monkeypatch.setattr("ualm.bench.gates.codes_of", lambda run: examine.codes_of(None))
    places = {"BUNDLE": tiny_bundle, "SOUND": Path(__file__), "RUN": "run"}
    status, out, err = ualm(*(places.get(word, word) for word in command), "--threads", threads)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert re.search(
        rf"^ualm: --threads {threads}: this process may use \d+ core.* or leave it out for all cores$", err
    )


def test_the_bench_names_its_option() -> None:
    with pytest.raises(InputError, match=r"^--threads 100000: .* or leave it out for all cores"):
        Request(Path("bundle"), threads=100_000)


def test_training_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tiny", "data", str(tmp_path / "work"), "--threads", "100000"])
    monkeypatch.setattr(tiny, "_run", lambda arguments: pytest.fail("it ran"))
    with pytest.raises(SystemExit, match="--threads 100000: this process may use"):
        tiny.main()


# ---- what a process may use ----


def groups(folder: Path, own: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """Linux's two places: which groups a process is in, and the groups' files."""
    (folder / "cgroup").write_text(own)
    for name, text in limits.items():
        (folder / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "fs" / name).write_text(text)
    return folder / "cgroup", folder / "fs"


@pytest.mark.parametrize(
    ("own", "limits", "most"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "550000 100000\n"}, 6),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 1),
        ("0::/of/the/host\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/a\n", {"a/cpu.max": "9900000 100000\n"}, 8),
        ("0::/a\n", {"a/cpu.max": "nonsense\n"}, 8),
        ("5:cpu,x:/a\n0::/\n", {"cpu,x/a/cpu.cfs_quota_us": "150000", "cpu,x/a/cpu.cfs_period_us": "100000\n"}, 2),
        ("5:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:cpuset:/a\n", {"cpuset/a/cpu.max": "100000 100000\n"}, 8),
    ],
)  # fmt: skip
def test_a_containers_share_counts_as_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, limits: dict[str, str], most: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, place in zip(("_OWN_GROUPS", "_GROUPS"), groups(tmp_path, own, limits), strict=True):
        monkeypatch.setattr(cores, name, place)
    assert cores.cores() == most


def test_a_model_and_doctor_keep_to_that_share(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, place in zip(
        ("_OWN_GROUPS", "_GROUPS"), groups(tmp_path, "0::/\n", {"cpu.max": "250000 100000\n"}), strict=True
    ):
        monkeypatch.setattr(cores, name, place)
    assert machine()["cores"] == 3
    for threads, taken in ((None, 3), (2, 2)):
        with Model.open(tiny_bundle, engine="onnxruntime", threads=threads, max_context=64) as model:
            engine = model.resources.engine
            assert isinstance(engine, OnnxRuntimeParts)
            assert {engine.session_options(role).intra_op_num_threads for role in model.bundle.manifest.parts} == {
                taken
            }


def test_where_nothing_narrows_it_the_library_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_OWN_GROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for allowed, taken in ((8, 0), (7, 7), (1, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, n=allowed: set(range(n)), raising=False)
        assert cores.library_threads() == taken


def test_where_no_group_is_told_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_OWN_GROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert cores.cores() == 3


def test_where_there_is_no_affinity_the_processors_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_OWN_GROUPS", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores.cores() == 6
