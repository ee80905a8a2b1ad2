"""``ualm chat``: from a script, line by line, and at a terminal, where Ctrl-C stops the turn but not the program."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from support.runs import make_run
from support.sounds import make_sound, write_sound
from ualm.export.bundle import export_run
from ualm.runtime import AudioSampling, Model, Segment, Sound, Speech, TextDelta, TextSampling
from ualm.runtime.cli import main as cli
from ualm.runtime.cli.verbs.chat import COMMANDS
from ualm.runtime.cli.verbs.chat_view import TextView
from ualm.runtime.conversation.session import Session

#: Options that keep the tiny model's turns short.
SHORT = ("--threads", "1", "--max-seconds", "0.05", "--max-tokens", "12")
#: Options for a turn that takes longer than a test.
LONG = ("--threads", 1, "--guidance", 1, "--max-seconds", 80, "--max-context", 131072)
#: The common wording of a notice.
CUT = "ualm: cut by its limit, not ended by the model; a larger --max-"
AUDIO, TEXT = AudioSampling(max_steps=80 + 7), TextSampling(max_steps=12)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("UALM_BUNDLE", raising=False)


@pytest.fixture(scope="module")
def endless_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose segments end only at their limit (sounds: without guidance), and whose model chooses sound."""
    folder = tmp_path_factory.mktemp("endless")
    run = make_run(folder / "run", lean={"eos": -60.0, "eot": -60.0, "pad": -60.0, "audio": 60.0})
    return export_run(run.folder, folder / "bundle").bundle


@pytest.fixture(scope="module")
def model(endless_bundle: Path) -> Iterator[Model]:
    with Model.open(endless_bundle, threads=1) as model:
        yield model


@pytest.fixture
def chat(
    endless_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``ualm chat`` in this process with lines on standard input; returns exit status, standard output and error."""

    def run(*lines: object, options: tuple[object, ...] = SHORT) -> tuple[int, str, str]:
        content = b"\n".join(line if isinstance(line, bytes) else str(line).encode() for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["ualm", "chat", "-b", str(endless_bundle), *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def events(chat: Any) -> Callable[..., list[dict[str, Any]]]:
    """Events of ``ualm chat --json``; the status must be 1, and a line say so, if and only if there is an error."""

    def run(*lines: object, options: tuple[object, ...] = ()) -> list[dict[str, Any]]:
        status, out, err = chat(*lines, options=(*SHORT, "--json", *options))
        found = [json.loads(line) for line in out.splitlines()]
        failed = kinds(found).count("error")
        lines, events = ("line", "event") if failed == 1 else ("lines", "events")
        told = f"ualm: {failed} {lines} failed; see the {events} of the type error\n" if failed else ""
        assert (status, err) == (int(failed > 0), told)
        assert found[0]["type"] == "opened"
        return found[1:]

    return run


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in found]


def answers(found: list[dict[str, Any]]) -> list[str]:
    """Texts of the text segments."""
    return [event["text"] for event in found if event["type"] == "segment_ended" and "text" in event]


def text_of(segments: list[Segment]) -> str:
    assert segments[0].text is not None
    return segments[0].text


# ---- from a script ----


def assert_same_sound(found: np.ndarray, expected: np.ndarray) -> None:
    """Sounds played while they are made come in pieces that depend on the clock, which round differently."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_turn_of_sound_is_events_without_samples_and_save_writes_it(events, model, tmp_path):
    found = events("rain", f"/save {tmp_path / 'a.wav'}")
    expected = model.session().ask("rain", audio=AUDIO, text=TEXT)[0].sound
    sounds = [event for event in found if event["type"] == "sound"]
    assert kinds(found) == ["segment_started", *["sound"] * len(sounds), "segment_ended", "turn_ended", "saved"]
    assert len(sounds) > 1 and all(
        set(event) == {"type", "segment", "start", "samples", "sample_rate"} for event in sounds
    )
    ends = np.cumsum([event["samples"] for event in sounds]).tolist()
    assert [event["start"] for event in sounds] == [0, *ends[:-1]] and ends[-1] == len(expected.samples)
    assert found[0] == {"type": "segment_started", "segment": 0, "modality": "audio"}
    ended, over, saved = found[-3:]
    assert (ended["finish"], ended["seconds"]) == ("max_seconds", round(expected.duration, 3))
    assert over["reason"] == "max_seconds" and set(over["seconds"]) == {"hear", "prefill", "first", "total"}
    assert saved["output"] == str(tmp_path / "a.wav")
    assert_same_sound(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], expected.samples)


