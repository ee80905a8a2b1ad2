"""The tasks that the tiny model learns, each as complete conversations."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from .attempts import attempt, reflection_held_out
from .domain import DRUMS, INSTRUMENTS, SLOTS, Clip, held_out, in_share, random_clip, trained
from .language import (
    PHRASES,
    Wish,
    article,
    describe,
    exact_prompt,
    loose_prompt,
    question_and_answer,
    random_mood,
    random_topic,
    review,
    rich_caption,
    text_only,
    worded,
)
from .writer import Example, Studio, Writer

#: Percent of the changes in dialogues, and of the pairs of an opening and an instrument, that training never sees.
CHANGES_HELD_OUT_PERCENT = 20


def make_example(studio: Studio, task: str, rng: random.Random) -> Example:
    """One example of a task of ``TASKS``."""
    writer = Writer(studio, rng, task)
    TASKS[task](writer)
    return writer.example()


def _request(rng: random.Random, *, loose: float) -> tuple[str, Clip, bool]:
    """A prompt, a clip that satisfies it, and whether the prompt left anything unspecified."""
    if rng.random() < loose:
        prompt, wish = loose_prompt(rng)
        return worded(prompt, rng), trained(lambda: wish.sample(rng)), True
    clip = random_clip(rng, counts=(0.24, 0.36, 0.40), drums=0.16)
    return worded(exact_prompt(clip, rng), rng), clip, False


def _direct(w: Writer) -> None:
    """Text to sound. What a loose prompt leaves unspecified is better decided by a caption: that choice is not learnt
    here."""
    prompt, clip, loose = _request(w.rng, loose=0.12)
    w.user(prompt)
    w.plays(w.studio.bank.ids(clip), choice=0.0 if loose else 1.0)


def _enriched(w: Writer) -> None:
    prompt, clip, loose = _request(w.rng, loose=0.5)
    w.user(prompt)
    w.says(rich_caption(clip), choice=1.0 if loose else 0.0)
    w.plays(w.studio.bank.ids(clip))


def _hearing(w: Writer) -> None:
    topic = random_topic(w.rng)
    # a single event has no tempo
    counts = (0.06, 0.34, 0.60) if topic == "tempo" else (0.28, 0.32, 0.40)
    clip = random_clip(w.rng, counts=counts, drums=0.15)
    question, answer = question_and_answer(clip, w.rng, topic)
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
    if start < 0.4:
        clip = _asked(w)
    elif start < 0.65:
        prompt, clip, loose = _request(rng, loose=0.6)
        w.user(prompt)
        w.says(rich_caption(clip), choice=1.0 if loose else 0.0)
    else:
        prompt, clip, _ = _request(rng, loose=0.0)
        w.user(prompt)
    w.plays(w.studio.bank.ids(clip))
    for _ in range(rng.choice((1, 2, 2))):
        if rng.random() < 0.15:
            w.user(rng.choice(PHRASES["recall"]))
            w.says(describe(clip))
            continue
        changed = random_change(clip, rng)
        if changed is None:
            break
        words, clip = changed
        w.user(worded(words, rng))
        w.says(rich_caption(clip))
        w.plays(w.studio.bank.ids(clip))


def _asked(w: Writer) -> Clip:
    """A request that names no instrument, the question, the answer and the caption."""
    rng = w.rng
    if rng.random() < 0.5:
        sound = rng.choice(list(INSTRUMENTS))
        words = {"a": article(sound), "sound": sound}
        mood, wish = random_mood(rng, sound)
        w.user(worded(rng.choice(PHRASES["open_mood"]).format(mood=mood), rng))
        w.says(PHRASES["ask_sound"])
        w.user(worded(rng.choice(PHRASES["answer_sound"]).format(**words), rng))
    else:
        opening, sound = opening_and_sound(rng)
        words = {"a": article(sound), "sound": sound}
        w.user(worded(opening, rng))
        w.says(PHRASES["ask_both"])
        tempo = rng.choice(["", "quickly", "slowly"])
        words |= {"adverb": f" {tempo}" if tempo else "", "adverb_comma": f", {tempo}" if tempo else ""}
        words |= {"adverb_first": f"{tempo} " if tempo else ""}
        w.user(worded(rng.choice(PHRASES["answer_both"]).format(**words), rng))
        wish = Wish(sound, tempo={"quickly": "quick", "slowly": "slow"}.get(tempo, "moderate"), least=2)
    clip = trained(lambda: wish.sample(rng))
    w.says(rich_caption(clip))
    return clip


def opening_and_sound(rng: random.Random, *, held: bool = False) -> tuple[str, str]:
    """A request that specifies nothing, and the instrument that will be chosen for it.

    ``held``: one of the pairs held out of training; otherwise none of them.
    """
    while True:
        opening, sound = rng.choice(PHRASES["open"]), rng.choice(list(INSTRUMENTS))
        if in_share(f"opening: {opening}: {sound}", CHANGES_HELD_OUT_PERCENT) == held:
            return opening, sound


def changes(clip: Clip) -> list[str]:
    """The changes that make sense for a clip, by their names in phrases.json; harder ones appear more than once."""
    found = ["sound", "sound", "again"]
    if len(clip.notes) > 1:
        found += ["slower"] * 2 * (clip.tempo != "slow") + ["faster"] * 2 * (clip.tempo != "quick")
        found += ["backwards"] * 3 * (not clip.is_drum)
    return found


def change_held_out(clip: Clip, change: str, sound: str = "") -> bool:
    """Whether this change of this clip (at any tempo) is held out of training. ``sound``: the new one."""
    return in_share(f"change: {clip.sound}:{clip.notes}:{change}:{sound}", CHANGES_HELD_OUT_PERCENT)


def random_change(clip: Clip, rng: random.Random, *, held: bool = False) -> tuple[str, Clip] | None:
    """A request to change a clip, and the clip wanted after it.

    ``held``: one of the changes held out of training, or None if there is none; otherwise one that training may see.
    """
    others = [name for name in (DRUMS if clip.is_drum else INSTRUMENTS) if name != clip.sound]
    options = [(change, sound) for change in changes(clip) for sound in (others if change == "sound" else [""])]
    options = [option for option in options if change_held_out(clip, *option) == held]
    if not held:
        options = [option for option in options if not held_out(apply_change(clip, *option))]
    # every kind as often as in :func:`changes`, however many sounds there are to change to
    kinds = [kind for kind in changes(clip) if any(kind == change for change, _ in options)]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    change, sound = rng.choice([option for option in options if option[0] == kind])
    words = {"a": article(sound), "sound": sound} if sound else {}
    return rng.choice(PHRASES["change"][change]).format(**words), apply_change(clip, change, sound)


def apply_change(clip: Clip, change: str, sound: str = "") -> Clip:
    """The clip that a later turn asks for."""
    tempos = list(SLOTS)
    notes = clip.notes[::-1] if change == "backwards" else clip.notes
    step = {"slower": 1, "faster": -1}.get(change, 0)
    return Clip(sound or clip.sound, notes, tempos[tempos.index(clip.tempo) + step] if step else clip.tempo)


def _request_to_reflect(rng: random.Random) -> tuple[str, Clip, bool]:
    """As :func:`_request`, with a clip that reflection may see; drums hit more than once are hard, and come often."""
    while True:
        if loose := rng.random() < 0.25:
            prompt, wish = loose_prompt(rng)
            clip = wish.sample(rng)
        else:
            clip = random_clip(rng, counts=(0.4, 0.32, 0.28), drums=0.45)
            prompt = exact_prompt(clip, rng)
        if not reflection_held_out(clip):
            return worded(prompt, rng), clip, loose


def _reflection(w: Writer) -> None:
    rng = w.rng
    prompt, wanted, loose = _request_to_reflect(rng)
    choice = 1.0 if loose else 0.0
    w.user(prompt)
    w.says(rich_caption(wanted), choice=choice)
    intended = w.studio.bank.ids(wanted)
    for _ in range(2):
        found, frames = attempt(w.studio, wanted, rng)
        # an attempt that drifted may pass as correct, but is still not how the sound is made
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
