"""Public objects in a notebook: short reprs, transcripts, messages in either form, types known to a checker."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.packaged import PROMPT
from support.scripted import Plays, Says, scripted
from ualm.runtime import AudioSampling, ChunkProfile, InputError, Model, Sound, Speech, TextSampling, Verdict

ROOT = Path(__file__).resolve().parents[2]


def test_reprs_are_short_and_hold_no_arrays(model: Model, trumpet: Sound) -> None:
    session = model.session()
    long = "a very long text that says nothing new " * 30
    with scripted(model, Says(long), Plays(100)):
        turn = session.turn("x", modality="text", text=TextSampling(max_steps=1024))
        events = [*turn, *session.turn("y", modality="audio")]
    with scripted(model, Says(long, finish="eot"), Plays(100)):
        reasoning = model.reason(long[:600])
        steps = list(reasoning)
    stream = model.stream(PROMPT)
    objects: list[Any] = [
        *[model, model.bundle, model.bundle.manifest, model.knows, model.decoder(), session, turn, reasoning, stream],
        *[trumpet, Sound(np.zeros((1000, 2)), 8000), Speech(trumpet), Speech("a.wav")],
        *[*events, *steps, *reasoning.stages, steps[-1].result, *steps[-1].result.turns, Verdict(1, None, long)],
        *[AudioSampling(), TextSampling(), ChunkProfile(1, 2.0, 3)],
    ]
    for each in objects:
        shown = repr(each)
        assert len(shown) <= 300, (type(each).__name__, len(shown), shown)
        assert "array(" not in shown and " object at 0x" not in shown and "\n" not in shown, shown
        assert shown.startswith(type(each).__name__ + "(")
    assert repr(trumpet) == "Sound(0.80 s at 16000 Hz, codes of 40 frames, finish 'stop', seed 7)"


def test_a_transcript_is_what_was_said_in_whole_turns(model: Model, trumpet: Sound, tmp_path: Path) -> None:
    path = tmp_path / "trumpet.wav"
    trumpet.save(path)
    with scripted(model, Says("a trumpet"), Plays(30), Says("so"), Says("gone")):
        session = model.session()
        assert session.transcript == ()
        session.ask([("system", "be brief"), {"role": "user", "content": path}, ("user", "what?")], modality="text")
        made = session.ask({"role": "user", "content": "play"}, modality="audio")[0].sound
        session.ask([("user", trumpet), ("user", Speech(path))], modality="text")
        for _ in session.turn("left", modality="text"):
            break
    first = (("system", "be brief"), ("user", path), ("user", "what?"), ("assistant", "a trumpet"))
    second = (("user", "play"), ("assistant", made))
    third = (("user", trumpet), ("user", Speech(path)), ("assistant", "so"))
    assert session.transcript == first + second + third

    fork = session.fork()
    fork.truncate(2)
    assert fork.transcript == first + second and session.transcript == first + second + third

    session.save(tmp_path / "talk.npz")
    later = model.restore(tmp_path / "talk.npz")
    assert later.transcript[:5] == first + second[:1] and later.transcript[7:] == third[1:]
    kept_made, kept = later.transcript[5][1], later.transcript[6][1]
    assert isinstance(kept_made, Sound) and isinstance(kept, Sound) and made is not None
    for found, wanted in ((kept_made, made), (kept, trumpet)):
        np.testing.assert_array_equal(found.samples, wanted.samples)
        np.testing.assert_array_equal(found.codes, wanted.codes)
        assert (found.sample_rate, found.finish, found.seed) == (wanted.sample_rate, wanted.finish, wanted.seed)
    with scripted(model, Says("all of it")):
        assert model.run([*later.transcript, ("user", "and now?")], modality="text")[0].text == "all of it"


def test_a_session_that_was_saved_before_it_told_what_was_said_is_restored(model: Model, tmp_path: Path) -> None:
    with scripted(model, Says("yes")):
        session = model.session()
        session.ask("one", modality="text")
    session.save(tmp_path / "talk.npz")
    with np.load(tmp_path / "talk.npz") as stored:
        about, cache = json.loads(stored["about"].tobytes()), stored["cache"]
    del about["said"]
    np.savez(tmp_path / "old.npz", about=np.frombuffer(json.dumps(about).encode(), np.uint8), cache=cache)
    later = model.restore(tmp_path / "old.npz")
    assert (later.turns, later.transcript) == (1, ())
    with scripted(model, Says("again")):
        later.ask("two", modality="text")
    assert later.transcript == (("user", "two"), ("assistant", "again"))


def test_messages_may_be_mappings(model: Model, trumpet: Sound) -> None:
    pairs = [("user", trumpet), ("user", "what is played?")]
    mappings = [{"role": role, "content": content} for role, content in pairs]
    answers = [model.run(form, modality="text")[0].text for form in (pairs, mappings)]  # type: ignore[arg-type]
    assert answers[0] == answers[1]
    for wrong, piece in (
        ({"role": "user"}, "a message has the keys 'role' and 'content', not 'role'"),
        ({"role": "user", "content": "a", "name": "b"}, "not 'role', 'content', 'name'"),
        ({"role": "user", "content": [{"type": "text"}]}, "content is a list"),
        ({"role": "tool", "content": "a"}, "role 'tool' is unknown"),
    ):
        with pytest.raises(InputError, match=r"^messages\[0\]: ") as caught:
            model.run([wrong])  # type: ignore[list-item]
        assert piece in str(caught.value)


def test_a_wrong_type_is_an_input_error(model: Model, trumpet: Sound, tmp_path: Path) -> None:
    any_model: Any = model
    text_file = open(tmp_path / "text.txt", "w")  # noqa: SIM115
    ragged = [[1.0], [2.0, 3.0]]
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: Model.open(5),  # type: ignore[arg-type]
        "open bytes": lambda: Model.open(b"bundle"),  # type: ignore[arg-type]
        "generate": lambda: any_model.generate(5),
        "generate audio": lambda: any_model.generate(PROMPT, audio=TextSampling()),
        "generate on_rows": lambda: any_model.generate(PROMPT, on_rows=5),
        "ask": lambda: any_model.ask(5, "what?"),
        "ask none": lambda: any_model.ask(None, "what?"),
        "ask question": lambda: any_model.ask(trumpet, 5),
        "listen": lambda: any_model.listen(5),
        "reason session": lambda: any_model.reason(PROMPT, session=5),
        "decode": lambda: any_model.decode(ragged),
        "turn": lambda: any_model.session().turn(5),
        "save session": lambda: any_model.session().save(5),
        "restore": lambda: any_model.restore(5),
        "from_file": lambda: Sound.from_file(5),  # type: ignore[arg-type]
        "from_file none": lambda: Sound.from_file(None),  # type: ignore[arg-type]
        "from_file longest": lambda: Sound.from_file("a.wav", longest="1"),  # type: ignore[arg-type]
        "save": lambda: trumpet.save(5),  # type: ignore[arg-type]
        "save none": lambda: trumpet.save(None),  # type: ignore[arg-type]
        "save bytes": lambda: trumpet.save(b"a.wav"),  # type: ignore[arg-type]
        "save text file": lambda: trumpet.save(text_file),  # type: ignore[arg-type]
        "save format": lambda: trumpet.save(tmp_path / "a.wav", format=5),  # type: ignore[arg-type]
        "save subtype": lambda: trumpet.save(tmp_path / "a.wav", 16),  # type: ignore[arg-type]
        "samples": lambda: Sound(ragged, 16000),  # type: ignore[arg-type]
        "codes": lambda: Sound(np.zeros(4), 16000, ragged),  # type: ignore[arg-type]
        "speech": lambda: Speech(5),  # type: ignore[arg-type]
    }
    with text_file:
        for name, call in calls.items():
            try:
                call()
            except InputError:
                continue
            except Exception as error:
                raise AssertionError(f"{name}: {type(error).__name__}") from error
            raise AssertionError(f"{name}: taken")


def test_a_sound_in_memory_is_asked_about_without_a_file(model: Model, trumpet: Sound) -> None:
    file = io.BytesIO()
    trumpet.save(file, format="flac")
    expected = model.ask(trumpet, "what is played?")
    assert model.ask(file.getvalue(), "what is played?") == expected
    file.seek(0)
    assert model.ask(file, "what is played?") == expected
    assert model.listen(file.getvalue()).duration == trumpet.duration


def test_after_a_warm_up_nothing_is_left_to_load() -> None:
    with Model.open(threads=1) as model:
        parts: dict[str, object] = model.resources.engine._sessions  # type: ignore[attr-defined]
        at_opening = len(parts)
        model.warm_up()
        loaded = dict(parts)
        assert len(loaded) >= at_opening + 4
        sound = model.generate(PROMPT)
        model.ask(sound, "what is played?")
        model.reason(PROMPT).result()
        list(model.stream(PROMPT))
        session = model.session()
        session.ask(PROMPT)
        assert parts == loaded
        assert session.turns == 1, "warming up leaves nothing behind"


WRONG = re.compile(r"# wrong: (\S+)$", re.MULTILINE)
USAGE = """
from ualm import AudioSampling, Model, Sound

