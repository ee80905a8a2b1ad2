"""A bundle says what it knows, and a request for something else gets one notice, never on standard output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from support.bundles import changed_manifest
from support.choosing import choosing_what_it_can
from support.runs import make_run
from support.sounds import make_sound
from support.told import but_cut
from ualm.export.bundle import export_run, read_knows
from ualm.export.knows import write_knows
from ualm.runtime import BundleError, ExportError, InputError, Model
from ualm.runtime.bundle import packaged
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.knowledge import MOST_ABOUT, MOST_LETTERS, MOST_WORDS, STOP_WORDS, Knowledge

Command = Callable[..., tuple[int, str, str]]
SHORT = ("--threads", 1, "--max-seconds", 0.05)
KNOWS = Knowledge("weather: rain and storms", ("rain", "storm", "hi-hat", "C5", "happy", "crash"))
LINE = "this model knows weather: rain and storms; nothing in {!r} is about that; the result will be something else\n"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with recorded knowledge."""
    return changed_manifest(tiny_bundle, tmp_path / "knowing", lambda document: document.update(knows=KNOWS.to_json()))


# ---- requests within its knowledge ----


@pytest.mark.parametrize(
    "prompt",
    [
        "rain",
        "Rain on a tin roof.",
        "some RAIN, please!",
        "two storms",
        "(storm)",
        "the storm's end",
        "the storm\u2019s end",
        "crashes",
        "hi-hats",
        "rain-like noise",
        "play c5 now",
        "what is that?",  # nothing in it is outside
        "again, and once more: two times 3",
        "",
    ],
)
def test_a_prompt_that_shares_a_word_is_inside(prompt):
    assert not KNOWS.outside(prompt)


@pytest.mark.parametrize(
    "prompt",
    ["a dog barks", "the train is on the drain", "stormy", "rains2", "hi", "hat", "犬が吠える", "C 5 dogs", "7 dogs"],
)
def test_a_prompt_that_shares_none_is_outside(prompt):
    assert KNOWS.outside(prompt)


def test_stop_words_count_on_neither_side():
    knows = Knowledge("everything", ("the", "is", "rain"))
    assert knows.outside("the dog is on the roof") and {"the", "is", "on"} <= STOP_WORDS
    assert not knows.outside("a")