def test_text_comes_in_pieces_that_are_the_answer_and_turns_are_one_conversation(events, model):
    found = events("rain", "and snow?", options=("--modality", "text"))
    session = model.session()
    expected = [text_of(session.ask(line, modality="text", text=TEXT)) for line in ("rain", "and snow?")]
    assert answers(found) == expected
    over = kinds(found).index("turn_ended")
    deltas = [event["text"] for event in found[:over] if event["type"] == "text"]
    assert len(deltas) > 1 and "".join(deltas) == expected[0]
    assert kinds(found).count("turn_ended") == 2


def test_undo_store_and_restore_go_back_to_the_same_conversation(events, tmp_path):
    file = tmp_path / "talk.npz"
    found = events(
        "rain",
        f"/store {file}",
        "and snow?",
        "/undo",
        "and snow?",
        f"/restore '{file}'",
        "and snow?",
        "/undo",
        "/undo",
        "/undo",
        options=("--modality", "text"),
    )
    assert [kind for kind in kinds(found) if kind not in ("segment_started", "text", "segment_ended")] == [
        *("turn_ended", "stored", "turn_ended", "undone", "turn_ended", "restored", "turn_ended"),
        *("undone", "undone", "error"),
    ]
    first, *others = answers(found)
    assert len(others) == 3 and len(set(others)) == 1 and others[0] != first
    marks = [(event["turns"], event["rows"] > 0) for event in found if "turns" in event]
    assert marks == [(1, True), (1, True), (1, True), (1, True), (0, False)]
    assert found[-1]["message"] == "/undo: there is no turn to take back"


def test_a_sound_goes_with_the_next_message_only(events, model, tmp_path):
    file = write_sound(tmp_path / "my sound.wav", make_sound(0.4), 16000)
    found = events(f"/sound {file}", "what is it?", "and now?", options=("--modality", "text"))
    session = model.session()
    heard = Sound.from_file(file)
    expected = [
        text_of(session.ask([("user", heard), ("user", "what is it?")], modality="text", text=TEXT)),
        text_of(session.ask("and now?", modality="text", text=TEXT)),
    ]
    assert answers(found) == expected
    assert found[0] == {"type": "sound_added", "file": str(file), "seconds": 0.4, "sample_rate": 16000}


def test_speech_can_be_sent_without_a_text_and_undo_drops_what_waits(events, model, tmp_path):
    file = write_sound(tmp_path / "a.wav", make_sound(0.3), 16000)
    found = events(f"/sound {file}", "/undo", f"/speech {file}", "/send", "/send", options=("--modality", "text"))
    expected = model.session().ask([("user", Speech(Sound.from_file(file)))], modality="text", text=TEXT)
    assert answers(found) == [text_of(expected)]
    assert found[-1]["message"] == "/send: no sound waits; add one with /sound FILE"


def test_hear_hands_the_last_sound_to_the_next_message_and_nothing_else_does(events, monkeypatch):
    taken: list[list[tuple[str, object]]] = []
    turn = Session.turn

    def noted(self: Session, messages: Any, **options: Any) -> Any:
        taken.append(list(messages))
        return turn(self, messages, **options)

    monkeypatch.setattr(Session, "turn", noted)
    found = events("/hear", "rain", "what is it?", "/hear", "and that?", "/hear", "/undo", "and now?",
                   options=("--guidance", 1))  # fmt: skip
    assert found[0]["message"] == "/hear: no sound has been made yet"
    words = [[content for _, content in messages if isinstance(content, str)] for messages in taken]
    assert words == [["rain"], ["what is it?"], ["and that?"], ["and now?"]]
    assert [len(messages) for messages in taken] == [1, 1, 2, 1]
    role, sound = taken[2][0]
    assert role == "user" and isinstance(sound, Sound) and sound.codes is not None, "heard, and not taken as codes"
    added = next(event for event in found if event["type"] == "sound_added")
    made = [event for event in found if event["type"] == "segment_ended" and event["modality"] == "audio"]
    assert added == {"type": "sound_added", "file": None, "seconds": made[1]["seconds"], "sample_rate": 16000}


def test_seeds_repeat_a_turn_and_options_reach_the_model(events, model, tmp_path):
    options = {"guidance": 1.5, "temperature": 0.6, "top_k": 5}
    flags = [piece for name, value in options.items() for piece in (f"--{name.replace('_', '-')}", value)]
    save = [f"/save {tmp_path / f'{name}.wav'}" for name in "abc"]
    found = events("rain", save[0], "/undo", "/seed 7", "rain", save[1], "/undo", "/seed 3", "rain", save[2],
                   options=(*flags, "--seed", 3))  # fmt: skip
    files = [soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0] for name in "abc"]
    for samples, seed in zip(files, (3, 7, 3), strict=True):
        audio = AudioSampling(max_steps=80 + 7, seed=seed, **options)
        assert_same_sound(samples, model.session().ask("rain", audio=audio)[0].sound.samples)
    assert not np.array_equal(files[0], files[1])
    assert [event["seed"] for event in found if event["type"] == "seed"] == [7, 3]


