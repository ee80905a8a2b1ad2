"""The command as a process: closed or full streams, signals at any moment, and one line for every failure."""

from __future__ import annotations

import ast
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import ualm.bench
import ualm.export
import ualm.runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors and signals of Linux")

#: The command as installed by pip.
INSTALLED = Path(sysconfig.get_path("scripts")) / "ualm"
#: Standard output is buffered until it is flushed, whatever the environment of the tests says.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

Shell = Callable[..., "tuple[int, bytes, str]"]
#: A module that is interrupted while it is imported, and reacts as modules in C do.
INTERRUPTED = """
    import os, signal, time
    try:
        os.kill(os.getpid(), signal.{number})
        for _ in range(20):
            time.sleep(0.005)
    except BaseException as error:
        raise ImportError("initialization failed") from error
"""


@pytest.fixture
def shell(tiny_bundle: Path, tmp_path: Path) -> Shell:
    """Runs ``ualm ARGUMENTS REDIRECTIONS`` in a shell; returns status, standard output and standard error.

    ``module`` runs instead of the installed command.
    """

    def run(line: str, module: str | None = None, **variables: str) -> tuple[int, bytes, str]:
        command = [str(INSTALLED)] if module is None else [sys.executable, "-m", module]
        line = f"exec {shlex.join(command)} {line.replace('BUNDLE', shlex.quote(str(tiny_bundle)))}"
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **variables}
        done = subprocess.run(["sh", "-c", line], capture_output=True, cwd=tmp_path, env=environment, timeout=300)
        return done.returncode, done.stdout, done.stderr.decode()

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], tuple[int, str, str]]:
    """Runs lines of Python after the command has begun its work; returns status and output."""

    def run(lines: str) -> tuple[int, str, str]:
        code = "import os, signal, sys, time\nfrom ualm.runtime.process import stopping\n"
        code += "stopping.begin()\nstopping.work()\n"
        done = subprocess.run(
            [sys.executable, "-c", code + textwrap.dedent(lines)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=BUFFERED,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


# ---- streams ----


def test_what_is_said_with_standard_error_closed_is_nowhere_else(shell: Shell) -> None:
    line = "generate rain -o - -b BUNDLE --threads 1 --max-seconds 0.05 --guidance 1"
    status, samples, told = shell(line)
    assert status == 0 and "standard output: 0.0" in told and len(samples) % 4 == 0
    status, found, _ = shell(f"{line} 2>&-")
    assert (status, len(found)) == (0, len(samples))


def test_files_that_are_opened_take_no_standard_descriptor(tmp_path: Path) -> None:
    code = "from ualm.runtime.process import standard_streams as s; s.guard(); print(open('/dev/zero').fileno() > 2)"
    line = f'{shlex.quote(sys.executable)} -c "{code}" 0<&- 2>&-'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--version >/dev/full", "standard output: No space left on device; the result could not be printed"),
        ("inspect --help >&-", "standard output: is closed"),
        ("inspect BUNDLE --json >&-", "standard output: is closed"),
        ("generate rain -o - -b BUNDLE --max-seconds 0.05 >&-", "standard output: Bad file descriptor"),
        ("chat -b BUNDLE --json <&-", "standard input: is closed; your lines come from there"),
        ("chat -b BUNDLE 0>lines", "standard input: Bad file descriptor; it cannot be read"),
        ("reason --mode dialogue - -b BUNDLE <&-", "standard input: is closed"),
        (f"generate rain -o {'x' * 300}.wav -b BUNDLE", "File name too long"),
        (f"generate rain -o a.wav --plot {'x' * 300}.png -b BUNDLE", "File name too long"),
        (f"reason rain --trace {'x' * 300} -b BUNDLE", "File name too long"),
        (f"bench plan BUNDLE --device thor -o {'x' * 300}.json", "File name too long"),
    ],
)
def test_a_stream_or_a_name_that_cannot_be_used_is_one_line(shell: Shell, line: str, said: str) -> None:
    status, out, err = shell(line)
    assert (status, out, err.count("\n")) == (1, b"", 1)
    assert err.startswith("ualm: ") and said in err


def test_notices_that_nobody_can_read_cost_no_answer(shell: Shell) -> None:
    line = "chat -b BUNDLE --threads 1 --modality text --max-tokens 3 2>/dev/full"
    status, out, _ = shell(f"{line} <<'END'\n/seed 3\nrain\nEND")
    assert status == 0 and out


def test_chat_in_json_that_fails_says_so_on_standard_error(shell: Shell) -> None:
    status, out, err = shell("chat -b BUNDLE --threads 1 --json <<'END'\n/sound none.wav\n/dance\n/seed 3\nEND")
    assert (status, out.count(b'"type": "error"')) == (1, 2)
    assert err == "ualm: 2 lines failed; see the events of the type error\n"


