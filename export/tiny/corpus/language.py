"""Words for sounds: prompts, rich captions, descriptions, and back again. The strings are in phrases.json."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .domain import DRUMS, HIT, INSTRUMENTS, MAX_EVENTS, NOTE_NUMBERS, NOTES, SLOTS, Clip, in_share

PHRASES: dict[str, Any] = json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))
COUNTS = {1: "one", 2: "two", 3: "three"}
TIMES = {1: "once", 2: "twice", 3: "three times"}
ADVERBS = {"quick": "quickly", "moderate": "", "slow": "slowly"}
_HIGH, _LOW = NOTE_NUMBERS["A5"], NOTE_NUMBERS["E5"]
#: Percent of the prompts and questions composed of words that training never sees.
WORDS_HELD_OUT_PERCENT = 20


def words_held_out(text: str) -> bool:
    """Whether a prompt or question is held out of training, however it is typed."""
    words = re.sub(r"[^a-z0-9 ]", "", text.lower()).removesuffix(" please")
    return in_share(f"words: {words}", WORDS_HELD_OUT_PERCENT)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def joined(words: list[str]) -> str:
    """ "C5, E5 and G5"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def event_words(clip: Clip) -> list[str]:
    return ["hit" if note == HIT else NOTES[note] for note in clip.notes]


def count_words(clip: Clip) -> str:
    """ "two notes", "one hit"."""
    kind = "hit" if clip.is_drum else "note"
    return f"{COUNTS[len(clip.notes)]} {kind}{'s' if len(clip.notes) > 1 else ''}"


def describe(clip: Clip) -> str:
    """The one exact sentence of a clip: "a trumpet plays C5 and E5 slowly"."""
    return _exact(clip, 0)


def _exact(clip: Clip, template: int) -> str:
    adverb = f" {ADVERBS[clip.tempo]}" if ADVERBS[clip.tempo] else ""
    words = {"a": article(clip.sound), "sound": clip.sound, "adverb": adverb, "plays": "plays", "play": "play"}
    if clip.is_drum:
        words |= {"times": TIMES[len(clip.notes)], "count": COUNTS[len(clip.notes)]}
        words |= {"hits": "hits" if len(clip.notes) > 1 else "hit"}
        return PHRASES["exact_drum"][template % len(PHRASES["exact_drum"])].format(**words)
    return PHRASES["exact"][template].format(events=joined(event_words(clip)), **words)


def exact_prompt(clip: Clip, rng: random.Random) -> str:
    """A prompt that training may use."""
    count = len(PHRASES["exact_drum" if clip.is_drum else "exact"])
    while True:
        template = rng.randrange(count)
        prompt = _exact(clip, template)
        # the first is the form in which clips are described everywhere, also in answers and captions
        if prompt == describe(clip) or not words_held_out(prompt):
            return prompt


def held_out_prompts(clip: Clip) -> list[str]:
    """The exact prompts of a clip that training never sees."""
    found = {_exact(clip, number) for number in range(len(PHRASES["exact_drum" if clip.is_drum else "exact"]))}
    return sorted(prompt for prompt in found - {describe(clip)} if words_held_out(prompt))


_ADVERB = "(?P<adverb> quickly| slowly)?"
_TUNE = re.compile(rf"an? (?P<sound>[a-z\- ]+) plays (?P<events>[A-G]\d(?:, [A-G]\d)*(?: and [A-G]\d)?){_ADVERB}")
_BEAT = re.compile(rf"an? (?P<sound>[a-z\- ]+) hits (?P<times>once|twice|three times){_ADVERB}")


def parse_description(text: str) -> Clip | None:
    """The clip of a sentence of :func:`describe`; None for any other text."""
    text = text.strip().rstrip(".")
    tune, beat = _TUNE.fullmatch(text), _BEAT.fullmatch(text)
    found = tune or beat
    if found is None:
        return None
    tempo = {"": "moderate", " quickly": "quick", " slowly": "slow"}[found["adverb"] or ""]
    try:
        if tune:
            notes = tuple(NOTE_NUMBERS[name] for name in re.findall(r"[A-G]\d", tune["events"]))
        else:
            notes = (HIT,) * next(count for count, times in TIMES.items() if times == found["times"])
        return Clip(found["sound"], notes, tempo)
    except (KeyError, ValueError):
        return None


