"""Random command lines: a refusal is one line, a usage error is Typer's, and nothing else happens."""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import soundfile
import typer

from support.command_lines import CLOSED, FULL, GONE, Done, run_line
from support.fuzzing import LONGEST_MESSAGE, MOST_BYTES, run_cases
from support.sounds import make_sound
from ualm.runtime.cli import main as cli
from ualm.runtime.cli.verbs import bench as cli_bench
from ualm.runtime.sound.sound import Sound

pytestmark = pytest.mark.fuzz

#: Environment variables with the paths of a bundle and a run, for the harness's processes.
BUNDLE, RUN = "UALM_FUZZ_BUNDLE", "UALM_FUZZ_RUN"
NUMBERS = (
    "0", "1", "2", "-1", "3.7", "1e3", "nan", "inf", "-inf", "1e308", "9" * 25, "-" + "9" * 25, "2147483648", "0x10",
    "\uff11", "", " ", "1,2", ",", "1,x", "true", "None", "-0", "1e-9", "--", "\u0661",
)  # fmt: skip
WORDS = (
    "rain", "", " ", "-", "--", "audio", "text", "fp32", "int4", "first_sound", "wav", "raw", "markdown", "json",
    "enrich", "dialogue", "reflect", "onnxruntime", "tensorrt", "sm89", "a\nb", "\x1b[31mred\x1b[0m", "\u202eto left",
    "\ufeff", "🐕" * 40, "é" * 300, "x" * 3000, "%s %n {0} {}", "../..", "$(true)", "\udcff",
)  # fmt: skip
FILES = (
    "heard.wav", "none.wav", "empty.wav", "text.txt", "folder", "folder/new.wav", "none/new.wav", "text.txt/new.wav",
    "made.wav", "made.flac", "made.mp3", "made.ogg", "made.png", "made.json", "made", "x" * 250 + ".wav",
    "x" * 300 + ".wav", "é" * 130 + ".wav", "/dev/full", "/dev/null", "/proc/self/mem", ".", "..", "/", "", "-", "~",
    "a\nb.wav", "loop", "\udcff.wav",
)  # fmt: skip
LINES = (
    b"rain", b"", b"   ", b"/seed 3", b"/seed x", b"/seed " + b"9" * 30, b"/sound heard.wav", b"/sound none.wav",
    b"/sound folder", b"/sound empty.wav", b"/speech heard.wav", b"/send", b"/save made.wav", b"/save /dev/full",
    b"/save " + b"x" * 300 + b".wav", b"/save made.xyz", b"/store kept", b"/store folder", b"/store /dev/full",
    b"/restore kept", b"/restore text.txt", b"/restore folder", b"/undo", b"/help", b"/help me", b"/dance", b"/",
    b"//", b"/\xff", b"\xff\xfe", b"a\0b", b"/sound a\0b", b"\xed\xa0\x80", b"\x1b[2J", b"/quit", b"x" * 5000,
    "🐕 plays C5".encode(), b"\r", b"\x04",
)  # fmt: skip
#: Verbs of the bench that would measure for minutes if given a bundle.
MEASURING = ("decode", "prefill", "encode", "codec", "stream", "load", "gates")
#: Options whose large values are legitimate requests, at their cost.
SMALL = {
    "max_seconds": ("0.05", "0.1", "0", "-1", "nan", "inf", "1e308", "1e-9", "x"),
    "max_tokens": ("1", "3", "0", "-1", "x", "9" * 25),
    "max_context": ("64", "512", "0", "-1", "x", "9" * 25, "2147483648"),
    "rounds": ("0", "1", "-1", "x"),
    "threads": ("1", "2", "0", "-1", "x", "1000", "9" * 25),
}
PATHS = {
    "bundle", "run", "output", "plot", "trace", "config", "weights", "sound", "calibrate", "keep", "results", "against",
}  # fmt: skip
#: The other options that take numbers.
TEXTS = {
    "text", "question", "prompts", "mode", "modality", "profile", "sound_format", "form", "engine", "device",
    "precision", "encoder_precision", "codec_precision", "prefill", "gpus", "versus", "pages",
}  # fmt: skip
#: Loaded once, for every copy of the process.
LOADED = (
    *(
        "onnxruntime",
        "ualm.export.bundle",
        "ualm.export.targets.registry",
        "ualm.bench.harness.measure",
        "ualm.bench.planner.render",
    ),
    *(f"ualm.bench.{module}" for module, _, _ in cli_bench.PROGRAMS.values()),
)
if BUNDLE in os.environ:
    for _module in LOADED:
        importlib.import_module(_module)
