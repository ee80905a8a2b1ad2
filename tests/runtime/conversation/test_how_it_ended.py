"""Results cut by a limit say so: sounds, segments, answers and the commands; and the seed is returned, also if
drawn."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.bundles import changed_manifest
from support.packaged import PROMPT
from ualm.runtime import Answer, AudioSampling, InputError, Model, Sound, TextSampling
from ualm.runtime.cli import main as cli
from ualm.runtime.vocabulary import Modality


def test_a_sound_tells_whether_its_limit_cut_it(model: Model, trumpet: Sound) -> None:
    assert (trumpet.finish, trumpet.seed) == ("stop", 7)
    for options in ({"max_seconds": 0.2}, {"max_steps": 17}):
        cut = model.generate(PROMPT, seed=7, **options)  # type: ignore[arg-type]
        assert (cut.finish, cut.duration) == ("max_seconds", 0.2)
    stream = model.stream(PROMPT, seed=7, max_seconds=0.2)
    assert sum(len(chunk.samples) for chunk in stream) == 0.2 * 16000
    assert stream.sound is not None and stream.sound.finish == "max_seconds"
    assert Sound(np.zeros(4), 16000).finish is None and model.decode(trumpet.codes).finish is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("modality", "limit"), [("audio", "max_seconds"), ("text", "max_tokens")])
@pytest.mark.parametrize("cut", [False, True])
def test_segments_tell_it_too(model: Model, modality: Modality, limit: str, cut: bool) -> None:
    steps = 12 if cut else 1024
    audio, text = AudioSampling(max_steps=steps), TextSampling(max_steps=steps)
    for first in (
        model.run([("user", PROMPT)], modality=modality, audio=audio, text=text)[0],
        model.session().ask(PROMPT, modality=modality, audio=audio, text=text)[0],
    ):
        assert first.finish_reason == (limit if cut else "stop")
        assert (first.finish == "max_steps") == cut


def test_an_answer_tells_it_and_is_a_text(model: Model, trumpet: Sound) -> None:
    answer = model.ask(trumpet, "what is played?", seed=5)
    assert answer == "a trumpet plays C5 and E5" and isinstance(answer, str) and type(answer) is Answer
    assert (answer.finish, answer.seed) == ("stop", 5)
    for cut in (
        model.ask(trumpet, "what is played?", max_tokens=2),
        model.ask(trumpet, "what is played?", max_steps=2),
    ):
        assert cut.finish == "max_tokens" and answer.startswith(cut)
    again = pickle.loads(pickle.dumps(answer))
    assert (again, again.finish, again.seed) == (answer, "stop", 5)
    assert json.dumps(answer) == json.dumps(str(answer))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("form", ["plain", "json"])
def test_the_commands_say_it(
    cut: bool,
    form: str,
    trumpet: Sound,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trumpet.save(tmp_path / "trumpet.wav")
    generate = ["generate", PROMPT, "-o", tmp_path / "a.wav", *(["--max-seconds", 0.2] if cut else [])]
    ask = ["ask", tmp_path / "trumpet.wav", "what is played?", *(["--max-tokens", 2] if cut else [])]
    for arguments, option in ((generate, "max_seconds"), (ask, "max_tokens")):
        command = ["ualm", *map(str, arguments), "--threads", "1", *(["--json"] if form == "json" else [])]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        told = [line for line in err.splitlines() if "cut by its limit" in line]
        assert len(told) == (cut and form == "plain") and all("--" + option.replace("_", "-") in line for line in told)
        if form == "json":
            assert json.loads(out)["finish"] == (option if cut else "stop")


def test_every_json_has_the_same_words_and_every_notice_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ualm(*arguments: object, lines: str = "") -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["ualm", *map(str, arguments), "--threads", "1"])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr()

    notice = "ualm: cut by its limit, not ended by the model; a larger --max-seconds allows more\n"
    limits = ("--max-seconds", 0.1)
    trace = tmp_path / "trace.json"
    told, plain = ualm("reason", PROMPT, *limits, "--trace", trace)
    assert plain == notice and "limit" not in told and "sound: 0.10 s\n" in told
    assert ualm("reason", PROMPT, *limits, "-q")[1] == ualm("reason", PROMPT, "-q")[1] == ""
    whole = json.loads(ualm("reason", PROMPT, "--json")[0])
    out, err = ualm("reason", PROMPT, *limits, "--json")
    for about, ended in (
        (json.loads(out), "max_seconds"),
        (json.loads(trace.read_text()), "max_seconds"),
        (whole, "stop"),
    ):
        assert about["finish"] == ended and err == ""
        assert [stage["finish"] for turn in about["turns"] for stage in turn["stages"]] == ["stop", ended]
        assert about["turns"][-1]["reason"] == ended

    chat = ("chat", "--modality", "audio")
    assert ualm(*chat, *limits, lines=PROMPT)[1] == notice
    assert ualm(*chat, *limits, "-q", lines=PROMPT)[1] == ""
    for options, ended in ((limits, "max_seconds"), ((), "stop")):
        out, err = ualm(*chat, *options, "--json", lines=PROMPT)
        *_, segment, turn = map(json.loads, out.splitlines())
        assert (segment["finish"], turn["reason"], err) == (ended, ended, "")


def test_whoever_wants_no_notices_gets_none(
    trumpet: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trumpet.save(tmp_path / "trumpet.wav")
    commands = [
        ["generate", PROMPT, "-o", str(tmp_path / "a.wav"), "--max-seconds", "0.2"],
        ["ask", str(tmp_path / "trumpet.wav"), "what is played?", "--max-tokens", "2"],
        ["chat", "--modality", "audio", "--max-seconds", "0.2"],
    ]
    for command in commands:
        for options, notices in (([], 1), (["-q"], 0)):
            monkeypatch.setattr(sys, "argv", ["ualm", *command, "--threads", "1", *options])
            monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
            with pytest.raises(SystemExit) as stop:
                cli.main()
            err = capsys.readouterr().err
            assert (stop.value.code or 0, err.count("\n")) == (0, notices), (command, err)


def test_a_number_that_python_does_not_print_is_refused_by_name(model: Model) -> None:
    for name in ("max_seconds", "max_tokens"):
        with pytest.raises(InputError, match=f"{name} = "):
            model.run([("user", PROMPT)], **{name: 10**5000})  # type: ignore[arg-type]


def test_max_seconds_is_taken_wherever_a_sound_is_made(model: Model) -> None:
    messages = [("user", PROMPT)]
    found = [
        model.generate(PROMPT, max_seconds=0.1),
        model.run(messages, modality="audio", max_segments=1, max_seconds=0.1)[0].sound,  # type: ignore[arg-type]
        model.session().ask(PROMPT, modality="audio", max_seconds=0.1)[0].sound,
        model.session().turn(PROMPT, modality="audio", max_seconds=0.1).segments()[0].sound,
        model.reason(PROMPT, max_seconds=0.1).result().sound,
    ]
    assert [sound is not None and (sound.duration, sound.finish) for sound in found] == [(0.1, "max_seconds")] * 5
    for value, piece in (
        (0, "max_seconds = 0: give a number of seconds that holds one frame, 0.02 s"),
        ("1", "max_seconds = '1'"),
        (float("nan"), "max_seconds = nan"),
        (1000, "needs 50007 rows beside the prompt's, but only 4096 are reserved"),
    ):
        for call in (
            lambda: model.generate(PROMPT, max_seconds=value),  # noqa: B023
            lambda: model.session().turn(PROMPT, max_seconds=value),  # noqa: B023
        ):
            with pytest.raises(InputError) as caught:
                call()
            assert piece in str(caught.value)
    with pytest.raises(InputError, match="give one of them"):
        model.generate(PROMPT, max_seconds=1, max_steps=60)


def test_max_tokens_is_taken_wherever_a_text_is_made(model: Model, trumpet: Sound) -> None:
    messages = [("user", trumpet), ("user", "what is played?")]
    found = [
        model.ask(trumpet, "what is played?", max_tokens=2),
        model.run(messages, modality="text", max_segments=1, max_tokens=2)[0].text,  # type: ignore[arg-type]
        model.session().ask(messages, modality="text", max_tokens=2)[0].text,
        model.session().turn(messages, modality="text", max_tokens=2).segments()[0].text,
    ]
    assert found == [found[0]] * 4 and "a trumpet plays C5 and E5".startswith(str(found[0]))
    caption = model.reason(PROMPT, max_tokens=2, max_seconds=0.1).result().stages[0]
    assert (caption.segment.finish_reason, len(caption.segment.rows)) == ("max_tokens", 2)
    longer = TextSampling(max_steps=9)
    assert len(model.session().ask(messages, modality="text", text=longer, max_tokens=3)[0].rows) == 3
    for value in (0, 2.5, "3", True, 2**31):
        for call in (
            lambda: model.run(messages, max_tokens=value),  # type: ignore[arg-type]  # noqa: B023
            lambda: model.session().turn(messages, max_tokens=value),  # type: ignore[arg-type]  # noqa: B023
            lambda: model.reason(PROMPT, max_tokens=value),  # type: ignore[arg-type]  # noqa: B023
        ):
            with pytest.raises(InputError) as caught:
                call()
            assert str(caught.value) == f"max_tokens = {value!r}: give a whole number of at least 1"


def test_a_message_carries_bytes_and_open_files_as_ask_does(model: Model, trumpet: Sound, tmp_path: Path) -> None:
    trumpet.save(tmp_path / "trumpet.wav")
    held = (tmp_path / "trumpet.wav").read_bytes()
    for number, form in enumerate((bytes, bytearray, memoryview, io.BytesIO)):
        with model.session() as session:
            for content in (form(held), [("user", form(held))], [{"role": "user", "content": form(held)}]):
                session.ask(content, modality="text", max_tokens=1)
            answer = session.ask("what is played?", modality="text")[0].text
            kept = [content for role, content in session.transcript if role == "user"][:3]
            assert all(isinstance(sound, Sound) and len(sound.samples) == len(trumpet.samples) for sound in kept)
            session.save(tmp_path / f"{number}.npz")
            restored = model.restore(tmp_path / f"{number}.npz").transcript
            assert [role for role, _ in restored] == [role for role, _ in session.transcript]
            assert [role for role, _ in restored].count("user") == 4
        found = model.run([("user", form(held)), ("user", "what is played?")], modality="text", max_segments=1)[0].text
        assert found == model.ask(form(held), "what is played?") == "a trumpet plays C5 and E5" and answer


def test_a_seed_that_is_drawn_comes_back_and_repeats(model: Model) -> None:
    hot = {"temperature": 1.5, "max_seconds": 0.3}
    first, second = (model.generate(PROMPT, seed=None, **hot) for _ in range(2))  # type: ignore[arg-type]
    assert first.seed is not None and first.seed != second.seed
    again = model.generate(PROMPT, seed=first.seed, **hot)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.codes, first.codes)

    turn = model.session().turn(PROMPT, modality="audio", audio=AudioSampling(seed=None, max_steps=20))
    segment = turn.segments()[0]
    assert segment.seed == turn.seeds["audio"] == segment.sound.seed != 0 == turn.seeds["text"]  # type: ignore[union-attr]
    answer = model.ask(first, "what is played?", seed=None)
    assert answer.seed != 0
    stream = model.stream(PROMPT, seed=None, max_seconds=0.1)
    assert list(stream) and stream.sound is not None and stream.sound.seed == stream.seed != 0
    result = model.reason(PROMPT, seed=None, max_seconds=0.1).result()
    assert result.stages[0].seed == result.audio.seed == result.text_options.seed != 0
    assert model.reason(PROMPT)._audio.seed == 0, "without a seed, that of the options"


def test_a_bundle_whose_own_seed_is_null_draws_one_whenever_it_is_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["sampling"]["audio"]["seed"] = None

    bundle = changed_manifest(tiny_bundle, tmp_path / "drawn", change)
    seeds = []
    for _ in range(2):
        with Model.open(bundle, threads=1, max_context=64) as opened:
            seeds.append(opened.resources.audio.seed)
    assert seeds[0] != seeds[1]