def rich_caption(clip: Clip) -> str:
    """Keywords, layout in time and description, in one fixed shape."""
    keywords = [clip.sound, count_words(clip)]
    if len(clip.notes) > 1:
        keywords.append(clip.tempo)
    if clip.direction != "single":
        keywords.append(clip.direction)
    layout = [f"{at:.2f} {word}" for at, word in zip(clip.onsets, event_words(clip), strict=True)]
    layout.append(f"end {clip.seconds:.2f}")
    return PHRASES["caption"].format(keywords=", ".join(keywords), layout=", ".join(layout), description=describe(clip))


def parse_caption(text: str) -> Clip | None:
    """The clip that a rich caption describes, if all of its parts agree; else None."""
    match = re.fullmatch(r"keywords: .+?\. layout: .+?\. description: (.+)\.", text.strip())
    clip = parse_description(match[1]) if match else None
    return clip if clip is not None and rich_caption(clip) == text.strip() else None


@dataclass(frozen=True)
class Wish:
    """What a prompt asks for; None or "" leaves it unspecified. ``sound``: a name, "drum" for any drum, "" for any
    sound."""

    sound: str = ""
    count: int | None = None
    tempo: str = ""
    direction: str = ""
    register: str = ""
    #: At least this many events (a melody has two).
    least: int = 1

    def met_by(self, clip: Clip) -> bool:
        """Whether the clip satisfies everything that is asked for."""
        notes = clip.notes
        return (
            (clip.is_drum if self.sound == "drum" else self.sound in ("", clip.sound))
            and self.count in (None, len(notes))
            and len(notes) >= self.least
            and self.tempo in ("", clip.tempo)
            and self.direction in ("", clip.direction)
            and (self.register != "high" or min(notes) >= _HIGH)
            and (self.register != "low" or 0 < max(notes) <= _LOW)
        )

    def sample(self, rng: random.Random) -> Clip:
        """A clip that satisfies it; what is unspecified is drawn."""
        count = self.count or rng.choice(
            range(max(self.least, 2 if self.tempo or self.direction else 1), MAX_EVENTS + 1)
        )
        sound = self.sound or rng.choice(list(INSTRUMENTS))
        sound = rng.choice(list(DRUMS)) if sound == "drum" else sound
        tempo = (self.tempo or rng.choice(list(SLOTS))) if count > 1 else "moderate"
        if sound in DRUMS:
            return Clip(sound, (HIT,) * count, tempo)
        while True:
            clip = Clip(sound, self._tune(count, rng), tempo)
            if self.met_by(clip):
                return clip

    def _tune(self, count: int, rng: random.Random) -> tuple[int, ...]:
        """Notes as a player might choose them: equal steps up or down, repeated, or small steps either way."""
        keys = list(NOTES)
        at, step = rng.randrange(len(keys)), rng.choice((1, 2))
        places = [at]
        for _ in range(count - 1):
            if self.direction == "":
                step = rng.choice((-2, -1, 1, 2))
            places.append(places[-1] + {"level": 0, "falling": -step}.get(self.direction, step))
        return (
            tuple(keys[place] for place in places)
            if 0 <= min(places) <= max(places) < len(keys)
            else self._tune(count, rng)
        )


def loose_prompt(rng: random.Random, *, held: bool = False) -> tuple[str, Wish]:
    """A short or vague prompt that names a sound (or a drum), and what it asks for.

    ``held``: one of those held out of training; otherwise none of them. The few for any drum are not combinations of
    words known from other prompts: training sees them all.
    """
    while True:
        kind = rng.choices(tuple(_LOOSE), tuple(_LOOSE.values()))[0]
        prompt, wish = _loose(kind, rng)
        if (kind != "any_drum" and words_held_out(prompt)) == held:
            return prompt, wish


#: How often each kind of loose prompt is drawn.
_LOOSE = {"short": 4, "bare": 1, "bare_tempo": 2, "mood": 4, "shape": 2, "register": 2, "any_drum": 1}