LAID_OUT = {"heard.wav", "empty.wav"}


@functools.cache
def verbs() -> dict[tuple[str, ...], Any]:
    """Every verb with its parameters, from Typer."""
    root = typer.main.get_command(cli.app)
    found: dict[tuple[str, ...], Any] = {}
    for name, verb in root.commands.items():  # type: ignore[attr-defined]
        below = getattr(verb, "commands", None)
        found |= {(name,): verb} if below is None else {(name, sub): each for sub, each in below.items()}
    return found


def value(rng: random.Random, parameter: Any) -> str:
    """A value for an option or an argument, of its kind or not."""
    if parameter.name in SMALL and rng.random() < 0.9:
        return rng.choice(SMALL[parameter.name])
    if parameter.name in ("bundle", "run"):
        # an export that succeeds takes seconds
        known = [os.environ[BUNDLE]] * 20 if parameter.name == "bundle" else [os.environ[RUN]] * 3
        return rng.choice([*known, *FILES])
    pool = FILES if parameter.name in PATHS else WORDS if parameter.name in TEXTS else NUMBERS
    return rng.choice(pool if rng.random() < 0.85 else (*NUMBERS, *WORDS, *FILES))


def line(rng: random.Random) -> tuple[list[str], bool]:
    """A command line, and whether it reads lines."""
    if rng.random() < 0.04:
        return [rng.choice((*WORDS, "--version", "--help", "-h", "generate")) for _ in range(rng.randrange(4))], False
    top = rng.choice(sorted({name[0] for name in verbs()}))
    name = rng.choice([name for name in verbs() if name[0] == top])
    words, given = list(name), set[str]()
    chosen = [p for p in verbs()[name].params if p.param_type_name == "argument" or rng.random() < 0.08]
    needed = {"generate": "output", "export": "output", "reason": "max_seconds", "chat": "max_seconds"}.get(name[0])
    chosen += [p for p in verbs()[name].params if p.name == needed and rng.random() < 0.9 and p not in chosen]
    for parameter in chosen:
        given.add(parameter.name)
        if parameter.param_type_name == "argument":
            if rng.random() < 0.95:
                words.append(value(rng, parameter))
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[0])
        else:
            words += [rng.choice(parameter.opts), value(rng, parameter)]
    if name[0] in ("generate", "ask", "chat", "reason"):
        # bounded work, on a bundle that usually exists
        for option, small in (("--max-seconds", "0.05"), ("--max-tokens", "3"), ("--threads", "1")):
            takes = any(option in p.opts for p in verbs()[name].params)
            if takes and option[2:].replace("-", "_") not in given:
                words += [option, small]
        if "bundle" not in given:
            words += ["-b", os.environ[BUNDLE]]
    if name == ("doctor",) and "bundle" not in given:
        words.append("folder")
    if name[0] == "bench" and name[1] in MEASURING:
        words = [word if word != os.environ[BUNDLE] else "folder" for word in words]
        if "bundle" not in given:
            words.insert(2, "none")
    if name == ("bench", "export"):
        words = [word if word != os.environ[RUN] else "folder" for word in words]
    if rng.random() < 0.1:
        rng.shuffle(words)
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words) + 1), rng.choice(("--help", "--nonsense", "--", "-x", "--seed")))
    return words, name[0] in ("chat", "reason")


def lay_out(folder: Path) -> None:
    (folder / "heard.wav").write_bytes(_heard())
    (folder / "empty.wav").touch()
    (folder / "text.txt").write_text("no sound\n")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")