def test_what_fails_is_an_error_event_and_the_chat_goes_on(events, tmp_path):
    found = events(
        "/sing",
        "/save",
        f"/save {tmp_path / 'a.wav'}",
        f"/sound {tmp_path / 'none.wav'}",
        "/seed -1",
        f"/seed {2**64}",
        "/undo now",
        f"/restore {tmp_path / 'none.npz'}",
        "/sound a\0b.wav",
        b"rain \xff",
        "rain " * 200,
        "",
        "   ",
        "rain",
        options=("--max-context", 120, "--modality", "text"),
    )
    errors = [event for event in found if event["type"] == "error"]
    pieces = [
        "/sing: no such command",
        "/save: write /save FILE",
        "/save: no sound has been made yet",
        "no such file",
        "'-1' is not a whole number",
        f"seed = {2**64}",
        "/undo: takes nothing after it",
        "no such file; save a session first",
        "NUL",
        "not valid UTF-8",
        "max_context = 120",
    ]
    for event, piece in zip(errors, pieces, strict=True):
        assert piece in event["message"]
    assert [event["error"] for event in errors[-2:]] == ["InputError", "ContextError"]
    assert "the session keeps its 0 whole turns" in errors[-1]["message"]
    assert len(answers(found)) == 1 and found[-1]["type"] == "turn_ended"


def test_a_sound_whose_turn_failed_still_waits(events, model, tmp_path):
    file = write_sound(tmp_path / "a.wav", make_sound(0.3), 16000)
    found = events(f"/sound {file}", "rain " * 200, "what?", options=("--max-context", 120, "--modality", "text"))
    expected = model.session().ask([("user", Sound.from_file(file)), ("user", "what?")], modality="text", text=TEXT)
    assert kinds(found).count("error") == 1 and answers(found) == [text_of(expected)]


def test_a_turn_beyond_the_time_limit_is_an_error(events):
    found = events("rain", options=("--time-limit", 1e-9))
    assert [event["error"] for event in found] == ["TimeLimitError"]


def test_a_line_that_begins_with_a_space_is_a_text(events, model):
    found = events(" /quit", options=("--modality", "text"))
    assert answers(found) == [text_of(model.session().ask("/quit", modality="text", text=TEXT))]


def test_quit_leaves_before_the_end_of_the_input(events):
    assert events("/quit", "rain") == []


def test_help_names_every_command(chat):
    status, out, err = chat("/help")
    assert (status, out) == (0, "")
    assert re.findall(r"^/\w+", err, re.MULTILINE) == list(COMMANDS)


def test_as_text_answers_are_on_standard_output_and_the_rest_on_standard_error(chat, model, tmp_path):
    status, out, err = chat("rain", f"/save {tmp_path / 'a.wav'}", "/sing")
    assert status == 1
    sound = model.session().ask("rain", audio=AUDIO)[0].sound
    assert re.fullmatch(
        rf"\[{sound.duration:.2f} s of sound in [\d.]+ s, real-time factor [\d.]+; keep it with /save FILE.wav\]\n", out
    )
    assert err.splitlines()[:2] == [f"{CUT}seconds allows more", f"{tmp_path / 'a.wav'}: {sound.duration:.2f} s"]
    assert err.splitlines()[2].startswith("ualm: /sing: no such command") and err.count("\n") == 3
    status, out, err = chat("rain", options=(*SHORT, "--modality", "text"))
    answer = text_of(model.session().ask("rain", modality="text", text=TEXT))
    assert (status, out, err) == (0, answer.rstrip("\n") + "\n", f"{CUT}tokens allows more\n")


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        (("--modality", "video"), "--modality 'video'"),
        (("--max-seconds", "0"), "--max-seconds 0"),
        (("--text-temperature", "-1"), "temperature = -1.0"),
        (("--time-limit", "0"), "time_limit = 0"),
        (("--bundle", "none"), "none: no bundle here (no such folder)"),
        (("--bundle", __file__), "no bundle here (it is a file)"),
    ],
)
def test_a_bad_option_is_one_line_and_no_chat(chat, options, piece):
    status, out, err = chat("rain", options=(*SHORT, *options))
    assert (status, out) == (1, "") and piece in err
    assert err.startswith("ualm: ") and err.count("\n") == 1