def _loose(kind: str, rng: random.Random) -> tuple[str, Wish]:
    if kind == "any_drum":
        tempo = rng.choice(list(PHRASES[kind]))
        wish = Wish("drum", count=3 if tempo == "quick" else None, tempo=tempo, least=2 if tempo else 1)
        return rng.choice(PHRASES[kind][tempo]), wish
    drum = kind in ("short", "bare", "bare_tempo") and rng.random() < 0.25
    sound = rng.choice(list(DRUMS if drum else INSTRUMENTS))
    words = {"a": article(sound), "sound": sound}
    if kind == "short":
        count = rng.randint(1, MAX_EVENTS)
        tempo = rng.choice(["", "quick", "slow"]) if count > 1 else ""
        words |= {"count_tempo": f"{COUNTS[count]} {tempo} " if tempo else f"{COUNTS[count]} "}
        words |= {"notes": "notes" if count > 1 else "note", "hits": "hits" if count > 1 else "hit"}
        templates = PHRASES["short_drum" if drum else "short"]
        return rng.choice(templates).format(**words), Wish(
            sound, count=count, tempo=tempo or ("moderate" if count > 1 else "")
        )
    if kind == "bare":
        return rng.choice(PHRASES[kind]).format(**words), Wish(sound)
    if kind == "bare_tempo":
        tempo = rng.choice(["quick", "slow"])
        words |= {"tempo": tempo, "a_tempo": article(tempo)}
        return rng.choice(PHRASES[kind]).format(**words), Wish(sound, tempo=tempo, least=2)
    if kind == "mood":
        mood, wish = random_mood(rng, sound)
        words |= {"mood": mood, "a_mood": article(mood)}
        return rng.choice(PHRASES[kind]).format(**words), wish
    if kind == "shape":
        direction = rng.choice(["rising", "falling"])
        words |= {"direction": direction, "a_direction": article(direction)}
        return rng.choice(PHRASES[kind]).format(**words), Wish(sound, direction=direction, least=2)
    register = rng.choice(["high", "low"])
    words |= {"register": register, "a_register": article(register)}
    template = rng.choice(PHRASES[kind])
    wish = Wish(sound, register=register, count=1 if "note" in template else None)
    return template.format(**words), wish


def random_mood(rng: random.Random, sound: str = "") -> tuple[str, Wish]:
    mood = rng.choice(list(PHRASES["moods"]))
    wanted = PHRASES["moods"][mood]
    return mood, Wish(sound, tempo=wanted["tempo"], direction=wanted["direction"], least=2)


def difference(found: Clip | None, wanted: Clip) -> str:
    """Why a sound is not what was wanted, in words, the coarsest reason first; "" if it is. None: unclear."""
    reasons = PHRASES["reasons"]
    if found is None:
        return reasons["unclear"]
    if found.sound != wanted.sound:
        a, b = (f"{article(clip.sound)} {clip.sound}" for clip in (found, wanted))
        return reasons["sound"].format(found=a, wanted=b)
    if len(found.notes) != len(wanted.notes):
        return reasons["count"].format(found=count_words(found), wanted=count_words(wanted))
    for index, (a_note, b_note) in enumerate(zip(found.notes, wanted.notes, strict=True), start=1):
        if a_note != b_note:
            return reasons["note"].format(index=index, found=NOTES[a_note], wanted=NOTES[b_note])
    if found.tempo != wanted.tempo:
        return reasons["tempo"].format(found=found.tempo, wanted=wanted.tempo)
    return ""


def review(found: Clip | None, wanted: Clip) -> tuple[str, bool]:
    """What self-reflection says about a sound, and whether it matches."""
    heard = PHRASES["unclear"] if found is None else describe(found)
    reason = difference(found, wanted)
    kind = "differ" if reason else "match"
    words = {"heard": heard, "reason": reason, "wanted": describe(wanted)}
    return PHRASES["reflection"][kind].format(**words), not reason


_TOPICS = {"what": 9, "sound": 2, "count": 5, "tempo": 9, "first": 2, "last": 2, "kind": 0.5, "caption": 2}