def test_an_error_that_nobody_foresaw_is_one_line_and_whole_where_that_is_asked_for(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text("[][0]\n")
    status, out, err = shell("--version", PYTHONPATH=str(tmp_path))
    assert (status, out, err.count("\n")) == (1, b"", 1)
    assert (
        err.startswith("ualm: internal error") and "IndexError: list index out of range" in err and "typer.py:1" in err
    )
    assert "Traceback" in shell("--version", PYTHONPATH=str(tmp_path), UALM_TRACEBACK="1")[2]


# ---- signals ----


@pytest.mark.parametrize(
    ("number", "module", "line"),
    [
        # while the command itself is loaded, from the first foreign module on
        ("SIGINT", "typer", "--version"),
        ("SIGTERM", "numpy", "--version"),
        ("SIGHUP", "numpy", "--version"),
        # while an engine is loaded: it used to be reported as a missing library
        ("SIGINT", "onnxruntime", "generate rain -o a.wav -b BUNDLE"),
        ("SIGTERM", "onnxruntime", "doctor"),
    ],
)
def test_a_signal_during_an_import_ends_it_in_silence(
    shell: Shell, tmp_path: Path, number: str, module: str, line: str
) -> None:
    (tmp_path / "fakes").mkdir()
    (tmp_path / "fakes" / f"{module}.py").write_text(textwrap.dedent(INTERRUPTED.format(number=number)))
    for program in (None, "ualm.runtime.cli.main"):
        found = shell(line, program, PYTHONPATH=str(tmp_path / "fakes"))
        assert found == (128 + signal.Signals[number], b"", "")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["fakes"]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_that_strikes_while_a_failed_command_is_let_go_of_ends_it_in_silence(
    tmp_path: Path, number: str
) -> None:
    """The signal waits for the end of an import, which fails; millions of objects are freed with the error, which takes
    longer than the interval between two checks for the signal."""
    (tmp_path / "interrupted.py").write_text(textwrap.dedent(INTERRUPTED.format(number=number)) + "raise IndexError")
    (tmp_path / "failing.py").write_text(
        "def main():\n    held = [[] for _ in range(3_000_000)]\n    import interrupted\n    return held\n"
    )
    code = "from ualm.runtime.cli.command import run; run('failing')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=BUFFERED | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.Signals[number], "", "")


def test_the_other_programs_end_in_silence_too(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(textwrap.dedent(INTERRUPTED.format(number="SIGINT")))
    for module in ("ualm.bench.random_run", "ualm.export.tiny"):
        assert shell("--help", module=module, PYTHONPATH=str(tmp_path)) == (130, b"", "")


def test_a_signal_that_was_to_be_ignored_is(tmp_path: Path) -> None:
    code = "import os, signal; from ualm.runtime.process import stopping; stopping.begin()\n"
    code += "os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    done = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


def test_an_interrupt_that_a_destructor_swallows_comes_again(script: Callable[[str], tuple[int, str, str]]) -> None:
    found = script(
        """
        class Held:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                print("swallowed" if "x" else "")
        held = Held()
        try:
            del held
            time.sleep(60)
        finally:
            print("unwound", flush=True)
            stopping.rest()
        """
    )
    assert found == (130, "unwound\n", "")


@pytest.mark.parametrize("twice", [False, True])
def test_no_signal_cuts_the_removal_of_unfinished_work_short(
    script: Callable[[str], tuple[int, str, str]], tmp_path: Path, twice: bool
) -> None:
    found = script(
        f"""
        from ualm.runtime.files import writing as files
        remove = files.shutil.rmtree
        def removing(*arguments, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(120 if {twice} else 1):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            remove(*arguments, **options)
        files.shutil.rmtree = removing
        try:
            with files.replacing_folder("bundle") as folder:
                (folder / "weights").write_text("half")
                os.kill(os.getpid(), signal.SIGTERM) if {twice} else 1 / 0
            time.sleep(60)
        finally:
            stopping.rest()
        """
    )
    assert found == (143, "", "")
    assert not list(tmp_path.iterdir())


def test_the_second_signal_strikes_where_unwinding_takes_long(script: Callable[[str], tuple[int, str, str]]) -> None:
    found = script(
        """
        import threading
        def again():
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            threading.Thread(target=again, daemon=True).start()
            try:
                time.sleep(60)
            finally:
                stopping.rest()
        """
    )
    assert found == (130, "", "")


def test_what_was_printed_before_a_signal_reaches_its_reader(script: Callable[[str], tuple[int, str, str]]) -> None:
    found = script(
        """
        print("half of a table")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except SystemExit:
            stopping.rest()
        """
    )
    assert found == (143, "half of a table\n", "")


def test_a_reader_that_takes_nothing_does_not_keep_a_command_that_a_signal_ends() -> None:
    code = """
import os, signal, sys, time
from ualm.runtime.process import stopping
stopping.begin()
stopping.work()
os.set_blocking(1, False)
while sys.stdout.buffer.raw.write(b"x" * 4096) is not None:  # until the pipe is full
    pass
os.set_blocking(1, True)
sys.stdout.write("more")
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except SystemExit:
    stopping.rest()
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], env=BUFFERED, **pipes)
    try:
        assert process.wait(timeout=30) == 143
        assert process.stdout is not None and process.stderr is not None
        assert b"more" not in process.stdout.read() and process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()


#: Features of Linux that other systems lack on which ualm may be installed.
WINDOWS = """
import os, signal, sys
for name in ("SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGKILL", "setitimer", "ITIMER_REAL"):
    delattr(signal, name)
for name in ("sched_getaffinity", "sysconf", "getsid", "O_NONBLOCK", "O_NOFOLLOW"):
    delattr(os, name)
sys.modules |= dict.fromkeys(("fcntl", "resource", "termios", "pwd", "grp", "readline"))
"""


@pytest.mark.parametrize("waits", [False, True])
def test_a_system_without_hangups_and_timers_has_signals_all_the_same(tmp_path: Path, waits: bool) -> None:
    code = f"""{WINDOWS}
import time
from ualm.runtime.process import stopping
stopping.begin()
stopping.work()
@stopping.unbroken
def removing():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    print("removed")
try:
    removing() if {waits} else os.kill(os.getpid(), signal.SIGINT)
    for _ in range(6000):
        time.sleep(0.01)
except KeyboardInterrupt:
    print("unwound")
    stopping.rest()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "removed\n" * waits + "unwound\n", "")


def test_a_system_without_hangups_and_timers_loads_a_model_and_the_command(tiny_bundle: Path, tmp_path: Path) -> None:
    code = f"""{WINDOWS}
from ualm import Model
with Model.open({str(tiny_bundle)!r}, threads=1) as model:
    sound = model.generate("rain", max_seconds=0.05, guidance=1.0)
    sound.save("rain.wav")
sys.argv = ["ualm", "inspect", {str(tiny_bundle)!r}, "--json"]
from ualm.runtime.cli import command
command.main()
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("{") and (tmp_path / "rain.wav").is_file()


# ---- the entry point ----


def test_the_first_module_of_the_command_loads_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import ualm.runtime.cli.command; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300)
    loaded = set(done.stdout.split())
    assert "ualm.runtime.process.stopping" in loaded
    assert not loaded & {"typing", "re", "json", "importlib.metadata", "numpy", "typer", "ualm.runtime.errors"}


def test_the_installed_command_minds_signals_before_it_loads_anything() -> None:
    code = f"""
import os, sys
before = set(sys.modules)

class First:  # of what the command loads once it minds signals
    def find_spec(self, name, path, target=None):
        if name == "ualm.runtime.process.standard_streams":
            import signal
            print(signal.getsignal(signal.SIGINT).__module__, *set(sys.modules) - before, flush=True)
            os._exit(0)

sys.meta_path.insert(0, First())
sys.argv = ["ualm", "--version"]
exec(compile(open({str(INSTALLED)!r}).read(), "ualm", "exec"), {{"__name__": "__main__"}})
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300)
    handler, *loaded = done.stdout.split() or [done.stderr]
    assert handler == "ualm.runtime.process.stopping"
    assert {each for each in loaded if each.startswith("ualm")} == {
        *("ualm", "ualm.runtime", "ualm.runtime.cli", "ualm.runtime.cli.command"),
        *("ualm.runtime.process", "ualm.runtime.process.stopping"),
    }
    assert not set(loaded) & {"typing", "json", "importlib.metadata", "numpy", "typer"}


def test_every_name_of_the_runtime_is_there() -> None:
    assert sorted(set(ualm.runtime.__all__)) == sorted(ualm.runtime.__all__)
    for name in ualm.runtime.__all__:
        assert getattr(ualm.runtime, name) is not None
    assert ualm.runtime.Model.__module__ == "ualm.runtime.model"
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        _ = ualm.runtime.Modell  # type: ignore[attr-defined]


#: Programs whose parent reports for them, and which measure their own imports.
CHILDREN = {"child.py", "load_child.py", "tensorrt_build_child.py", "rtx_probe.py"}


def test_every_program_minds_signals_before_it_imports_anything() -> None:
    rooms = [Path(module.__file__ or "").parent for module in (ualm.runtime, ualm.export, ualm.bench)]
    programs = [path for room in rooms for path in room.rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(programs) > len(CHILDREN)
    for path in programs:
        if path.name in {*CHILDREN, "command.py"}:
            continue
        first = next(
            node
            for node in ast.parse(path.read_text()).body
            if not isinstance(node, ast.Expr) and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        )
        text = ast.unparse(first)
        assert "command" in text, f"{path}: begins with {text!r}, not with ualm.runtime.cli.command"