@functools.cache
def _heard() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_sound(0.2).T, 16000, format="WAV")
    return file.getvalue()


def command_line(rng: random.Random, folder: Path) -> str:
    """One line, with its streams, in a separate folder."""
    place = folder / "place"
    place.mkdir()
    lay_out(place)
    words, reads = line(rng)
    given = b"\n".join(rng.choices(LINES, k=rng.randrange(6))) if reads or rng.random() < 0.1 else b""
    if "-" in words and rng.random() < 0.7:
        given = rng.choice((_heard(), _heard()[:1000], b"", b"\xff" * 100))
    variables = {"XDG_CACHE_HOME": str(Path(os.environ[BUNDLE]).parent / "cache")}
    if rng.random() < 0.05:
        variables |= {"UALM_ENGINE": rng.choice(("onnxruntime", "tensorrt", "", "x\ny", "🐕"))}
    if rng.random() < 0.05:
        variables |= {"UALM_BUNDLE": rng.choice(("none", "", "folder", "x" * 300))}
    streams = [rng.choice((None,) * 12 + (CLOSED, FULL, GONE)) for _ in range(2)]
    done = run_line(
        [word.replace("\0", "").encode("utf-8", "surrogateescape") for word in words],
        place,
        stdin=CLOSED if rng.random() < 0.05 else given,
        stdout=streams[0],
        stderr=streams[1],
        variables=variables,
        encoding=rng.choice(("utf-8",) * 6 + ("ascii", "latin-1")),
    )
    problem = judged(done, words, place)
    assert problem is None, f"{problem}\nualm {words}\nstreams {streams}, status {done.status}\n{done.err}"
    return f"status {done.status}"


def judged(done: Done, words: list[str], place: Path) -> str | None:
    """What is wrong with the outcome of a line."""
    if done.status not in (0, 1, 2):
        return f"ended with {done.status}"
    if done.bytes_held > MOST_BYTES:
        return f"held {done.bytes_held >> 20} MiB"
    told = done.err
    if told is not None:
        for bad in ("Traceback", "internal error", "Exception ignored", "Warning", "Error in"):
            if bad in told and not any(bad in word for word in words):
                return f"says {bad!r}"
        # a chat goes on after a failed line
        last = next((row for row in reversed(told.splitlines()) if row.startswith("ualm: ")), None)
        if done.status == 1 and last is None:
            return "failed without a line that says why"
        if done.status == 1 and last is not None and len(last) > LONGEST_MESSAGE + sum(map(len, words)) * 4:
            return f"says {len(last)} letters"
        # an option without its value is reported by Typer's parser, without the usage
        usage = "Usage: ualm" in told and ("Error: " in told or "Commands:" in told)
        usage |= "usage: ualm bench " in told and ": error: " in told  # a program that reads its arguments itself
        if done.status == 2 and not (usage or told.startswith("Error: ")):
            return "a usage error that is none of Typer's"
    if done.out is not None and done.status == 0 and "--json" in words and "--help" not in words:
        for row in done.out.splitlines():
            try:
                json.loads(row)
            except ValueError:
                return f"prints {row[:80]!r} among its JSON"
    return litter(place)


def litter(place: Path) -> str | None:
    """Hidden files left in the folder, or an incomplete sound."""
    for path in sorted(place.rglob("*")):
        if path.name.startswith("."):
            return f"leaves {path.name}"
        if path.suffix == ".wav" and path.name not in LAID_OUT and path.is_file():
            try:
                Sound.from_file(path)
            except Exception as error:
                return f"leaves half of {path.name[:40]}: {error}"
    return None


def test_command_lines(tiny_bundle: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUNDLE, str(tiny_bundle))
    monkeypatch.setenv(RUN, str(tiny_run.folder))
    for variable in ("UALM_BUNDLE", "UALM_ENGINE"):
        monkeypatch.delenv(variable, raising=False)
    counted = run_cases(command_line, 800, 1)
    assert {"status 0", "status 1", "status 2"} <= set(counted)
