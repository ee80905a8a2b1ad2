"""A listener's waiting times: first row, first sample, first playable chunk, gaps, and underruns of a player."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from ...runtime.audio.pacing import ChunkProfile
from ...runtime.audio.post_codec import open_post_codec
from ...runtime.bundle.bundle import TOKENIZER, Bundle
from ...runtime.conversation.events import SegmentEnded, SoundChunk, TurnEnded
from ...runtime.conversation.prompt import prompt_parts
from ...runtime.engines import Engine
from ...runtime.errors import EngineError, InputError
from ...runtime.model import Model
from ...runtime.sampling import SHORTEST_SOUND_ROWS, AudioSampling
from ...runtime.text.tokenizer import TextCodec
from ...runtime.vocabulary import ROLES, STREAMS
from ..harness.blocks import Samples
from ..harness.protocol import Case, Derived
from ..harness.subjects import AnySubject, PeerSubject
from ..report.schema import Setting
from ..report.statistics import Summary
from .common import check_seconds, sampling_of

#: A sound is playable once this much of it has arrived, or all of it.
PLAYABLE_SECONDS = 0.1


@dataclass(frozen=True)
class Stream:
    """A sound of at most ``seconds`` for ``text``, through a session's events, in wall-clock time.

    Figures, from the call of ``Session.turn`` on: "first_row" drawn; "first_sample": the first samples that will not
    change arrive; "playable": 0.1 s of them have arrived; "sound": the segment is complete. "gap": between two chunks.
    For a player that starts with the first chunk: "underruns", how often it runs dry; "stall", its total silence, which
    is also how much later it would have to start to never run dry. "preroll": the seconds of sound that the first chunk
    advises to buffer before playback. "direct": the minimum for a first frame, its rows and one codec call with the
    same prompt and seed, straight from the engine, in turn with the sounds; "overhead": how much later than that
    "first_sample" was.
    """

    seconds: tuple[float, ...] = (5.0,)
    text: str = "rain on a tin roof"
    guidance: float | None = None
    profile: str = "first_sound"

    name: ClassVar[str] = "stream"
    units: ClassVar[Mapping[str, str]] = {
        "first_row": "ms",
        "first_sample": "ms",
        "playable": "ms",
        "gap": "ms",
        "underruns": "a sound",
        "stall": "ms",
        "preroll": "ms",
        "sound": "ms",
        "direct": "ms",
        "overhead": "%",
    }
    compared: ClassVar[Sequence[str]] = ("first_row", "first_sample", "playable", "sound", "direct")
    default_repeat: ClassVar[int] = 12

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        check_seconds(self.seconds)
        ChunkProfile.named(self.profile)
        limit = bundle.manifest.model.max_positions
        for seconds in self.seconds:
            steps = _steps(bundle, seconds)
            if not SHORTEST_SOUND_ROWS <= steps < limit:
                frame = bundle.manifest.codec.hop_length / bundle.manifest.codec.sample_rate
                raise InputError(
                    f"--seconds {seconds:g}: takes {steps} rows; give at least a frame, {frame:g} s, and less than the "
                    f"{limit} rows that this model holds"
                )
        guidance = sampling_of(bundle, "audio", self.guidance).guidance
        return [{"seconds": seconds, "guidance": guidance, "profile": self.profile} for seconds in self.seconds]

    def open(self, subject: AnySubject, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        if isinstance(subject, PeerSubject):
            raise InputError(f"--versus {subject.about.name}: measures decode and prefill only; name a bundle")
        seconds, guidance = cast(float, setting["seconds"]), cast(float, setting["guidance"])
        sampling = cast(AudioSampling, sampling_of(subject.bundle, "audio", guidance, seed))
        sampling = replace(sampling, max_steps=_steps(subject.bundle, seconds))
        most = max(_steps(subject.bundle, each) for each in self.seconds)
        rows = most + len(self.text.encode()) + 16  # a token takes at least one byte; roles and markers are added
        engine = subject.engine(rows)
        return _Turns(Model(subject.bundle, engine, rows), engine, self.text, sampling, self.profile)


class _Turns:
    def __init__(self, model: Model, engine: Engine, text: str, sampling: AudioSampling, profile: str) -> None:
        self._model, self._engine, self._profile = model, engine, profile
        self._text, self._sampling = text, sampling
        self._prompt = _prompt(model.bundle, text)
        self._turns = 0
        self._sound_seconds: list[float] = []
        self.block(1)
        self._sound_seconds.clear()

    def block(self, count: int) -> Samples:
        figures: dict[str, list[float]] = {}
        for _ in range(count):
            # its own seed; the sound and the direct way take turns in going first
            sampling = replace(self._sampling, seed=(self._sampling.seed + self._turns) % 2**64)
            direct = self._direct(sampling) if self._turns % 2 else 0.0
            found = self._turn(sampling)
            direct = direct or self._direct(sampling)
            self._turns += 1
            overhead = 100 * (found["first_sample"][0] / (1000 * direct) - 1)
            for figure, values in {**found, "direct": [1000 * direct], "overhead": [overhead]}.items():
                figures.setdefault(figure, []).extend(values)
        return figures

    def derive(self, figure: str, summary: Summary) -> Derived:
        if figure != "sound":
            return Derived()
        return Derived(real_time_factor=summary.mean * summary.n / 1000 / sum(self._sound_seconds))

    def close(self) -> None:
        """Nothing to do: each turn's cache is freed with its session."""

    def _direct(self, sampling: AudioSampling) -> float:
        """Seconds from the prompt to the first samples, with nothing between calls to the engine."""
        sequence, stream = self._engine.open_sequence(), self._engine.open_codec_stream()
        stage = open_post_codec(self._model.bundle)
        codec = self._model.bundle.manifest.codec
        started = time.perf_counter()
        sequence.prefill(self._prompt)
        sequence.begin_segment("audio", sampling, mode="fixed", segment=0)
        # the first frame is final once all frames that its last sample depends on are complete, a delay after their
        # rows
        needed = -(-(codec.hop_length + codec.lookahead) // codec.hop_length)
        frames = sequence.run_frames(needed + STREAMS - 1)
        latents = frames.latents[:needed] if frames.end is None else frames.latents
        samples = stream.decode(latents, last=frames.end is not None)
        if stage is not None:
            stage.push(samples, last=frames.end is not None)
        return time.perf_counter() - started

    def _turn(self, sampling: AudioSampling) -> Samples:
        """One sound."""
        session = self._model.session()
        arrivals: list[tuple[float, int]] = []
        first_row = whole = None
        preroll = 0.0
        rate = self._model.bundle.manifest.sound_rate
        started = time.perf_counter()
        turn = session.turn(self._text, modality="audio", audio=sampling, profile=self._profile)
        for event in turn:
            if isinstance(event, SoundChunk):
                arrivals.append((time.perf_counter() - started, len(event.samples)))
                preroll = event.preroll if len(arrivals) == 1 else preroll
            elif isinstance(event, SegmentEnded):
                whole = time.perf_counter() - started
                turn.cancel()  # the answer after its first sound is not measured
            elif isinstance(event, TurnEnded):
                first_row = event.seconds["first"]
        if whole is None or first_row is None or not arrivals:
            raise EngineError("stream: the turn ended without a sound; nothing can be measured")
        self._sound_seconds.append(sum(samples for _, samples in arrivals) / rate)
        waited = heard(arrivals, rate)
        return {
            "first_row": [1000 * first_row],
            "first_sample": [1000 * arrivals[0][0]],
            "playable": [1000 * waited.playable],
            "gap": [1000 * (later - earlier) for (earlier, _), (later, _) in itertools.pairwise(arrivals)],
            "underruns": [float(waited.underruns)],
            "stall": [1000 * waited.stall],
            "preroll": [1000 * preroll],
            "sound": [1000 * whole],
        }


@dataclass(frozen=True)
class Heard:
    """The experience of a player that starts with the first chunk; seconds, ``playable`` from the start of the turn."""

    playable: float
    underruns: int
    stall: float


def heard(arrivals: Sequence[tuple[float, int]], rate: int) -> Heard:
    """Play chunks, each (arrival in seconds, samples), at ``rate`` Hz from the first arrival on."""
    wanted = min(PLAYABLE_SECONDS * rate, sum(samples for _, samples in arrivals))
    first = arrivals[0][0]
    playable, underruns, stall, samples = arrivals[-1][0], 0, 0.0, 0
    for arrival, count in arrivals:
        late = arrival - (first + samples / rate)  # compared with a player that never stopped
        if late > stall + 1e-9:
            underruns, stall = underruns + 1, late
        if samples < wanted <= samples + count:
            playable = arrival
        samples += count
    return Heard(playable, underruns, stall)


def _prompt(bundle: Bundle, text: str) -> list[np.ndarray]:
    """The rows of a user's text and of the answer's role, as a turn prefills them."""
    vocabulary = bundle.manifest.vocabulary
    encoded = TextCodec(bundle.path(TOKENIZER)).encode(text)
    parts = prompt_parts([("user", "text", encoded)], vocabulary, lambda sound: np.empty((0, 0), np.float32))
    return [*parts, vocabulary.special_row(ROLES["assistant"])[None]]


def _steps(bundle: Bundle, seconds: float) -> int:
    codec = bundle.manifest.codec
    return int(seconds * codec.sample_rate / codec.hop_length + 1e-6) + STREAMS - 1