def test_a_terminal_gets_no_control_characters_from_the_model(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    TextView().event(TextDelta(0, "a\x1b[2Jb\x07\x9bc\td\n"))
    assert capsys.readouterr().out == "a\ufffd[2Jb\ufffd\ufffdc\td\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_events_come_while_the_pipe_is_open_and_an_interrupt_cancels_the_turn(endless_bundle):
    command = [sys.executable, "-m", "ualm.runtime.cli", "chat", "-b", str(endless_bundle), "--json"]
    command += [str(option) for option in LONG]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1) as process:
        try:
            assert process.stdin and process.stdout and process.stderr
            print("rain", file=process.stdin, flush=True)
            found = [json.loads(process.stdout.readline())]
            while found[-1]["type"] != "sound":
                found.append(json.loads(process.stdout.readline()))
            process.send_signal(signal.SIGINT)
            while found[-1]["type"] != "turn_ended":
                found.append(json.loads(process.stdout.readline()))
            assert found[-1]["reason"] == "cancelled"
            print("/undo", file=process.stdin, flush=True)
            assert json.loads(process.stdout.readline())["message"] == "/undo: there is no turn to take back"
            process.send_signal(signal.SIGINT)  # no turn is running: the program ends
            assert process.wait(20) == 130
            assert process.stderr.read() == ""
        finally:
            process.kill()


# ---- at a terminal ----


class Terminal:
    """``ualm chat`` on its own pseudo-terminal, as the foreground program."""

    def __init__(self, *arguments: object) -> None:
        self._ours, theirs = os.openpty()
        code = (
            "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "from ualm.runtime.cli.command import main; main()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        )
        os.close(theirs)
        self.seen = ""

    def expect(self, pattern: str, seconds: float = 30) -> str:
        """Wait until ``pattern`` appears; returns and drops the output up to its end."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            if not select.select([self._ours], [], [], max(end - time.monotonic(), 0))[0]:
                pytest.fail(f"{pattern!r} did not come; seen: {self.seen!r}")
            try:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:  # how Linux reports that the other end is closed
                pytest.fail(f"{pattern!r} did not come before the end; seen: {self.seen!r}")
        came, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return came

    def interrupt(self) -> None:
        """Ctrl-C at the prompt. Python starts waiting for keys a moment after the prompt appears, and nothing shows
        when."""
        time.sleep(0.3)
        self.type("\x03")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: object) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_ctrl_c_stops_the_turn_and_the_conversation_goes_on(terminal, endless_bundle, tmp_path):
    file = write_sound(tmp_path / "a.wav", make_sound(0.3), 16000)
    screen = terminal("-b", endless_bundle, *LONG)
    screen.expect("/help lists the commands\r\n")
    screen.expect(r"only when you hand it over: /hear, then ask\r\n> ")
    screen.type(f"/sound {file}\n")
    screen.expect("goes with the next message\r\n> ")
    screen.type("rain\n")
    screen.expect(r"[\d.]+ s of sound, [\d.]+ s, real-time factor [\d.]+")
    screen.type("\x03")
    assert "keep it with" not in screen.expect("stopped; the turn is taken back\r\n")
    screen.expect("> ")
    screen.type("/undo\n")
    screen.expect("the sounds that waited are dropped")  # they did not go with the turn that was stopped
    screen.expect("> ")
    screen.type("/undo\n")
    screen.expect("ualm: /undo: there is no turn to take back\r\n")
    screen.expect("> ")
    screen.type(f"/store {tmp_path / 'talk.npz'}\n")
    screen.expect(r"the conversation holds 0 turns \(0 rows\)")
    screen.expect("> ")
    screen.type("rain again\n")
    screen.expect("real-time factor")
    screen.type("\x03")
    screen.expect("stopped; the turn is taken back\r\n")
    screen.expect("> ")
    screen.type("\x04")
    assert screen.process.wait(20) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_at_the_prompt_ctrl_c_clears_the_line_and_a_second_one_leaves(terminal, endless_bundle, model):
    screen = terminal("-b", endless_bundle, "--threads", 1, "--modality", "text", "--max-tokens", 12)
    screen.expect("> ")
    screen.type("half a lin")
    screen.expect("half a lin")
    screen.interrupt()
    screen.expect("Ctrl-C once more leaves")
    screen.expect("> ")
    screen.type("rain\n")
    answer = re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text_of(model.session().ask("rain", modality="text", text=TEXT))
    )
    assert answer.replace("\n", "\r\n") in screen.expect(f"{CUT}tokens allows more\r\n")
    screen.expect("> ")
    screen.interrupt()
    screen.expect("Ctrl-C once more leaves")
    screen.expect("> ")
    screen.interrupt()
    assert screen.process.wait(20) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_lines_can_be_edited_and_come_back_from_the_history(terminal, endless_bundle):
    pytest.importorskip("readline")
    screen = terminal("-b", endless_bundle, "--threads", 1)
    screen.expect("> ")
    screen.type("/see 5\x1b[D\x1b[Dd\n")  # two steps to the left, and a letter put in
    screen.expect("seed 5\r\n")
    screen.expect("> ")
    screen.type("\x1b[A\x7f6\n")  # the line before, its last letter replaced
    screen.expect("seed 6\r\n")
