"""The gates of the tiny model: what it generates through the product's own runtime, judged by content.

Sounds are judged from decoded samples by :mod:`detect`; answers are compared as texts. Prompts and seeds are fixed.
Whatever can be held out of training is held out: every sequence of two or three notes, every prompt and question
composed of words, every change in a dialogue and every clip of a reflection is one that its task never saw
(``tests/export/tiny/corpus/test_held_out.py`` draws the training data to check it). The sounds of single notes and
drums cannot be held out. A second judge, which shares nothing with the first, hears every sound too: how often the two
agree in count, tempo and notes says how far the first can be trusted. A case counts only if its answer can be wrong: a
single event, for example, has no tempo.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....runtime import AudioSampling, InputError, Model, Sound
from ....runtime.conversation.segment import Segment
from ..corpus.attempts import reflection_held_out
from ..corpus.conversations import opening_and_sound, random_change
from ..corpus.detect import Heard, Judge
from ..corpus.domain import DRUMS, HIT, HOP, INSTRUMENTS, NOTES, SAMPLE_RATE, SLOTS, Clip, FrameIndex, random_clip
from ..corpus.language import (
    PHRASES,
    article,
    describe,
    exact_prompt,
    held_out_prompts,
    loose_prompt,
    parse_caption,
    question_and_answer,
    text_only,
)
from .second_judge import SecondJudge, agreement

#: Sampling under which a first attempt often fails: no guidance, no truncation, high temperature.
WORSE: dict[str, Any] = {"guidance": 1.0, "temperature": 1.7, "top_k": None, "max_steps": 130}
#: The share that each gate requires; None: reported only.
WANTED: dict[str, float | None] = {
    "drums": 0.95,
    "one note": 0.95,
    "two notes": 0.92,
    "three notes": 0.85,
    "two notes, thought through": None,
    "three notes, thought through": None,
    "hearing: instrument": 0.95,
    "hearing: count": 0.95,
    "hearing: tempo": 0.95,
    "hearing: single note": 0.90,
    "hearing: sequences": 0.75,
    "hearing: two seconds of silence around": 0.90,
    "enrichment": 0.90,
    "typed otherwise": 1.0,
    "dialogue: question and answer": None,
    "dialogue: changes": 0.80,
    "text": None,
    "both judges agree: sounds of the domain": 0.97,
    "both judges agree: other sounds": None,
    "reflection: failures repaired": 0.5,
    "reflection: right ones broken": 0.03,
}
#: How much a narrower format may lose against fp32 in a required gate, as a share of the cases.
ALLOWED_LOSS = 0.02
#: Silence before and after a sound with which it must still be heard correctly, in seconds.
SILENCE = 2.0


def losses(wide: Mapping[str, Any], narrow: Mapping[str, Any]) -> dict[str, float]:
    """What each required gate loses from ``wide`` (the gates of fp32) to ``narrow``, as a share of the cases.

    Negative if the narrower format does better. A gate missing from either is left out.
    """
    found = {}
    for name, wanted in WANTED.items():
        shares = [gates[name]["share"] for gates in (wide, narrow) if name in gates]
        if wanted is not None and len(shares) == 2 and None not in shares:
            lost = shares[0] - shares[1]
            found[name] = round(-lost if name.endswith("broken") else lost, 4)
    return found


def lost_too_much(lost: Mapping[str, float]) -> list[str]:
    """The gates that lose more than :data:`ALLOWED_LOSS`."""
    return [name for name, share in lost.items() if share > ALLOWED_LOSS + 1e-9]


@dataclass
class Tally:
    """The tally of one gate, and the cases to report: those that went wrong."""

    right: int = 0
    total: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, right: bool, detail: str, *, wrong: bool | None = None) -> None:
        """``wrong``: whether the case is reported; by default if it is not right."""
        self.total += 1
        self.right += right
        if (not right if wrong is None else wrong) and len(self.wrong) < 12:
            self.wrong.append(detail)

    def to_json(self, name: str) -> dict[str, Any]:
        share = self.right / self.total if self.total else None
        wanted = WANTED.get(name)
        met = None if share is None or wanted is None else share >= wanted
        if name.endswith("broken"):  # a share to stay below
            met = None if share is None or wanted is None else share <= wanted
        return {
            "right": self.right,
            "total": self.total,
            "share": None if share is None else round(share, 4),
            "wanted": wanted,
            "met": met,
            "wrong": self.wrong,
        }


class Examiner:
    """Runs the gates on one open model. ``codes``: int64 [frames of the domain, 8] of the model's codec."""

    def __init__(self, model: Model, codes: np.ndarray, *, seed: int = 0, share: float = 1.0) -> None:
        """``share``: of the full number of prompts, for a quick check."""
        self._model, self._codes, self._index = model, codes, FrameIndex()
        self._judge, self._second, self._seed, self._share = Judge(), SecondJudge(), seed, share
        self.tallies: dict[str, Tally] = {}

    def run(self, progress: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
        """All gates; the tallies as JSON values, by name."""
        parts = (
            self.speaking,
            self.thinking,
            self.hearing,
            self.hearing_in_silence,
            self.enriching,
            self.typing,
            self.talking,
            self.reading,
            self.reflecting,
        )
        for part in parts:
            progress(part.__name__)
            part()
        return {name: tally.to_json(name) for name, tally in self.tallies.items()}

    def sound_of(self, clip: Clip) -> Sound:
        """A clip as the model's codec decodes it."""
        return self._model.decode(self._codes[self._index.ids(clip)])

    def speaking(self) -> None:
        """Exact prompts, straight to sound."""
        for name, clip, prompt, seed in self._exact():
            self._compare(name, prompt, clip, self._made(prompt, seed))

    def thinking(self) -> None:
        """Exact prompts for sequences, through a rich caption."""
        for name, clip, prompt, seed in self._exact():
            if name in ("two notes", "three notes"):
                segments = self._model.run([("user", prompt)], modality="text", audio=AudioSampling(seed=seed))
                self._compare(f"{name}, thought through", prompt, clip, _last_sound(segments))

    def hearing(self) -> None:
        rng = self._rng("hearing")
        clips = [*_singles(), *_beats()]
        clips += [random_clip(rng, counts=(0, 1, 1), drums=0, held=True) for _ in range(200)]
        for clip in self._some(clips, rng):
            sound = self.sound_of(clip)
            for topic, name in (("sound", "instrument"), ("count", "count"), ("tempo", "tempo")):
                if topic != "tempo" or len(clip.notes) > 1:
                    self._answer(f"hearing: {name}", clip, sound, topic, rng)
            if len(clip.notes) == 1 and not clip.is_drum:
                self._answer("hearing: single note", clip, sound, "first", rng)
            elif not clip.is_drum:
                self._answer("hearing: sequences", clip, sound, "what", rng)

    def hearing_in_silence(self) -> None:
        """The same sounds with silence around them must be heard the same way."""
        rng = self._rng("silence")
        clips = [*_singles(), *_beats(), *(random_clip(rng, counts=(0, 1, 1), drums=0, held=True) for _ in range(60))]
        frames = round(SILENCE * SAMPLE_RATE / HOP)
        for clip in self._some(rng.sample(clips, 120), rng):
            sound = self.sound_of(clip)
            quiet = np.zeros(frames * HOP, np.float32)
            around = np.concatenate([quiet, np.asarray(sound.samples, np.float32).reshape(-1), quiet])
            self._answer("hearing: two seconds of silence around", clip, Sound(around, sound.sample_rate), "what", rng)

    def enriching(self) -> None:
        """Loose prompts: the caption and the sound satisfy them, and the sound is what the caption says."""
        rng = self._rng("enriching")
        for number in range(self._count(150)):
            prompt, wish = loose_prompt(rng, held=True)
            segments = self._model.run([("user", prompt)], audio=AudioSampling(seed=number))
            caption = parse_caption(segments[0].text or "")
            heard = self._heard(_last_sound(segments))
            obeyed = heard.clip is not None and wish.met_by(heard.clip)
            detail = f"{prompt!r}: {segments[0].text!r}, heard {_shown(heard)}"
            self._tally("enrichment").add(obeyed, detail)
            self._tally("enrichment: sound is what the caption says").add(
                caption is not None and heard.clip == caption, detail
            )

    def typing(self) -> None:
        """Capitals and exclamation marks change neither the sound nor the answer."""
        rng = self._rng("typing")
        for number in range(self._count(20)):
            prompt = exact_prompt(random_clip(rng), rng) if number % 2 else loose_prompt(rng)[0]
            plain, loud = (
                self._model.run([("user", text)], audio=AudioSampling(seed=number)) for text in _typed(prompt)
            )
            same = [(s.text, s.rows.tolist()) for s in plain] == [(s.text, s.rows.tolist()) for s in loud]
            self._tally("typed otherwise").add(same, prompt)
            clip = random_clip(rng)
            question = question_and_answer(clip, rng)[0]
            answers = [self._model.ask(self.sound_of(clip), text) for text in _typed(question)]
            self._tally("typed otherwise").add(answers[0] == answers[1], f"{describe(clip)}, {question!r}: {answers}")

    def talking(self) -> None:
        """A question by the model, an answer, a sound; or a plain request. Then two changes of it."""
        rng = self._rng("talking")
        for number in range(self._count(100)):
            session = self._model.session()
            audio = AudioSampling(seed=number)
            if number % 2:
                opening, sound = opening_and_sound(rng, held=True)
                asked = session.ask(opening, audio=audio)
                answer = f"{article(sound)} {sound}"
                clip = self._heard(_last_sound(session.ask(answer, audio=audio))).clip
                right = asked[-1].text == PHRASES["ask_both"] and clip is not None and clip.sound == sound
                self._tally("dialogue: question and answer").add(right, f"{asked[-1].text!r}, {answer!r}: {clip}")
            else:
                wanted = random_clip(rng, counts=(0.2, 0.4, 0.4))
                clip = self._heard(_last_sound(session.ask(describe(wanted), audio=audio))).clip
            for _ in range(2):
                changed = None if clip is None else random_change(clip, rng, held=True)
                if clip is None or changed is None:
                    break
                words, wanted = changed
                heard = self._heard(_last_sound(session.ask(words, audio=audio)))
                detail = f"{describe(clip)}, {words!r}: {_shown(heard)}"
                self._tally("dialogue: changes").add(heard.clip == wanted, detail)
                clip = heard.clip

    def reading(self) -> None:
        rng = self._rng("reading")
        for _ in range(self._count(150)):
            question, answer = text_only(rng, held=True)
            answers = self._model.run([("user", question)], modality="text", max_segments=1)[0].text
            self._tally("text").add(answers == answer, f"{question!r}: {answers!r}, not {answer!r}")

    def reflecting(self) -> None:
        """A first attempt under bad sampling, then heard, reviewed, and repaired if necessary."""
        rng = self._rng("reflecting")
        clips = [clip for clip in [*_singles(), *_beats()] if reflection_held_out(clip)] * 6
        clips += [random_clip(rng, counts=(0, 1, 1), drums=0, held=True) for _ in range(120)]
        for number, clip in enumerate(self._some(clips, rng)):
            session = self._model.session()
            first = session.ask([("user", describe(clip))], modality="text", audio=AudioSampling(seed=number, **WORSE))
            sound = _last_sound(first)
            before = self._heard(sound).clip
            self._tally("reflection: first tries").add(before == clip, describe(clip))
            if sound is None:
                continue
            try:
                review = session.ask(
                    [("user", sound), ("user", PHRASES["reflection"]["check"])], audio=AudioSampling(seed=number)
                )
            except InputError as error:  # a sound of one frame is too short to be heard, and so is not repaired
                self._tally("reflection: failures repaired").add(False, f"{describe(clip)}: {error}")
                continue
            mended = _last_sound(review)
            after = before if mended is None else self._heard(mended).clip
            detail = f"{describe(clip)}: first {_named(before)}; {review[0].text!r}; then {_named(after)}"
            if before == clip:
                broken = after != clip
                self._tally("reflection: right ones broken").add(broken, detail, wrong=broken)
            else:
                self._tally("reflection: failures repaired").add(after == clip, detail)

    def _exact(self) -> Iterator[tuple[str, Clip, str, int]]:
        """(gate, clip, prompt, seed) of every exact prompt, none of which training saw."""
        rng = self._rng("exact")
        asked = [("drums", clip, prompt) for clip in _beats() for prompt in held_out_prompts(clip)] * 3
        asked += [("one note", clip, prompt) for clip in _singles() for prompt in held_out_prompts(clip)] * 4
        asked = rng.sample(asked, self._count(len(asked)))
        for name, counts in (("two notes", (0, 1, 0)), ("three notes", (0, 0, 1))):
            clips = [random_clip(rng, counts=counts, drums=0, held=True) for _ in range(self._count(200))]
            asked += [(name, clip, exact_prompt(clip, rng)) for clip in clips]
        for number, (name, clip, prompt) in enumerate(asked):
            yield name, clip, prompt, number

    def _made(self, prompt: str, seed: int) -> Sound:
        return self._model.generate(prompt, audio=AudioSampling(seed=seed))

    def _heard(self, sound: Sound | None) -> Heard:
        if sound is None:
            return Heard((), None, "no sound")
        samples = np.asarray(sound.samples).reshape(-1)
        heard, second = self._judge(samples), self._second(samples)
        kind = "sounds of the domain" if heard.clip is not None else "other sounds"
        detail = f"{_shown(heard)}; the second judge: {second}"
        self._tally(f"both judges agree: {kind}").add(agreement(heard, second).whole, detail)
        return heard

    def _compare(self, name: str, prompt: str, clip: Clip, sound: Sound | None) -> None:
        heard = self._heard(sound)
        self._tally(name).add(heard.clip == clip, f"{prompt!r}: {_shown(heard)}")

    def _answer(self, name: str, clip: Clip, sound: Sound, topic: str, rng: random.Random) -> None:
        question, answer = question_and_answer(clip, rng, topic)
        answers = self._model.ask(sound, question)
        self._tally(name).add(answers == answer, f"{describe(clip)}, {question!r}: {answers!r}")

    def _tally(self, name: str) -> Tally:
        return self.tallies.setdefault(name, Tally())

    def _rng(self, part: str) -> random.Random:
        return random.Random(f"{self._seed}:{part}")

    def _count(self, full: int) -> int:
        return max(1, round(full * self._share))

    def _some(self, clips: list[Clip], rng: random.Random) -> list[Clip]:
        return rng.sample(clips, self._count(len(clips)))


def _singles() -> list[Clip]:
    return [Clip(sound, (note,)) for sound in INSTRUMENTS for note in NOTES]


def _beats() -> list[Clip]:
    """Every drum, hit one to three times at every tempo."""
    return [
        Clip(drum, (HIT,) * n, tempo)
        for drum in DRUMS
        for n in (1, 2, 3)
        for tempo in (SLOTS if n > 1 else ["moderate"])
    ]


def _typed(prompt: str) -> tuple[str, str]:
    return prompt, f"{prompt.upper()}!!!"


def _last_sound(segments: list[Segment]) -> Sound | None:
    return next((segment.sound for segment in reversed(segments) if segment.sound is not None), None)


def _shown(heard: Heard) -> str:
    return describe(heard.clip) if heard.clip is not None else heard.why


def _named(clip: Clip | None) -> str:
    return "unclear" if clip is None else describe(clip)