# ---- what a bundle may record ----


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("rain", "'rain' is not an object"),
        ({"about": "x"}, "words is missing"),
        ({"words": ["x"]}, "about is missing"),
        ({"about": "x", "words": ["x"], "more": 1}, "more: unknown; known: about, words"),
        ({"about": " ", "words": ["x"]}, "about = ' ' is not a text"),
        ({"about": 3, "words": ["x"]}, "about = 3 is not a text"),
        ({"about": "a\nb", "words": ["x"]}, "line breaks or control characters"),
        ({"about": "a\x1b[2Jb", "words": ["x"]}, "line breaks or control characters"),
        ({"about": "x" * (MOST_ABOUT + 1), "words": ["x"]}, "about has 301 characters, and 300 are allowed"),
        ({"about": "x", "words": []}, "words = [] is not a list of words"),
        ({"about": "x", "words": "rain"}, "words = 'rain' is not a list of words"),
        ({"about": "x", "words": ["rain", "two words"]}, "words[1] = 'two words' is not a single word"),
        ({"about": "x", "words": ["rain", 3]}, "words[1] = 3 is not a single word"),
        ({"about": "x", "words": ["x" * (MOST_LETTERS + 1)]}, "has 41 letters, and 40 are allowed"),
        ({"about": "x", "words": ["x"] * (MOST_WORDS + 1)}, "words: 4097 of them, and 4096 are allowed"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_in_a_run_and_in_a_bundle(tiny_bundle, tmp_path, values, said):
    bundle = changed_manifest(tiny_bundle, tmp_path / "bundle", lambda document: document.update(knows=values))
    with pytest.raises(BundleError) as refused:
        Bundle(bundle)
    assert "(knows: " in str(refused.value) and said in str(refused.value) and "\n" not in str(refused.value)
    if isinstance(values, dict):
        (tmp_path / "knows.json").write_text(json.dumps(values))
        with pytest.raises(ExportError) as refused_too:
            read_knows(tmp_path / "knows.json")
        assert str(tmp_path / "knows.json") in str(refused_too.value) and said in str(refused_too.value)


def test_a_stop_word_in_a_run_is_refused(tmp_path):
    (tmp_path / "knows.json").write_text(json.dumps({"about": "x", "words": ["rain", "The"]}))
    with pytest.raises(ExportError, match="words: 'The' is a stop word, which never counts; leave it out"):
        read_knows(tmp_path / "knows.json")


def test_an_export_carries_it_into_the_bundle(tmp_path):
    run = make_run(tmp_path / "run")
    config = next(run.folder.rglob("train.yaml"))
    config.with_name("knows.json").write_text(json.dumps(KNOWS.to_json()))
    made = export_run(run.folder, tmp_path / "bundle").bundle
    assert Bundle(made, verify="always").manifest.knows == KNOWS


def test_an_old_bundle_says_nothing_and_nothing_is_outside(tiny_bundle):
    assert "knows" not in json.loads((tiny_bundle / "manifest.json").read_text())
    with Model.open(tiny_bundle, threads=1, max_context=64) as model:
        assert model.knows is None and not model.outside("a dog barks")


def test_python_may_ask(bundle):
    with Model.open(bundle, threads=1, max_context=64) as model:
        assert model.knows == KNOWS
        assert model.outside("a dog barks") and not model.outside("rain")
        with pytest.raises(InputError, match="prompt = 3: give a text"):
            model.outside(3)  # type: ignore[arg-type]


# ---- existing bundles ----


def test_it_is_put_into_a_bundle_and_out_again(tiny_bundle, tmp_path):
    folder = changed_manifest(tiny_bundle, tmp_path / "bundle", lambda document: None)
    before = Bundle(folder).digest
    (tmp_path / "knows.json").write_text(json.dumps(KNOWS.to_json()))
    command = [sys.executable, "-m", "ualm.export.knows", str(folder)]
    for said in ("written", "unchanged"):
        done = subprocess.run([*command, str(tmp_path / "knows.json")], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}: {said}\n", "")
    opened = Bundle(folder, verify="always")
    assert opened.manifest.knows == KNOWS and opened.digest != before
    assert write_knows(folder, None) and Bundle(folder).digest == before
    done = subprocess.run([*command, str(tmp_path / "none.json")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, f"knows: {tmp_path / 'none.json'}: no such file\n")


def test_inspect_shows_it(ualm: Command, bundle, tiny_bundle):
    assert json.loads(ualm("inspect", bundle, "--json")[1])["knows"] == KNOWS.to_json()
    out = ualm("inspect", bundle)[1]
    assert "knows\n  about    weather: rain and storms\n  6 words  rain, storm, hi-hat, C5, happy, crash\n" in out
    assert json.loads(ualm("inspect", tiny_bundle, "--json")[1])["knows"] is None
    assert "\nknows\n" not in ualm("inspect", tiny_bundle)[1]


# ---- what the verbs say ----


@pytest.fixture
def verbs(tmp_path: Path) -> dict[str, Callable[[str], tuple[object, ...]]]:
    heard = tmp_path / "heard.wav"
    soundfile.write(heard, make_sound(0.1).T, 16000)
    return {
        "generate": lambda prompt: (prompt, "-o", tmp_path / "a.wav", *SHORT),
        "ask": lambda prompt: (heard, prompt, "--threads", 1, "--max-tokens", 4),
        "reason": lambda prompt: (prompt, "--max-tokens", 4, *SHORT),
    }


def test_generate_ask_and_reason_say_it_on_standard_error(ualm: Command, bundle, tiny_bundle, verbs):
    with choosing_what_it_can():
        for verb, arguments in verbs.items():
            status, out, err = ualm(verb, *arguments("a dog  barks"), "-b", bundle)
            assert (status, but_cut(err)) == (0, "ualm: " + LINE.format("a dog barks")), verb
            assert "knows" not in out
            assert but_cut(ualm(verb, *arguments("rain"), "-b", bundle)[2]) == "", verb
            found = [
                json.loads(ualm(verb, *arguments(prompt), "-b", folder, "--json")[1])["outside"]
                for prompt, folder in (("a dog barks", bundle), ("rain", bundle), ("a dog barks", tiny_bundle))
            ]
            assert found == [True, False, None], verb


def test_a_dialogue_says_it_once_also_about_a_later_line(ualm: Command, bundle, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\na cat\n"))
    with choosing_what_it_can():
        status, out, err = ualm(
            "reason", "rain", "-", "--mode", "dialogue", "-b", bundle, "--max-tokens", 4, *SHORT, "--json"
        )
    assert (status, but_cut(err)) == (0, "ualm: " + LINE.format("a dog"))
    about = json.loads(out)
    assert about["outside"] is True and about["prompts"] == ["rain", "a dog", "a cat"]


def test_chat_says_it_once_a_conversation(ualm: Command, bundle, monkeypatch):
    lines = "rain\na dog barks\na cat\n"
    with choosing_what_it_can():
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        status, out, err = ualm("chat", "-b", bundle, "--max-tokens", 4, *SHORT)
        assert (status, err.count("this model knows")) == (0, 1) and LINE.format("a dog barks") in err
        assert "this model knows" not in out
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        events = [
            json.loads(line) for line in ualm("chat", "-b", bundle, "--max-tokens", 4, *SHORT, "--json")[1].splitlines()
        ]
    assert events[0]["type"] == "opened" and events[0]["knows"] == KNOWS.about
    assert [event for event in events if event["type"] == "outside"] == [{"type": "outside", "prompt": "a dog barks"}]


def test_a_long_or_hostile_prompt_stays_a_line(ualm: Command, bundle, verbs):
    err = ualm("generate", *verbs["generate"]("\x1b[2J dogs\n" * 50), "-b", bundle)[2]
    err = but_cut(err)
    assert err.count("\n") == 1 and "\x1b" not in err and " ..." in err and len(err) < 300


def test_the_help_tells_what_the_model_within_ualm_knows(ualm: Command, bundle, tiny_bundle, monkeypatch):
    for verb in ("generate", "ask"):
        monkeypatch.setattr(packaged, "PACKAGED", bundle)
        told = "which runs where no bundle is named, knows weather: rain and storms."
        assert told in " ".join(ualm(verb, "--help")[1].split())
        monkeypatch.setenv("UALM_BUNDLE", str(tiny_bundle))  # then another model runs
        assert "weather" not in ualm(verb, "--help")[1]
        monkeypatch.delenv("UALM_BUNDLE")
        for other in (tiny_bundle, bundle / "none"):
            monkeypatch.setattr(packaged, "PACKAGED", other)
            status, out, err = ualm(verb, "--help")
            assert (status, but_cut(err)) == (0, "") and "comes with ualm, which" not in out


def test_the_greeting_at_a_terminal_has_it(ualm: Command, bundle, monkeypatch):
    stdin = io.StringIO("")
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)
    err = ualm("chat", "-b", bundle, *SHORT)[2]
    assert err.splitlines()[:3] == [
        f"{bundle}: opened; /help lists the commands",
        "this model knows weather: rain and storms",
        "it hears a sound that it made only when you hand it over: /hear, then ask",
    ]
    assert "opened" not in ualm("chat", "-b", bundle, "-q", *SHORT)[2]


def test_quiet_verbs_and_chats_say_nothing_of_it(ualm: Command, bundle, verbs, monkeypatch):
    assert ualm("generate", *verbs["generate"]("a dog barks"), "-b", bundle, "-q")[2] == ""
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog barks\n"))
    with choosing_what_it_can():
        assert "this model knows" not in ualm("chat", "-b", bundle, "-q", "--max-tokens", 4, *SHORT)[2]


def test_what_the_model_within_ualm_knows_stands_wherever_one_begins(ualm: Command, monkeypatch):
    root = Path(__file__).resolve().parents[3]
    within = root / "runtime" / "tiny"
    if not within.is_dir():
        pytest.skip("this build brings no model")
    monkeypatch.setattr(packaged, "PACKAGED", within)
    knows = Bundle(within, verify="never").manifest.knows
    assert knows is not None and knows.about.startswith("renders of one soundfont: ")
    readme = (root / "README.md").read_text(encoding="utf-8")
    before_the_first_command = readme[: readme.index("```bash")].rpartition("## ")[2]
    told = [before_the_first_command, ualm("generate", "--help")[1], ualm("ask", "--help")[1]]
    for each in told:
        assert knows.about.rstrip(".") in " ".join(each.split())