def random_topic(rng: random.Random) -> str:
    """What a question about a heard clip may ask for."""
    return rng.choices(list(_TOPICS), list(_TOPICS.values()))[0]


def question_and_answer(clip: Clip, rng: random.Random, topic: str = "") -> tuple[str, str]:
    """A question about a heard clip, and the correct answer."""
    topic = topic or random_topic(rng)
    question = rng.choice(PHRASES["questions"][topic])
    named = f"{article(clip.sound)} {clip.sound}"
    no_note = PHRASES["no_note"].format(a=article(clip.sound), sound=clip.sound)
    answers = {
        "what": describe(clip),
        "sound": named,
        "count": COUNTS[len(clip.notes)],
        "tempo": clip.tempo if len(clip.notes) > 1 else PHRASES["no_tempo"],
        "first": no_note if clip.is_drum else NOTES[clip.notes[0]],
        "last": no_note if clip.is_drum else NOTES[clip.notes[-1]],
        "kind": f"{'yes' if clip.is_drum else 'no'}, it is {named}",
        "caption": rich_caption(clip),
    }
    return question, answers[topic]


_CHORDS = {
    "C major": ("C5", "E5", "G5"),
    "D minor": ("D5", "F5", "A5"),
    "E minor": ("E5", "G5", "B5"),
    "F major": ("F5", "A5", "C6"),
}


def text_only(rng: random.Random, *, held: bool = False) -> tuple[str, str]:
    """A question that needs no sound, and its answer.

    ``held``: one of those held out of training; otherwise none of them. Only questions whose answers follow from other
    questions can be held out: which of two notes is higher, and how many notes are listed.
    """
    while True:
        kind = rng.choices(tuple(_TEXTS), tuple(_TEXTS.values()))[0]
        question, answer = _text(kind, rng)
        if (kind in ("pair", "count") and words_held_out(question)) == held:
            return question, answer


#: How often each kind of question is drawn.
_TEXTS = {"pair": 5, "chord": 2, "next": 2, "count": 2, "drum": 1, "list": 0.5, "greeting": 1}


def _text(kind: str, rng: random.Random) -> tuple[str, str]:
    names = list(NOTES.values())
    if kind == "pair":
        low, high = sorted(rng.sample(range(len(names)), 2))
        first, second = rng.sample([names[low], names[high]], 2)
        word = rng.choice(["higher", "lower"])
        return f"which note is {word}, {first} or {second}?", names[high if word == "higher" else low]
    if kind == "chord":
        chord = rng.choice(list(_CHORDS))
        question = rng.choice(["spell {a} {chord} chord", "which notes are in {a} {chord} chord?"])
        return question.format(a=article(chord.lower()), chord=chord), joined(list(_CHORDS[chord]))
    if kind == "next":
        index, up = rng.randrange(1, len(names) - 1), rng.random() < 0.5
        return f"which note comes {'after' if up else 'before'} {names[index]}?", names[index + (1 if up else -1)]
    if kind == "count":
        count = rng.randint(1, MAX_EVENTS)
        listed = joined([rng.choice(names) for _ in range(count)])
        return f"how many notes are in {listed}?", COUNTS[count]
    if kind == "drum":
        sound = rng.choice([*INSTRUMENTS, *DRUMS])
        return f"is {article(sound)} {sound} a drum?", "yes" if sound in DRUMS else "no"
    if kind == "list":
        if rng.random() < 0.5:
            return "which instruments can you play?", joined(list(INSTRUMENTS))
        return "which drums can you play?", joined(list(DRUMS))
    return rng.choice(PHRASES["greetings"]), PHRASES["greeting"]


def worded(prompt: str, rng: random.Random) -> str:
    """A prompt as people may type it: sometimes with a full stop, without its question mark, or with a "please".

    Capitals and exclamation marks need no training: the tokenizer knows neither (``tokens.normalizer``).
    """
    if prompt[-1].isalnum():
        if rng.random() < 0.06 and "please" not in prompt:
            prompt += ", please"
        return prompt + rng.choices(["", ".", "?", "..."], (84, 12, 2, 2))[0]
    return prompt[:-1] + rng.choices([prompt[-1], "", "."], (85, 12, 3))[0]
