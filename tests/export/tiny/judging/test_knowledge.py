"""What ualm-tiny claims to know: the words of its own domain and prompts, in its run, its bundle and its README."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from ualm.export.knows import write_knows
from ualm.export.tiny import __main__ as tiny
from ualm.export.tiny.corpus.conversations import TASKS
from ualm.export.tiny.corpus.domain import DRUMS, INSTRUMENTS, NOTES, random_clip
from ualm.export.tiny.corpus.language import PHRASES, exact_prompt, loose_prompt, question_and_answer, text_only
from ualm.export.tiny.training.run_folder import knowledge
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.knowledge import Knowledge
from ualm.runtime.bundle.packaged import packaged_bundle

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return knowledge()


@pytest.mark.parametrize(
    "prompt",
    [
        "something cheerful on a marimba",
        "play something",
        "what is played?",
        "how fast is it?",
        "which note is higher, C5 or E5?",
        "hello",
        "hello, who are you?",
        "a trumpet plays C5 and E5",
        "a trumpet plays G5",
        "snare drums!",
    ],
)
def test_what_it_was_trained_on_is_inside(known, prompt):
    assert not known.outside(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog barks",
        "a dog barks twice",
        "rain on a tin roof",
        "tell me about physics",
        "a cat in a hat",
        "two dogs bark",
    ],
)
def test_what_it_never_saw_is_outside(known, prompt):
    assert known.outside(prompt)


def test_no_prompt_of_the_training_is_outside(known):
    rng = random.Random(7)
    assert TASKS  # the tasks draw their prompts from these
    for _ in range(1500):
        clip = random_clip(rng)
        drawn = (exact_prompt(clip, rng), loose_prompt(rng)[0], question_and_answer(clip, rng)[0], text_only(rng)[0])
        assert [prompt for prompt in drawn if known.outside(prompt)] == []
    said = [*PHRASES["open"], *(phrase for change in PHRASES["change"].values() for phrase in change)]
    assert [phrase for phrase in said if known.outside(phrase.format(a="a", sound="piano"))] == []
    for name in (*INSTRUMENTS, *DRUMS, *NOTES.values()):
        assert not known.outside(name)


def test_it_is_said_of_the_domain_as_it_is(known):
    assert known.about.startswith("renders of one soundfont: eight instruments from C5 to C6, ten drums, up to three")
    assert (len(INSTRUMENTS), len(DRUMS), NOTES[min(NOTES)], NOTES[max(NOTES)]) == (8, 10, "C5", "C6")
    assert Knowledge.from_json(known.to_json()) == known


def test_the_packaged_bundle_and_the_readme_say_the_same(known):
    folder = packaged_bundle()
    assert folder is not None
    mend = "write it with: python -m ualm.export.tiny knows runtime/tiny"
    assert Bundle(folder, verify="never").manifest.knows == known, mend
    assert known.about in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_recipe_records_it_in_an_existing_bundle(known, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(str(packaged_bundle()), tmp_path / "bundle"))
    write_knows(folder, None)
    monkeypatch.setattr(sys, "argv", ["tiny", "knows", str(folder)])
    for said in ("written", "unchanged"):
        tiny.main()
        assert capsys.readouterr().out == f"{folder}: {said}\n"
        assert Bundle(folder, verify="always").manifest.knows == known
