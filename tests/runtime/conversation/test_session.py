"""A session says what an uninterrupted conversation would say, even if it is forked, truncated or saved in between."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.choosing import choosing_what_it_can
from support.parity_cases import CASES, Case
from support.reference import Conversation, Reference
from support.runs import make_run
from support.sounds import make_sound
from ualm.export.bundle import export_run
from ualm.runtime import (
    AudioSampling,
    ContextError,
    InputError,
    MemoryLimitError,
    Model,
    OutputError,
    Segment,
    SegmentLimitError,
    Session,
    SessionError,
    Sound,
    Speech,
    TextSampling,
)
from ualm.runtime.conversation.events import Event, SegmentEnded, SegmentStarted, SoundChunk, TextDelta, TurnEnded

#: Share of the peak; fp32 on both sides, with sums in another order. 2e-6 was seen.
SAMPLES = 1e-4
#: The closest choice of a greedy path, in standard deviations of the logits, must be wider than the errors of about
#: 1e-6: a path has at most a hundred thousand choices.
MARGIN = 1e-4

GROUPED = {"hidden": 64, "heads": 4, "kv_heads": 2}
#: Chooses sound or text by itself.
ABLE = {"text": 4.0, "audio": 4.0, "image": -9.0, "video": -9.0, "toolcall": -9.0}
#: Also ends sounds and texts occasionally, by eos or eot.
LIVELY = ABLE | {"eos": 2.5, "eot": 2.5}


# ---- parity ----

SOUND, SPEECH, STEREO = (
    (make_sound(0.5), 16000),
    (make_sound(0.35), 16000, "speech"),
    (make_sound(0.4, 44100, 2), 44100),
)
#: Ten turns: the messages, and the requested modality.
TALK: list[tuple[list[tuple[str, Any]], Any]] = [
    ([("system", "Be brief."), ("user", "Hear this!")], "text"),
    ([("user", SOUND), ("user", "What is it?")], None),
    ([("user", "Make it again, louder.")], "audio"),
    ([("user", "And now?"), ("user", SPEECH)], "text"),
    ([("user", STEREO)], "audio"),
    ([("user", "!")], None),
    ([("user", SOUND), ("user", SOUND), ("system", "Compare."), ("user", SPEECH)], "text"),
    ([("user", "A dog barks twice, and then a door slams.")], "audio"),
    ([("user", SPEECH), ("user", "Who speaks?")], None),
    ([("user", "Good bye.")], "text"),
]


def talk_case(seed: int, guidance: float, **run: Any) -> Case:
    """``TALK`` as a case; the modalities are taken from there."""
    options = {
        "max_segments": 6,
        "audio": {"temperature": 0.0, "top_k": 20, "guidance": guidance, "max_steps": 24},
        "text": {"temperature": 0.0, "top_k": 20, "guidance": guidance, "max_steps": 14},
    }
    return Case({"seed": seed, "lean": LIVELY, **run}, TALK[0][0], options, [], [], [said for said, _ in TALK[1:]])


CONVERSATIONS = {name: case for name, case in CASES.items() if case.later}
CONVERSATIONS |= {
    "ten_turns_guidance_1": talk_case(3, 1.0),
    "ten_turns_guidance_3": talk_case(27, 3.0),
    "ten_turns_grouped_guidance_1": talk_case(31, 1.0, **GROUPED),
    "ten_turns_grouped_guidance_3": talk_case(9, 3.0, **GROUPED),
}


def our_content(content: Any) -> Any:
    """A message of the reference in the product's form."""
    if isinstance(content, str):
        return content
    sound = Sound(np.atleast_2d(content[0]).T.squeeze(), content[1])
    return Speech(sound) if content[-1] == "speech" else sound


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_turn_equals_the_reference(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CONVERSATIONS[name]
    run = make_run(tmp_path / "run", **case.run)
    export_run(run.folder, tmp_path / "bundle")
    options = case.options
    conversation, turns = Conversation(Reference(run.folder)), [case.messages, *case.later]
    with Model.open(tmp_path / "bundle", threads=1, max_context=2048, verify="never") as model:
        assert model.resources.engine.grouped == ("hidden" in case.run)
        session = model.session(max_segments=options["max_segments"])
        seen = set()
        for index, messages in enumerate(turns):
            modality = options["modality"] if "modality" in options else TALK[index][1]
            expected = conversation.turn(messages, **options | {"modality": modality})
            found = session.ask(
                [(role, our_content(content)) for role, content in messages],
                modality=modality,
                audio=AudioSampling(**options["audio"]),
                text=TextSampling(**options["text"]),
            )
            assert [segment.modality for segment in found] == [segment.modality for segment in expected]
            for ours, theirs in zip(found, expected, strict=True):
                assert theirs.margin > MARGIN
                np.testing.assert_array_equal(ours.rows, theirs.rows)
                assert (ours.finish, ours.text) == (theirs.stop or "max_steps", theirs.text)
                seen.add((ours.modality, ours.finish))
                if theirs.pcm is not None:
                    assert ours.sound is not None
                    np.testing.assert_allclose(ours.sound.samples, theirs.pcm, atol=SAMPLES * np.abs(theirs.pcm).max())
            assert session.turns == index + 1 and session.rows == len(conversation.fed)
        if len(turns) == len(TALK):  # the seeds were chosen for it
            assert {("text", "eot"), ("audio", "eot"), ("text", "max_steps"), ("audio", "max_steps")} <= seen
            assert seen & {("text", "eos"), ("audio", "eos")}


# ---- one conversation in parts ----


@dataclass(frozen=True)
class Said:
    """A turn's arguments."""

    messages: Any
    options: dict[str, Any]


def say(content: Any, modality: str | None = None, seed: int = 0, guidance: float = 3.0, steps: int = 20) -> Said:
    drawn = {"temperature": 0.8, "top_k": 20, "guidance": guidance, "max_steps": steps, "seed": seed}
    options = {"modality": modality, "audio": AudioSampling(**drawn), "text": TextSampling(**drawn)}
    return Said(content, options)


HEARD = Sound(make_sound(0.4)[0], 16000)
SAYINGS = [
    say("A dog barks twice.", "audio", 1),
    say([("user", HEARD), ("user", "What is it?")], "text", 2),
    say("Again!", None, 3),
    say(Speech(HEARD), "text", 4, guidance=1),
    say([("system", "Be loud."), ("user", "A bell rings.")], "audio", 1),
]


@pytest.fixture(scope="module", params=["standard", "grouped"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both dialects of the KV section."""
    folder = tmp_path_factory.mktemp("session")
    make_run(folder / "run", lean=LIVELY, **(GROUPED | {"seed": 31} if request.param == "grouped" else {"seed": 6}))
    return export_run(folder / "run", folder / "bundle").bundle


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with Model.open(bundle, threads=1, max_context=1024, verify="never") as opened:
        yield opened


def ask(session: Session, said: Said) -> list[Segment]:
    return session.ask(said.messages, **said.options)


def conversation(model: Model, sayings: list[Said]) -> list[list[Segment]]:
    """An uninterrupted conversation."""
    session = model.session(max_segments=50)
    return [ask(session, said) for said in sayings]


def assert_same(found: list[Segment], expected: list[Segment]) -> None:
    assert [(segment.modality, segment.finish, segment.text) for segment in found] == [
        (segment.modality, segment.finish, segment.text) for segment in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.rows, theirs.rows)
        if theirs.sound is not None:
            assert ours.sound is not None
            np.testing.assert_array_equal(ours.sound.samples, theirs.sound.samples)


def test_the_sayings_differ_and_the_past_matters(model: Model) -> None:
    """Otherwise the tests below could not fail."""
    turns = conversation(model, SAYINGS)
    for said, segments in zip(SAYINGS[1:], turns[1:], strict=True):
        alone = conversation(model, [said])[0]
        assert [segment.rows.tolist() for segment in alone] != [segment.rows.tolist() for segment in segments]
    assert max(map(len, turns)) > 1


def test_forks_go_their_own_ways_and_leave_the_original_alone(model: Model) -> None:
    first, second, third, fourth, fifth = SAYINGS
    original = model.session(max_segments=50)
    ask(original, first)
    ask(original, second)
    left = original.fork()
    right = original.fork()
    assert left.turns == right.turns == 2 and left.rows == right.rows == original.rows
    assert_same(ask(left, third), conversation(model, [first, second, third])[-1])
    assert_same(ask(right, fifth), conversation(model, [first, second, fifth])[-1])
    ask(original, fourth)
    assert_same(ask(left, fourth), conversation(model, [first, second, third, fourth])[-1])
    assert_same(ask(right, fourth), conversation(model, [first, second, fifth, fourth])[-1])
    assert_same(ask(original, fifth), conversation(model, [first, second, fourth, fifth])[-1])
    assert (left.turns, right.turns, original.turns) == (4, 4, 4)


def test_a_fork_outlives_its_original_and_keeps_its_limits(model: Model) -> None:
    original = model.session(time_limit=77, max_segments=50)
    ask(original, SAYINGS[0])
    fork = original.fork()
    original.truncate(0)
    ask(original, SAYINGS[4])
    del original
    assert fork.limits.seconds == 77
    assert_same(ask(fork, SAYINGS[1]), conversation(model, SAYINGS[:2])[-1])


def test_truncated_turns_were_never_said(model: Model) -> None:
    session = model.session(max_segments=50)
    rows = [0]
    for said in SAYINGS:
        ask(session, said)
        rows.append(session.rows)
    first, second, third, fourth, fifth = SAYINGS
    session.truncate(3)
    assert session.turns == 3 and session.rows == rows[3]
    assert_same(ask(session, fifth), conversation(model, [first, second, third, fifth])[-1])
    session.truncate(1)
    assert_same(ask(session, fourth), conversation(model, [first, fourth])[-1])
    session.truncate(0)
    assert session.turns == session.rows == 0
    for said, expected in zip(SAYINGS, conversation(model, SAYINGS), strict=True):
        assert_same(ask(session, said), expected)
    session.truncate(5)
    assert session.turns == 5


@pytest.mark.parametrize("turns", [-1, 2, 1.0, True, None, "1"])
def test_a_number_of_turns_that_is_not_held_is_refused(model: Model, turns: Any) -> None:
    session = model.session(max_segments=50)
    ask(session, SAYINGS[0])
    with pytest.raises(InputError, match=r"from 0 to 1"):
        session.truncate(turns)
    assert session.turns == 1


def test_memory_that_was_not_cleared_changes_nothing(model: Model) -> None:
    """Rows beyond those held may contain anything: what truncate left there, or uninitialised memory."""
    session = model.session(max_segments=50)
    for keys, values in session.state.sequence._cache:  # type: ignore[attr-defined]
        keys[:], values[:] = np.nan, np.nan
    for said, expected in zip(SAYINGS[:3], conversation(model, SAYINGS[:3]), strict=True):
        assert_same(ask(session, said), expected)


# ---- save and restore ----


def test_a_restored_session_goes_on_in_another_model(model: Model, tmp_path: Path) -> None:
    session = model.session(max_segments=50)
    for said in SAYINGS[:2]:
        ask(session, said)
    session.save(tmp_path / "talk.npz")
    expected = [ask(session, said) for said in SAYINGS[2:]]
    with Model.open(model.bundle.folder, threads=1, max_context=900, verify="never") as other:
        restored = other.restore(tmp_path / "talk.npz", max_segments=50)
        assert (restored.turns, restored.limits.segments) == (2, 50)
        for said, segments in zip(SAYINGS[2:], expected, strict=True):
            assert_same(ask(restored, said), segments)
        restored.truncate(1)
        assert_same(ask(restored, SAYINGS[3]), conversation(model, [SAYINGS[0], SAYINGS[3]])[-1])


@pytest.mark.parametrize("text", [", " * 250_000, '"[{' * 100_000], ids=["commas", "brackets"])
def test_a_text_of_many_marks_is_saved_and_restored(model: Model, tmp_path: Path, text: str) -> None:
    session = model.session()
    session.ask("rain", modality="text", text=TextSampling(max_steps=2))
    session.state.transcript = [(("user", text), ("assistant", "rain"))]
    session.save(tmp_path / "saved.npz")
    assert model.restore(tmp_path / "saved.npz").transcript == session.transcript


session_module = "ualm.runtime.conversation.session"


@pytest.mark.parametrize(
    ("limit", "least", "said"),
    [
        (f"{session_module}.MOST_ABOUT", 100, "what was said takes [0-9]+ bytes, and at most 100 are restored"),
        (f"{session_module}.DECODED_BYTES", 1000, "sound_0 takes 32000 bytes, and at most 1000 are restored"),
        ("ualm.runtime.files.reading.check_values.__defaults__", (5,), "values, and at most 5 are read"),
    ],
    ids=["texts", "sounds", "values"],
)
def test_what_would_not_be_restored_is_not_saved(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, least: Any, said: str
) -> None:
    session = model.session()
    session.ask(Sound(make_sound(0.5)[0], 16000), modality="text", text=TextSampling(max_steps=2))
    session.save(tmp_path / "saved.npz")
    before = (tmp_path / "saved.npz").read_bytes()
    monkeypatch.setattr(limit, least)
    with pytest.raises(SessionError, match=rf"saved\.npz: .*{said}; truncate the session"):
        session.save(tmp_path / "saved.npz")
    assert (tmp_path / "saved.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_sound_that_was_said_is_held_once_and_let_go_of(model: Model) -> None:
    session = model.session()
    heard = Sound(make_sound(0.5)[0], 16000)
    for _ in range(2):
        session.ask(heard, modality="text", text=TextSampling(max_steps=2))
    made = session.ask("rain", modality="audio", audio=AudioSampling(max_steps=12, seed=1))[0].sound
    assert made is not None and made.codes is not None
    forks = [session.fork() for _ in range(2)]
    for each in (session, *forks):
        sounds = [content for _, content in each.transcript if isinstance(content, Sound)]
        assert [id(sound) for sound in sounds[:3]] == [id(heard), id(heard), id(made)]
    assert (made.samples.itemsize, made.codes.nbytes) == (4, 16 * len(made.codes))
    left = weakref.ref(made)
    del made, sounds, forks, each
    session.truncate(2)
    gc.collect()
    assert left() is None


def test_a_path_that_a_restored_session_tells_is_a_path_and_not_opened(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "heard.wav"
    Sound(make_sound(0.5)[0], 16000).save(file)
    session = model.session()
    session.ask([("user", file), ("user", Speech(file))], modality="text", text=TextSampling(max_steps=2))
    session.save(tmp_path / "saved.npz")
    file.unlink()
    restored = model.restore(tmp_path / "saved.npz")
    (_, plain), (_, speech), _ = restored.transcript
    assert plain == file and isinstance(plain, Path)
    assert isinstance(speech, Speech) and speech.content == file
    with pytest.raises(InputError, match=r"heard\.wav: no such file"):
        model.run(restored.transcript)


def test_an_empty_session_can_be_saved(model: Model, tmp_path: Path) -> None:
    model.session().save(tmp_path / "empty.npz")
    restored = model.restore(tmp_path / "empty.npz", max_segments=50)
    assert restored.turns == restored.rows == 0
    assert_same(ask(restored, SAYINGS[0]), conversation(model, SAYINGS[:1])[0])


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    session = model.session(max_segments=50)
    ask(session, SAYINGS[0])
    session.save(tmp_path / "saved.npz")
    return tmp_path / "saved.npz"


def test_any_damage_to_a_saved_session_is_told(model: Model, saved: Path) -> None:
    """A flipped byte anywhere, or a file cut anywhere: refused, or (in bytes that zip ignores) read unchanged."""
    content, rows = saved.read_bytes(), model.restore(saved).state.sequence.save()
    refused = 0
    for place in range(0, len(content), max(len(content) // 200, 1)):
        cut = content[:place]
        flipped = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        for damaged in (cut, flipped):
            saved.write_bytes(damaged)
            try:
                np.testing.assert_array_equal(model.restore(saved).state.sequence.save(), rows)
            except SessionError as error:
                assert str(saved) in str(error) and "save it again" in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert damaged is flipped
    assert refused > 350


@pytest.mark.parametrize("about", ["ends", "rows", "version", "format", "list", "missing", "shape", "dtype"])
def test_a_file_that_is_no_saved_session_is_told(model: Model, saved: Path, about: str) -> None:
    import json

    with np.load(saved) as stored:
        fields, cache = json.loads(stored["about"].tobytes()), stored["cache"]
    changed = {
        "ends": fields | {"ends": [0, -3, fields["ends"][1]]},
        "rows": fields | {"ends": [0, fields["ends"][1] - 1]},
        "version": fields | {"version": 2},
        "format": fields | {"format": "else"},
        "list": [1],
    }
    arrays = {"shape": cache[:, :, :, :, :-1].copy(), "dtype": cache.astype(np.float64)}
    packed = {"about": np.frombuffer(json.dumps(changed.get(about, fields)).encode(), np.uint8)}
    np.savez(saved, **packed, **({} if about == "missing" else {"cache": arrays.get(about, cache)}))
    with pytest.raises(SessionError, match="save it again") as error:
        model.restore(saved)
    assert str(saved) in str(error.value)


def test_what_is_no_file_is_told(model: Model, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"none\.npz: no such file"):
        model.restore(tmp_path / "none.npz")
    with pytest.raises(SessionError, match="not a saved session"):
        model.restore(tmp_path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(SessionError, match="not a saved session"):
        model.restore(tmp_path / "array.npy")


def test_a_saved_session_is_read_without_parsing_python(
    model: Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own parser occasionally fails if several threads use it (3.11: 'AST constructor recursion')."""
    rows = model.restore(saved).rows

    def raced(source: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch (before=45, after=61)")

    monkeypatch.setattr("ast.literal_eval", raced)
    monkeypatch.setattr("builtins.compile", raced)
    assert model.restore(saved).rows == rows


@pytest.mark.parametrize(
    "content", [b"rubbish" * 99, b"\x80\x04K\x01.", b"", b"\x93NUMPY\x01\x00v\x00{}", b"PK\x05\x06" * 9]
)
def test_rubbish_is_told_in_a_line_that_advises_nothing_dangerous(model: Model, saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(SessionError, match=r"not a saved session .* save it again") as error:
        model.restore(saved)
    assert "pickle" not in str(error.value) and "\n" not in str(error.value)


def test_an_array_that_says_to_be_larger_than_its_file_takes_no_memory(model: Model, saved: Path) -> None:
    content = saved.read_bytes()
    found = re.search(rb"'shape': \((\d+), 2, \d+, \d+, \d+\), \} {9}", content)
    assert found is not None
    layers = found[1] + b"0" * 9
    larger = content.replace(found[0], found[0].replace(b"(" + found[1], b"(" + layers)[:-9])
    saved.write_bytes(larger)
    with pytest.raises(SessionError, match=r"not a saved session .*bytes"):
        model.restore(saved)


def test_a_cache_that_is_not_finite_is_told(model: Model, saved: Path) -> None:
    with np.load(saved) as stored:
        about, cache = stored["about"], stored["cache"]
    cache[0, 0, 0, 0, 0] = np.nan
    np.savez(saved, about=about, cache=cache)
    with pytest.raises(SessionError, match="its cache holds NaN or infinity"):
        model.restore(saved)


def test_what_is_no_damage_is_not_called_damage(model: Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.with_name("loop.npz").symlink_to("loop.npz")
    with pytest.raises(SessionError, match=r"loop.npz: cannot be read .*symbolic links.*; check its name"):
        model.restore(saved.with_name("loop.npz"))

    def broken(*arguments: object) -> None:
        raise TypeError("a fault of ours")

    monkeypatch.setattr("ualm.runtime.conversation.session.json.loads", broken)
    with pytest.raises(TypeError, match="a fault of ours"):
        model.restore(saved)


def test_a_session_of_another_bundle_is_told(model: Model, tiny_bundle: Path, saved: Path) -> None:
    with (
        Model.open(tiny_bundle, threads=1, max_context=256, verify="never") as other,
        pytest.raises(SessionError, match=rf"saved with another bundle \({model.identity[:12]}\)"),
    ):
        other.restore(saved)


def test_a_context_that_cannot_hold_the_session_is_told(model: Model, saved: Path) -> None:
    rows = model.restore(saved).rows
    for context, fits in ((rows, True), (rows - 1, False)):
        with Model.open(model.bundle.folder, threads=1, max_context=context, verify="never") as other:
            if fits:
                assert other.restore(saved).rows == rows
                continue
            with pytest.raises(ContextError, match=rf"saved\.npz: .*{rows} rows.*max_context = {context}"):
                other.restore(saved)


def test_a_failed_save_leaves_the_old_file(model: Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, before = model.restore(saved, max_segments=50), saved.read_bytes()
    ask(session, SAYINGS[1])

    def full(file: IO[bytes], **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OutputError, match="No space left"):
            session.save(saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]
    session.save(saved)
    assert model.restore(saved).turns == 2
    with pytest.raises(OutputError, match="folder"):
        session.save(saved.parent / "no" / "such" / "folder.npz")


# ---- seeds ----


def test_equal_seeds_repeat_a_turn_and_others_do_not(model: Model) -> None:
    session = model.session(max_segments=50)
    once = ask(session, SAYINGS[0])
    session.truncate(0)
    assert_same(ask(session, SAYINGS[0]), once)
    assert_same(ask(model.session(max_segments=50), SAYINGS[0]), once)
    session.truncate(0)
    drawn = [ask(model.session(max_segments=50), say("A dog barks twice.", "audio", seed)) for seed in range(4)]
    assert len({segments[0].rows.tobytes() for segments in drawn}) == 4


@pytest.mark.parametrize("said", SAYINGS, ids=range(5))
def test_a_first_turn_is_what_run_gives(model: Model, said: Said) -> None:
    messages = said.messages if isinstance(said.messages, list) else [("user", said.messages)]
    assert_same_but_for_rounding(
        model.session(max_segments=50).ask(messages, **said.options),
        model.run(messages, max_segments=50, **said.options),
    )


def assert_same_but_for_rounding(found: list[Segment], expected: list[Segment]) -> None:
    """Sounds decoded in pieces and at once: float32 sums are split differently, 1e-6 of the peak; 1e-5 is allowed."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.rows, theirs.rows)
        assert (ours.modality, ours.finish, ours.text) == (theirs.modality, theirs.finish, theirs.text)
        if theirs.sound is not None:
            assert ours.sound is not None
            np.testing.assert_array_equal(ours.sound.codes, theirs.sound.codes)
            peak = np.abs(theirs.sound.samples).max()
            np.testing.assert_allclose(ours.sound.samples, theirs.sound.samples, rtol=0, atol=1e-5 * peak)


def test_what_the_model_said_can_be_told_to_another_session(model: Model) -> None:
    """An assistant's sound is passed on as its codes."""
    sound = ask(model.session(max_segments=50), SAYINGS[0])[0].sound
    session = model.session(max_segments=50)
    messages = [("user", "A dog."), ("assistant", sound), ("user", "Louder!")]
    told = session.ask(messages, **SAYINGS[0].options)
    assert_same_but_for_rounding(told, model.run(messages, max_segments=50, **SAYINGS[0].options))


# ---- events ----


def assert_grammar(events: list[Event], rate: int) -> list[Segment]:
    """Check (SegmentStarted (TextDelta* | SoundChunk*) SegmentEnded)* TurnEnded, and their contents; returns the
    segments."""
    *events, last = events
    assert isinstance(last, TurnEnded)
    segments: list[Segment] = []
    while events:
        started = events.pop(0)
        assert isinstance(started, SegmentStarted) and started.segment == len(segments)
        pieces: list[Any] = []
        while not isinstance(events[0], SegmentEnded):
            piece = events.pop(0)
            assert isinstance(piece, TextDelta if started.modality == "text" else SoundChunk)
            assert piece.segment == len(segments)
            pieces.append(piece)
        ended = events.pop(0)
        assert isinstance(ended, SegmentEnded) and ended.segment == len(segments)
        result = ended.result
        assert result.modality == started.modality
        if started.modality == "text":
            assert all(piece.text for piece in pieces)
            assert "".join(piece.text for piece in pieces) == result.text and result.sound is None
        else:
            start = 0
            for piece in pieces:
                assert piece.samples.dtype == np.float32 and piece.samples.ndim == 1 and len(piece.samples)
                assert (piece.start, piece.sample_rate) == (start, rate)
                start += len(piece.samples)
            assert result.sound is not None and result.text is None
            np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), result.sound.samples)
        segments.append(result)
    assert all(segment.finish == "eot" for segment in segments[:-1])
    if last.reason != "cancelled":
        assert segments[-1].finish == last.reason
        assert list(last.seconds) == ["hear", "prefill", "first", "total"]
        assert list(last.seconds.values()) == sorted(last.seconds.values())
    return segments


@pytest.fixture(scope="module")
def leaning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Model]]:
    """Models that stop by eos, by eot, never, in the middle of a word, ..."""
    leans: list[dict[str, float]] = [
        ABLE,
        ABLE | {"eos": 3.0, "eot": 3.0},
        ABLE | {"eot": 4.0, "text": 6.0, "pad": 1.0},
        ABLE | {"eos": 1.0, "eot": 4.0, "audio": 6.0, "padded_text": 3.0},
    ]
    models = []
    for seed, lean in enumerate(leans):
        folder = tmp_path_factory.mktemp("leaning")
        make_run(folder / "run", seed=seed, lean=lean, text_size=360)
        bundle = export_run(folder / "run", folder / "bundle").bundle
        models.append(Model.open(bundle, threads=1, max_context=1024, verify="never"))
    yield models
    for model in models:
        model.close()


@pytest.fixture
def able() -> Iterator[None]:
    with choosing_what_it_can():
        yield


@pytest.mark.usefixtures("able")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_events_come_in_order_and_hold_what_run_gives(leaning: list[Model], data: st.DataObject) -> None:
    model = leaning[data.draw(st.integers(0, 3), "lean")]
    texts, sounds = st.sampled_from(["!", "A dog barks.", "é🐕"]), st.sampled_from([HEARD, Speech(HEARD)])
    content = st.tuples(st.sampled_from(["user", "system"]), st.one_of(texts, sounds))
    messages = data.draw(st.lists(content, min_size=1, max_size=3), "messages")

    def drawn(shortest: int) -> dict[str, Any]:
        return data.draw(
            st.fixed_dictionaries(
                {
                    "temperature": st.sampled_from([0.0, 0.8, 1.5]),
                    "top_k": st.sampled_from([None, 1, 20]),
                    "top_p": st.sampled_from([0.5, 1.0]),
                    "guidance": st.sampled_from([1.0, 3.0]),
                    "max_steps": st.integers(shortest, 90),
                    "seed": st.integers(0, 2**64 - 1),
                }
            )
        )

    options: dict[str, Any] = {
        "modality": data.draw(st.sampled_from([None, "audio", "text"]), "modality"),
        "audio": AudioSampling(**drawn(8)),
        "text": TextSampling(**drawn(1)),
    }
    most = data.draw(st.integers(1, 4), "max_segments")
    expected = model.run(messages, max_segments=most, **options)
    session, events = model.session(max_segments=most), []
    try:
        for event in session.turn(messages, **options):
            events.append(event)
    except SegmentLimitError as error:
        assert expected[-1].finish == "eot" and len(expected) == most and session.turns == 0
        assert_same_but_for_rounding(error.segments, expected)
        events.append(TurnEnded("cancelled", {}))
    assert_same_but_for_rounding(assert_grammar(events, 16000), expected)


def test_text_and_sound_come_while_they_are_made(leaning: list[Model]) -> None:
    said = say("A dog barks.", "audio", steps=100, guidance=1)
    turn = leaning[0].session().turn(said.messages, **said.options, profile="first_sound")
    chunks = [event for event in turn if type(event) is SoundChunk]
    assert len(chunks) > 1 and chunks[0].start == 0
    said = replace(said, options=said.options | {"modality": "text"})
    assert sum(type(event) is TextDelta for event in leaning[0].session().turn(said.messages, **said.options)) > 5


def test_a_saved_session_beyond_the_memory_limit_is_refused(model: Model, saved: Path) -> None:
    needed = model.restore(saved).rows * model.resources.engine.bytes_per_row
    assert model.restore(saved, memory_limit=needed).turns == model.restore(saved).turns
    with pytest.raises(MemoryLimitError, match=rf"need {needed} bytes.*memory_limit = {needed - 1}"):
        model.restore(saved, memory_limit=needed - 1)
