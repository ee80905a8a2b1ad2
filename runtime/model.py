"""The public face of the runtime: open a bundle, run messages, get sounds and texts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import numpy as np

from .bundle import TOKENIZER, Bundle, Verify
from .chat import CheckedMessage, Message, TextCodec, check_messages, prompt_parts
from .chunks import PROFILES, ChunkProfile, Pace
from .cores import check_threads
from .engines.base import Engine
from .engines.selection import Choice, choose
from .errors import InputError, UalmError
from .events import SegmentEnded, SoundChunk
from .generate import Began, Ended, Modality, OnRows, turn
from .hearing import FeatureSpec, Hearing
from .knowledge import Knowledge
from .listening import Listener
from .packaged import default_bundle
from .post_codec import open_post_codec
from .reasoning import Reasoning
from .sampling import AudioSampling, Mode, TextSampling, check_options
from .segment import Segment, SegmentBuilder
from .session import Limits, Session
from .sound import Sound
from .sound_decoder import SoundDecoder
from .stages import ReasonMode
from .turn import Turn
from .vocabulary import check_codes

#: Rows reserved for a conversation by default: five minutes of heard sound and a long answer.
DEFAULT_CONTEXT = 16384


Options = TypeVar("Options", AudioSampling, TextSampling)


class Model:
    """An opened bundle. Use it as a context manager, or call :meth:`close`.

    Several threads may call one model; each call has its own cache.
    """

    def __init__(self, bundle: Bundle, engine: Engine, max_context: int, *, choice: Choice | None = None) -> None:
        """``choice``: how ``engine`` came to be chosen, None where it was not."""
        self.bundle, self.max_context = bundle, max_context
        self._engine = engine
        self._choice = Choice(engine) if choice is None else choice
        manifest = bundle.manifest
        self._vocabulary = manifest.vocabulary
        self._text = TextCodec(bundle.path(TOKENIZER), bundle.manifest.vocabulary.text_size)
        hearing = Hearing(FeatureSpec.from_json(manifest.features), bundle.table("encoder.mel_filters"))
        self._listener = Listener(hearing, engine)
        self._audio_defaults = AudioSampling.from_mapping(manifest.sampling["audio"])
        self._text_defaults = TextSampling.from_mapping(manifest.sampling["text"])
        open_post_codec(bundle)  # one that this version does not know shall be told now
        #: What a row and a codec call take here, for the sounds that are played while they are made.
        self._pace = Pace()

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        engine: str | None = None,
        threads: int | None = None,
        max_context: int | None = None,
        verify: Verify = "first",
    ) -> Model:
        """Open a bundle folder; None for the model that comes with ualm.

        ``engine``: a name ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime"; see ``engines.selection``),
        or None for the one that the environment variable UALM_ENGINE names, else the best that can run here; which that
        was, and why not another, :attr:`engine` and :attr:`passed_over` say. ``threads``: CPU threads, None for all
        cores; more than those are refused, and any number by engines that use none (TensorRT's). ``max_context``: rows
        that one conversation may hold (prompt and answer; a row is 20 ms of spoken sound, 40 ms of heard sound, or a
        text token), None for the smaller of 16384 and the model's limit.
        ``verify``: check file hashes at the "first" load (and after a change), "always" or "never".

        Raises :class:`InputError`, :class:`BundleError` or :class:`EngineError`.
        """
        check_threads(threads)
        opened = Bundle(default_bundle() if bundle is None else bundle, verify=verify)
        limit = opened.manifest.model.max_positions
        if max_context is None:
            max_context = min(DEFAULT_CONTEXT, limit)
        elif isinstance(max_context, bool) or not isinstance(max_context, int) or not 1 <= max_context <= limit:
            raise InputError(
                f"max_context = {max_context!r}: give a whole number from 1 to {limit}, this model's limit"
            )
        choice = choose(engine, opened, threads=threads, max_context=max_context)
        return cls(opened, choice.engine, max_context, choice=choice)

    def run(
        self,
        messages: Sequence[Message],
        *,
        modality: Modality | None = None,
        mode: Mode = "fixed",
        max_segments: int = 8,
        audio: AudioSampling | None = None,
        text: TextSampling | None = None,
        on_rows: OnRows | None = None,
    ) -> list[Segment]:
        """Answer a conversation: the lowest public call.

        ``messages`` are (role, content) pairs in order; a role is "system", "user" or "assistant", content is a str, a
        :class:`Sound` or a path to one (``pathlib.Path``), either marked with :class:`Speech` where it is speech to be
        transcribed. ``modality`` forces the first segment's modality; the model chooses otherwise. ``mode``: see
        ``sampling.Mode``. ``on_rows(modality, rows)`` is called every few rows, on this thread; an exception from
        it ends the call.

        Raises :class:`InputError` (:class:`ContextError` where the rows do not fit) and :class:`ModalityError`.
        """
        audio = self._audio_defaults if audio is None else audio
        text = self._text_defaults if text is None else text
        check_options(mode, audio, text)
        self._check_modality(modality)
        if isinstance(max_segments, bool) or not isinstance(max_segments, Integral) or max_segments < 1:
            raise InputError(f"max_segments = {max_segments!r}: give a whole number of at least 1")
        prompt = prompt_parts(self._checked(messages), self._vocabulary, self._listener.features)
        steps = turn(
            self._engine.open_sequence(),
            prompt,
            self._vocabulary,
            modality=modality,
            mode=mode,
            max_segments=max_segments,
            audio=audio,
            text=text,
        )
        segments: list[Segment] = []
        try:
            for step in steps:
                if isinstance(step, Began):
                    builder = self._builder(step.modality, PROFILES["throughput"], None)
                elif isinstance(step, Ended):
                    builder.rest()
                    segments.append(builder.segment(step.finish))
                else:
                    builder.push(step)
                    if on_rows is not None:
                        on_rows(builder.modality, len(builder.rows))
        except UalmError as error:
            error.segments = segments
            raise
        return segments

    def session(
        self, *, memory_limit: int | None = None, time_limit: float = math.inf, max_segments: int = 8
    ) -> Session:
        """Begin a conversation whose cache is kept from turn to turn.

        ``memory_limit``: bytes of cache it may grow to. ``time_limit``: seconds, ``max_segments``: segments of a turn.
        A turn that reaches one is taken back and raises that limit's :class:`LimitError`.
        """
        return Session(self, Limits(memory_limit, time_limit, max_segments))

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        memory_limit: int | None = None,
        time_limit: float = math.inf,
        max_segments: int = 8,
    ) -> Session:
        """Go on with a session from :meth:`Session.save`, made with this very bundle; limits as in :meth:`session`."""
        return Session._restore(self, path, Limits(memory_limit, time_limit, max_segments))

    def listen(self, sound: Sound | str | os.PathLike[str]) -> Sound:
        """Begin to hear a sound in the background, before the question about it is known.

        Returns the sound to put into a message. Features are cached by content, so any equal sound profits.
        """
        heard = sound if isinstance(sound, Sound) else Sound.from_file(sound, longest=self._listener.longest)
        self._listener.start(heard)
        return heard

    def generate(
        self,
        text: str,
        *,
        audio: AudioSampling | None = None,
        on_rows: OnRows | None = None,
        **options: Any,
    ) -> Sound:
        """Caption to sound. ``options`` override single fields of ``audio`` (``seed=7``, ``guidance=2.5``, ...)."""
        audio = _override(audio or self._audio_defaults, options)
        segment = self.run([("user", text)], modality="audio", max_segments=1, audio=audio, on_rows=on_rows)[0]
        assert segment.sound is not None  # "fixed" mode draws at least one frame
        return segment.sound

    def stream(
        self,
        text: str,
        *,
        profile: str | ChunkProfile = "balanced",
        audio: AudioSampling | None = None,
        **options: Any,
    ) -> Iterator[SoundChunk]:
        """Caption to sound, handed over while it is made: the chunks joined are what :meth:`generate` gives.

        ``profile``: how large the chunks are, see ``chunks.PROFILES``; other arguments as in :meth:`generate`. A thread
        of its own computes ahead of whoever iterates. Leaving the loop, or closing the iterator, stops it.
        """
        audio = _override(audio or self._audio_defaults, options)
        turn = self.session(max_segments=1).turn(text, modality="audio", audio=audio, profile=profile)
        return _chunks(turn)

    def ask(
        self,
        sound: Sound | str | os.PathLike[str],
        question: str,
        *,
        text: TextSampling | None = None,
        on_rows: OnRows | None = None,
        **options: Any,
    ) -> str:
        """Answer a question about a sound (or the file of that name).

        The sound comes first, as in the training task ``audio_to_conversation``.
        """
        text = _override(text or self._text_defaults, options)
        heard = Sound.from_file(sound, longest=self._listener.longest) if isinstance(sound, str) else sound
        messages: list[Message] = [("user", heard), ("user", question)]
        segment = self.run(messages, modality="text", max_segments=1, text=text, on_rows=on_rows)[0]
        assert segment.text is not None
        return segment.text

    def reason(
        self,
        prompt: str | Iterable[str],
        mode: ReasonMode = "enrich",
        *,
        rounds: int = 1,
        seed: int | None = None,
        session: Session | None = None,
        audio: AudioSampling | None = None,
        text: TextSampling | None = None,
        **options: Any,
    ) -> Reasoning:
        """Think before, between or after sounds: see ``reasoning``. Iterate for the events, or call ``result()``.

        ``prompt``: a text; in a "dialogue", the user's turns, one or many, also from an iterator, which is asked for
        the next turn when the one before is over. ``rounds``: how often a sound may be heard again ("reflect").
        ``seed``: of both modalities; turn k draws with seed + k. ``session``: a conversation to go on with, None for a
        new one. ``options`` override single fields of ``audio``. Bad input is refused here; the work starts with the
        iteration.
        """
        seeds = {} if seed is None else {"seed": seed}
        audio = _override(audio or self._audio_defaults, seeds | options)
        text = _override(text or self._text_defaults, seeds)
        check_options("fixed", audio, text)
        talk = self.session() if session is None else session
        return Reasoning(talk, prompt, mode=mode, rounds=rounds, audio=audio, text=text)

    def decode(self, codes: np.ndarray) -> Sound:
        """Codec codes, integers [T, 8], to a sound."""
        checked = check_codes(codes, self.bundle.manifest.vocabulary.codebook_size)
        decoder = self.decoder("throughput")
        pieces = [decoder.push_codes(checked), decoder.flush()]
        return Sound(np.concatenate(pieces), decoder.sample_rate, checked)

    def decoder(self, profile: str | ChunkProfile = "balanced") -> SoundDecoder:
        """A decoder for codes that come piece by piece; its sound is that of :meth:`decode`."""
        return SoundDecoder(self._engine, self.bundle, profile)

    def close(self) -> None:
        """Free the engine. The model cannot be used afterwards."""
        self._listener.close()
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def identity(self) -> str:
        """Digest of the bundle's manifest: equal for equal bundles."""
        return self.bundle.digest

    @property
    def engine(self) -> str:
        """Name of the engine that computes."""
        return self._engine.name

    @property
    def passed_over(self) -> Mapping[str, str]:
        """Of each faster engine that could not be opened, in order, a sentence why; empty where one was named."""
        return MappingProxyType(dict(self._choice.passed_over))

    @property
    def knows(self) -> Knowledge | None:
        """What the model knows, in words; None where its bundle does not say."""
        return self.bundle.manifest.knows

    def outside(self, prompt: str) -> bool:
        """Whether a prompt shares no word with what the model :attr:`knows`, so that its answer will be something else.

        False where the bundle does not say what the model knows, and for a prompt of stop words alone.
        """
        if not isinstance(prompt, str):
            raise InputError(f"prompt = {prompt!r:.80}: give a text")
        return self.knows is not None and self.knows.outside(prompt)

    @property
    def longest_sound(self) -> float:
        """Seconds of the longest sound that it can hear."""
        return self._listener.longest

    def _checked(self, messages: Sequence[Message]) -> list[CheckedMessage]:
        return check_messages(messages, self._vocabulary, self._text, self._listener.check, self._listener.longest)

    def _builder(self, modality: Modality, profile: ChunkProfile, pace: Pace | None) -> SegmentBuilder:
        return SegmentBuilder(modality, self.bundle, self._text, self._engine, profile, pace)

    @staticmethod
    def _check_modality(modality: object) -> None:
        if modality not in (None, "audio", "text"):
            raise InputError(f"modality = {modality!r}: choose 'audio', 'text', or None to let the model choose")


def _chunks(turn: Turn) -> Iterator[SoundChunk]:
    try:
        for event in turn:
            if isinstance(event, SoundChunk):
                yield event
            elif isinstance(event, SegmentEnded):
                break  # a model that would go on with another segment is not asked for it
    finally:
        turn.cancel()
    turn._join()  # so that the model may be closed now


def _override(options: Options, values: Mapping[str, Any]) -> Options:
    return type(options).from_mapping({**vars(options), **values})
