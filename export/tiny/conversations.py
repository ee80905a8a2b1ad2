"""The tasks that the tiny model learns, each as whole conversations."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from .attempts import attempt
from .domain import DRUMS, INSTRUMENTS, SLOTS, Clip, held_out, random_clip, trained
from .language import (
    PHRASES,
    Wish,
    article,
    describe,
    exact_prompt,
    loose_prompt,
    question_and_answer,
    random_mood,
    review,
    rich_caption,
    text_only,
    worded,
)
from .writer import Example, Studio, Writer


def make_example(studio: Studio, task: str, rng: random.Random) -> Example:
    """One example of a task of ``TASKS``."""
    writer = Writer(studio, rng, task)
    TASKS[task](writer)
    return writer.example()


def _request(rng: random.Random, *, loose: float) -> tuple[str, Clip, bool]:
    """A prompt, a clip that obeys it, and whether the prompt left anything open."""
    if rng.random() < loose:
        prompt, wish = loose_prompt(rng)
        return worded(prompt, rng), trained(lambda: wish.sample(rng)), True
    clip = random_clip(rng, counts=(0.24, 0.36, 0.40), drums=0.16)
    return worded(exact_prompt(clip, rng), rng), clip, False


def _direct(w: Writer) -> None:
    """Text to sound. What a loose prompt leaves open is better settled by a caption: the choice is not learnt here."""
    prompt, clip, loose = _request(w.rng, loose=0.12)
    w.user(prompt)
    w.plays(w.studio.bank.ids(clip), choice=0.0 if loose else 1.0)


def _enriched(w: Writer) -> None:
    prompt, clip, loose = _request(w.rng, loose=0.5)
    w.user(prompt)
    w.says(rich_caption(clip), choice=1.0 if loose else 0.0)
    w.plays(w.studio.bank.ids(clip))


def _hearing(w: Writer) -> None:
    clip = random_clip(w.rng, counts=(0.26, 0.32, 0.42), drums=0.15)
    question, answer = question_and_answer(clip, w.rng)
    w.user_sound(w.studio.bank.ids(clip), padded=True)
    w.user(worded(question, w.rng))
    w.says(answer)


def _text_only(w: Writer) -> None:
    question, answer = text_only(w.rng)
    w.user(worded(question, w.rng))
    w.says(answer)


def _dialogue(w: Writer) -> None:
    rng, clip = w.rng, None
    start = rng.random()
    if start < 0.5:
        clip = _asked(w)
    elif start < 0.8:
        prompt, clip, loose = _request(rng, loose=0.6)
        w.user(prompt)
        w.says(rich_caption(clip), choice=1.0 if loose else 0.0)
    else:
        prompt, clip, _ = _request(rng, loose=0.0)
        w.user(prompt)
    w.plays(w.studio.bank.ids(clip))
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.15:
            w.user(rng.choice(PHRASES["recall"]))
            w.says(describe(clip))
            continue
        words, clip = _changed(clip, rng)
        w.user(worded(words, rng))
        w.says(rich_caption(clip))
        w.plays(w.studio.bank.ids(clip))


def _asked(w: Writer) -> Clip:
    """A request that names no instrument, the question, the answer and the caption."""
    rng = w.rng
    sound = rng.choice(list(INSTRUMENTS))
    words = {"a": article(sound), "sound": sound}
    if rng.random() < 0.5:
        mood, wish = random_mood(rng, sound)
        w.user(worded(rng.choice(PHRASES["open_mood"]).format(mood=mood), rng))
        w.says(PHRASES["ask_sound"])
        w.user(worded(rng.choice(PHRASES["answer_sound"]).format(**words), rng))
    else:
        w.user(worded(rng.choice(PHRASES["open"]), rng))
        w.says(PHRASES["ask_both"])
        tempo = rng.choice(["", "quickly", "slowly"])
        words |= {"adverb": f" {tempo}" if tempo else "", "adverb_comma": f", {tempo}" if tempo else ""}
        words |= {"adverb_first": f"{tempo} " if tempo else ""}
        w.user(worded(rng.choice(PHRASES["answer_both"]).format(**words), rng))
        wish = Wish(sound, tempo={"quickly": "quick", "slowly": "slow"}.get(tempo, "moderate"), least=2)
    clip = trained(lambda: wish.sample(rng))
    w.says(rich_caption(clip))
    return clip


def changes(clip: Clip) -> list[str]:
    """The changes that make sense for a clip, by their names in phrases.json."""
    found = ["sound", "sound", "again"]
    if len(clip.notes) > 1:
        found += ["slower"] * 2 * (clip.tempo != "slow") + ["faster"] * 2 * (clip.tempo != "quick")
        found += ["backwards"] * (not clip.is_drum)
    return found


def apply_change(clip: Clip, change: str, sound: str = "") -> Clip:
    """The clip that a later turn asks for."""
    tempos = list(SLOTS)
    notes = clip.notes[::-1] if change == "backwards" else clip.notes
    step = {"slower": 1, "faster": -1}.get(change, 0)
    return Clip(sound or clip.sound, notes, tempos[tempos.index(clip.tempo) + step] if step else clip.tempo)


def _changed(clip: Clip, rng: random.Random) -> tuple[str, Clip]:
    while True:
        change = rng.choice(changes(clip))
        others = [name for name in (DRUMS if clip.is_drum else INSTRUMENTS) if name != clip.sound]
        sound = rng.choice(others) if change == "sound" else ""
        wanted = apply_change(clip, change, sound)
        if not held_out(wanted):
            words = {"a": article(sound), "sound": sound} if sound else {}
            return rng.choice(PHRASES["change"][change]).format(**words), wanted


def _reflection(w: Writer) -> None:
    rng = w.rng
    if rng.random() < 0.25:
        prompt, wish = loose_prompt(rng)
        prompt, wanted = worded(prompt, rng), trained(lambda: wish.sample(rng))
        choice = 1.0
    else:
        wanted, choice = random_clip(rng, counts=(0.4, 0.32, 0.28), drums=0.45), 0.0
        prompt = worded(exact_prompt(wanted, rng), rng)
    w.user(prompt)
    w.says(rich_caption(wanted), choice=choice)
    intended = w.studio.bank.ids(wanted)
    for _ in range(2):
        found, frames = attempt(w.studio, wanted, rng)
        # a try that strayed may pass as right, and is still not how the sound is made
        w.plays(frames, learn=np.array_equal(frames, intended))
        w.user_sound(frames)
        w.user(PHRASES["reflection"]["check"])
        text, matches = review(found, wanted)
        w.says(text, verdict=True)
        if matches:
            return
        if rng.random() < 0.8:
            break
    w.plays(intended)


TASKS: dict[str, Callable[[Writer], None]] = {
    "direct": _direct,
    "enriched": _enriched,
    "hearing": _hearing,
    "text": _text_only,
    "dialogue": _dialogue,
    "reflection": _reflection,
}
