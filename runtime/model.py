"""The public face of the runtime: open a bundle, run messages, get sounds and texts."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

import numpy as np

from .audio.pacing import ChunkProfile
from .audio.stream_decoder import SoundDecoder
from .bundle.bundle import Bundle, Verify
from .bundle.feature_spec import FeatureSpec
from .bundle.knowledge import Knowledge
from .bundle.packaged import default_bundle
from .conversation.answer import Answer
from .conversation.answering import AnswerOptions, Piece, SegmentDone, answer_segments
from .conversation.loop import OnRows
from .conversation.options import AudioOptions, TextOptions
from .conversation.prompt import Content, Message
from .conversation.resources import DEFAULT_CONTEXT, Resources, check_modality
from .conversation.segment import Segment
from .conversation.session import Session
from .conversation.sound_stream import SoundStream
from .conversation.state import Limits, SessionState
from .engines.protocol import Engine
from .engines.registry import Choice, choose
from .errors import InputError, UalmError
from .files.reading import shown
from .process.cores import check_threads
from .reasoning.modes import Reasoning
from .reasoning.results import ReasonMode
from .sampling import SHORTEST_SOUND_ROWS, AudioSampling, Mode, TextSampling, check_options
from .sound.reading import Source
from .sound.sound import Sound, Speech
from .vocabulary import Modality, check_codes

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:  # type checkers know it without the package
    from typing_extensions import Unpack


class Model:
    """An opened bundle. Use it as a context manager, or call :meth:`close`.

    Several threads may call one model; each call has its own cache.
    """

    def __init__(self, bundle: Bundle, engine: Engine, max_context: int, *, choice: Choice | None = None) -> None:
        """``choice``: how ``engine`` was chosen; None if it was given."""
        self.bundle, self.max_context = bundle, max_context
        self.choice = Choice(engine) if choice is None else choice
        self.resources = Resources.open(bundle, engine, max_context)  # what sessions, turns and reasonings share

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

        ``engine``: a name ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime"; see ``engines.registry``), or
        None for the one named by the environment variable UALM_ENGINE, else the best that can run here; :attr:`engine`
        and :attr:`passed_over` say which one runs and why no other does. ``threads``: CPU threads, None for all cores;
        more than that are refused, and engines that use none (TensorRT's) refuse any number. ``max_context``: rows that
        one conversation may hold (prompt and answer; a row is 20 ms of spoken sound, 40 ms of heard sound, or a text
        token), None for the smaller of 16384 and the model's limit.
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
        max_seconds: float | None = None,
        max_tokens: int | None = None,
        on_rows: OnRows | None = None,
    ) -> list[Segment]:
        """Answer a conversation: the lowest public call.

        ``messages`` are (role, content) pairs, or {"role": ..., "content": ...}, in order; a role is "system", "user"
        or "assistant", content is a str, a :class:`Sound`, a path to one (``pathlib.Path``), or the bytes or the open
        file of one; a sound or a path is marked with :class:`Speech` where it is speech to be transcribed. ``modality``
        forces the first segment's modality; the model chooses otherwise. ``mode``: see ``sampling.Mode``.
        ``max_seconds``: longest sound, in place of the ``max_steps`` of ``audio``; ``max_tokens``: longest text, in
        place of that of ``text``. ``on_rows(modality, rows)`` is called every few rows, on this thread; an exception
        from it ends the call.

        Raises :class:`InputError` (:class:`ContextError` where the rows do not fit) and :class:`ModalityError`.
        """
        resources = self.resources
        audio, text = resources.sampling(audio, text, max_seconds, max_tokens)
        check_options(mode, audio, text)
        check_modality(modality)
        if isinstance(max_segments, bool) or not isinstance(max_segments, Integral) or max_segments < 1:
            raise InputError(f"max_segments = {max_segments!r}: give a whole number of at least 1")
        if on_rows is not None and not callable(on_rows):
            raise InputError(f"on_rows = {shown(on_rows)}: give a function of a modality and a number of rows")
        prompt = resources.prompt(resources.checked(resources.read(messages)))
        options = AnswerOptions(modality, audio, text, mode, int(max_segments))
        segments: list[Segment] = []
        try:
            for step in answer_segments(resources.engine.open_sequence(), prompt, resources, options):
                if isinstance(step, SegmentDone):
                    segments.append(step.segment)
                elif isinstance(step, Piece) and step.rows and on_rows is not None:
                    on_rows(step.builder.modality, len(step.builder.rows))
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
        return Session(SessionState(self.resources, Limits(memory_limit, time_limit, max_segments)))

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        memory_limit: int | None = None,
        time_limit: float = math.inf,
        max_segments: int = 8,
    ) -> Session:
        """Go on with a session from :meth:`Session.save`, made with the same bundle; limits as in :meth:`session`."""
        return Session.restored(self.resources, path, Limits(memory_limit, time_limit, max_segments))

    def listen(self, sound: Sound | Source) -> Sound:
        """Start encoding a sound in the background, before the question about it is known.

        Returns the sound to put into a message. Features are cached by content, so any equal sound benefits.
        """
        heard = sound if isinstance(sound, Sound) else Sound.from_file(sound, longest=self.resources.features.longest)
        self.resources.features.start(heard)
        return heard

    def generate(
        self,
        text: str,
        *,
        audio: AudioSampling | None = None,
        on_rows: OnRows | None = None,
        **options: Unpack[AudioOptions],
    ) -> Sound:
        """Caption to sound. ``options`` override single fields of ``audio`` (``seed=7``, ``guidance=2.5``, ...).

        ``max_seconds=`` limits its length; ``seed=None`` draws a seed. The sound carries both: ``finish``, ``seed``.
        """
        audio = self.resources.audio_sampling(audio, options)
        segment = self.run([("user", text)], modality="audio", max_segments=1, audio=audio, on_rows=on_rows)[0]
        assert segment.sound is not None  # "fixed" mode draws at least one frame
        return segment.sound

    def stream(
        self,
        text: str,
        *,
        profile: str | ChunkProfile = "balanced",
        audio: AudioSampling | None = None,
        **options: Unpack[AudioOptions],
    ) -> SoundStream:
        """Caption to sound, streamed while it is made: the chunks joined are what :meth:`generate` gives.

        ``profile``: how large the chunks are, see ``pacing.PROFILES``; other arguments as in :meth:`generate`. A thread
        of its own computes ahead of the consumer, who iterates with ``for`` or ``async for``. Leaving the loop stops
        it, and so do ``cancel()`` and the end of a ``with`` block; at the end the stream has the whole ``sound``.
        """
        audio = self.resources.audio_sampling(audio, options)
        return SoundStream(self.session(max_segments=1).turn(text, modality="audio", audio=audio, profile=profile))

    def ask(
        self,
        sound: Sound | Speech | Source,
        question: str,
        *,
        text: TextSampling | None = None,
        on_rows: OnRows | None = None,
        **options: Unpack[TextOptions],
    ) -> Answer:
        """Answer a question about a sound, or a file as :meth:`Sound.from_file` takes it.

        The sound comes first, as in the training task ``audio_to_conversation``. ``options`` override single fields of
        ``text``. The answer is a ``str`` that also carries what ended it, ``finish``, and its ``seed``.
        """
        text = self.resources.text_sampling(text, options)
        heard: Content
        if isinstance(sound, (Sound, Speech, os.PathLike)):
            heard = sound
        else:
            heard = Sound.from_file(sound, longest=self.resources.features.longest)
        messages: list[Message] = [("user", heard), ("user", question)]
        segment = self.run(messages, modality="text", max_segments=1, text=text, on_rows=on_rows)[0]
        assert segment.text is not None
        return Answer(segment.text, segment.finish_reason, text.seed)

    def reason(
        self,
        prompt: str | Iterable[str],
        mode: ReasonMode = "enrich",
        *,
        rounds: int = 1,
        session: Session | None = None,
        audio: AudioSampling | None = None,
        text: TextSampling | None = None,
        max_tokens: int | None = None,
        **options: Unpack[AudioOptions],
    ) -> Reasoning:
        """Think before, between or after sounds: see ``reasoning``. Iterate for the events, or call ``result()``.

        ``prompt``: a text; in a "dialogue", the user's turns, one or many, also from an iterator, which is asked for
        the next turn once the previous one is over. ``rounds``: how often a sound may be heard again ("reflect").
        ``session``: a conversation to go on with, None for a new one. ``max_tokens``: longest text of a stage.
        ``options`` override single fields of ``audio``; ``seed`` is that of both modalities, None draws one, and turn k
        draws with seed + k, as its stages show. Bad input is refused here; the work starts with the iteration.
        """
        audio = self.resources.audio_sampling(audio, options)
        seeds = {"seed": audio.seed} if "seed" in options else {}
        text = self.resources.text_sampling(text, {"max_tokens": max_tokens} | seeds)
        check_options("fixed", audio, text)
        if session is not None and not isinstance(session, Session):
            raise InputError(
                f"session is a {type(session).__name__}; give one of Model.session(), or None for a new one"
            )
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
        return SoundDecoder(self.resources.engine, self.bundle, profile)

    def warm_up(self) -> None:
        """Load every part of the model and run it once, so that the first answer comes as fast as the next.

        Takes as long as a short question and a short sound; only the features of the noise that was heard are kept.
        """
        spec = FeatureSpec.from_json(self.bundle.manifest.features)
        noise = np.random.default_rng(0).normal(scale=0.1, size=min(spec.sample_rate, spec.max_samples))
        heard: list[Message] = [("user", Sound(noise, spec.sample_rate)), ("user", "Listen.")]
        self.run(heard, modality="text", max_segments=1, text=self.resources.text_sampling(None, {"max_steps": 2}))
        # the guided branch, the codec's first piece, its last one, and the head that chooses between sound and text
        frames = self.bundle.manifest.codec.first_frames + 1
        audio = self.resources.audio_sampling(None, {"max_steps": SHORTEST_SOUND_ROWS + frames})
        self.run([("user", "Play.")], modality="audio", max_segments=1, audio=audio)
        sequence = self.resources.engine.open_sequence()
        sequence.prefill(self.resources.prompt(self.resources.checked([("user", "Choose.")])))
        sequence.modality_logits()

    def close(self) -> None:
        """Free the engine. The model cannot be used afterwards."""
        self.resources.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({str(self.bundle.folder)!r}, engine={self.engine!r}, max_context={self.max_context})"

    @property
    def identity(self) -> str:
        """Digest of the bundle's manifest: equal for equal bundles."""
        return self.bundle.digest

    @property
    def engine(self) -> str:
        """Name of the engine that computes."""
        return self.resources.engine.name

    @property
    def passed_over(self) -> Mapping[str, str]:
        """For each faster engine that could not be opened, in order, a sentence why; empty if one was named."""
        return MappingProxyType(dict(self.choice.passed_over))

    @property
    def knows(self) -> Knowledge | None:
        """What the model knows, in words; None where its bundle does not say."""
        return self.bundle.manifest.knows

    def outside(self, prompt: str) -> bool:
        """Whether a prompt shares no word with what the model :attr:`knows`, so that its answer will be something else.

        False where the bundle does not say what the model knows, and for a prompt of stop words alone.
        """
        if not isinstance(prompt, str):
            raise InputError(f"prompt = {shown(prompt)}: give a text")
        return self.knows is not None and self.knows.outside(prompt)

    @property
    def longest_sound(self) -> float:
        """Seconds of the longest sound that the model can hear."""
        return self.resources.features.longest