model = Model.open()
sound: Sound = model.generate("a", seed=None, top_k=None, max_seconds=3, guidance=2)
answer: str = model.ask(sound, "b", max_tokens=3, seed=None)
model.reason("a", seed=None, max_seconds=2.5)
model.run([("user", "a"), {"role": "user", "content": sound}], max_seconds=3.0)
number: int = AudioSampling(seed=None).seed
chunks = [chunk.samples for chunk in model.stream("a", profile="balanced", seed=3)]
with model.session() as session, session.turn("a", max_seconds=2) as turn:
    seeds: int = turn.seeds["audio"]
model.generate("a", sed=3)  # wrong: call-arg
model.stream("a", seed="3")  # wrong: arg-type
model.ask(sound, "b", max_seconds=3)  # wrong: call-arg
model.reason("a", roundz=2)  # wrong: call-arg
session.ask("a", sed=3)  # wrong: call-arg
AudioSampling(sed=3)  # wrong: call-arg
"""


def test_a_type_checker_knows_the_options(tmp_path: Path) -> None:
    package = tmp_path / "typing" / "ualm"
    package.mkdir(parents=True)
    (package / "runtime").symlink_to(ROOT / "runtime")
    (package / "__init__.py").symlink_to(ROOT / "runtime" / "package" / "ualm" / "__init__.py")
    (tmp_path / "usage.py").write_text(USAGE)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nignore_missing_imports = True\nfollow_imports = silent\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-version", "3.10", "--no-error-summary", "usage.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(tmp_path / "typing")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = USAGE.splitlines()
    wanted = [(n, match.group(1)) for n, line in enumerate(lines, 1) if (match := WRONG.search(line))]
    errors = re.findall(r"^usage\.py:(\d+): error: .*\[(\S+)\]$", found.stdout, re.MULTILINE)
    assert [(int(line), kind) for line, kind in errors] == wanted, found.stdout + found.stderr
