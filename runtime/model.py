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
    """An opened bundle: the public face of the runtime.

    Made by :meth:`Model.open`. Use it as a context manager, or call :meth:`close`, after the last turn has ended.
    Several threads may call one model; each call has its own cache.

    Parameters
    ----------
    bundle : Bundle
        The opened bundle.
    engine : Engine
        What computes.
    max_context : int
        Rows that one conversation may hold, prompt and answer.
    choice : Choice or None, default None
        How ``engine`` was chosen; None if it was given.

    Attributes
    ----------
    bundle : Bundle
        The opened bundle; ``bundle.manifest`` has the model's sizes, vocabulary, codec and sampling defaults.
    max_context : int
        Rows that one conversation may hold, prompt and answer.
    choice : Choice
        Which engine runs, and why others do not.
    resources : Resources
        What sessions, turns and reasonings share; not for callers.

    Raises
    ------
    BundleError
        If the tokenizer, or the stage after the codec, cannot be used.

    Examples
    --------
    >>> with Model.open(threads=1) as model:
    ...     model.generate("a trumpet plays C5", max_seconds=0.1).duration
    0.1
    """

    def __init__(self, bundle: Bundle, engine: Engine, max_context: int, *, choice: Choice | None = None) -> None:
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
        """Open a bundle folder, as ``ualm export`` writes it.

        A part of the model is loaded when it is first needed; :meth:`warm_up` loads all.

        Parameters
        ----------
        bundle : str, path-like or None, default None
            The folder; None for the model that comes with ualm. The environment variable UALM_BUNDLE is read by the
            command alone.
        engine : str or None, default None
            "tensorrt", "tensorrt-rtx", "onnxruntime-cuda" or "onnxruntime", see ``engines.registry``. None for the one
            named by the environment variable UALM_ENGINE, else the best that can run here; :attr:`engine` and
            :attr:`passed_over` say which one runs and why no other does.
        threads : int or None, default None
            CPU threads of each call, None for all cores; more than that are refused, and engines that use none
            (TensorRT's) refuse any number.
        max_context : int or None, default None
            Rows that one conversation may hold (prompt and answer; a row is 20 ms of spoken sound, 40 ms of heard
            sound, or a text token), None for the smaller of 16384 and the model's limit.
        verify : {"first", "always", "never"}, default "first"
            When file hashes are checked: at the first load (and after a change), always or never.

        Returns
        -------
        Model
            The model, ready to be called.

        Raises
        ------
        InputError
            For a number of threads or rows that cannot be used, and where no bundle is named and none comes with ualm.
        BundleError
            If the bundle is missing, damaged, changed, or from a newer version.
        EngineError
            If the engine is unknown or cannot run here.

        Examples
        --------
        >>> with Model.open(threads=1, max_context=1024) as small:
        ...     small.max_context
        1024
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
        """Answer a conversation: the lowest public call, without state.

        All messages are checked before anything is computed.

        Parameters
        ----------
        messages : sequence of messages
            (role, content) pairs, or {"role": ..., "content": ...}, in order. A role is "system", "user" or
            "assistant". Content is a str, a :class:`Sound`, a path to one (``pathlib.Path``), or the bytes or the open
            file of one; a sound or a path is marked with :class:`Speech` where it is speech to be transcribed.
        modality : {"audio", "text"} or None, default None
            Modality of the first segment; None lets the model choose, as it does for each further segment.
        mode : {"fixed", "reference"}, default "fixed"
            "fixed" repairs the defects of the published inference code, "reference" reproduces them, for parity tests.
        max_segments : int, default 8
            Most segments of the answer, at least 1; the last one has finish "eot" if the model would have gone on.
        audio : AudioSampling or None, default None
            How sounds are drawn; None for the bundle's defaults.
        text : TextSampling or None, default None
            How texts are drawn; None for the bundle's defaults.
        max_seconds : float or None, default None
            Longest sound in seconds, in place of the ``max_steps`` of ``audio``; None changes nothing.
        max_tokens : int or None, default None
            Longest text in tokens, in place of the ``max_steps`` of ``text``; None changes nothing.
        on_rows : callable or None, default None
            ``on_rows(modality, rows)`` is called every few rows, on this thread, with the rows of the segment so far;
            an exception from it ends the call.

        Returns
        -------
        list of Segment
            The segments of the answer, in order.

        Raises
        ------
        InputError
            For messages or options that cannot be used.
        ContextError
            Where the rows do not fit into ``max_context``.
        ModalityError
            Where the model chooses a modality that it has no parts for.
        EngineError
            Where the engine fails, or the model is closed.

        Examples
        --------
        >>> [segment] = model.run([("user", sound), ("user", "what is played?")], modality="text", max_segments=1)
        >>> segment.modality, segment.finish_reason, segment.rows.dtype
        ('text', 'stop', dtype('int32'))
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

        A turn that reaches a limit is taken back and raises that limit's error.

        Parameters
        ----------
        memory_limit : int or None, default None
            Bytes of cache that it may grow to, both branches counted; None for no limit but ``max_context``.
        time_limit : float, default inf
            Seconds of a turn, the time that a slow consumer takes included.
        max_segments : int, default 8
            Segments of a turn, at least 1.

        Returns
        -------
        Session
            A conversation without turns.

        Raises
        ------
        InputError
            For a limit that cannot be used.

        Examples
        --------
        >>> session = model.session(time_limit=60.0)
        >>> [answer] = session.ask([("user", sound), ("user", "what is played?")], modality="text")
        >>> session.turns
        1
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
        """Go on with a session that was saved, made with the same bundle.

        Parameters
        ----------
        path : str or path-like
            The file that :meth:`Session.save` wrote.
        memory_limit : int or None, default None
            Bytes of cache, as in :meth:`session`; limits are not saved.
        time_limit : float, default inf
            Seconds of a turn.
        max_segments : int, default 8
            Segments of a turn, at least 1.

        Returns
        -------
        Session
            A session with the turns of the saved one.

        Raises
        ------
        SessionError
            If the file is missing, cannot be read, is not a saved session, or belongs to another bundle.
        MemoryLimitError
            If its rows need more bytes than ``memory_limit``.
        ContextError
            If it has more rows than ``max_context``.
        InputError
            For a path or a limit that cannot be used.

        Examples
        --------
        >>> session = model.session()
        >>> answer = session.ask("a trumpet plays C5", modality="audio", max_seconds=0.1)
        >>> session.save("talk.npz")
        >>> model.restore("talk.npz").rows == session.rows
        True
        """
        return Session.restored(self.resources, path, Limits(memory_limit, time_limit, max_segments))

    def listen(self, sound: Sound | Source) -> Sound:
        """Start encoding a sound in the background, before the question about it is known.

        Features are cached by content, so any equal sound benefits.

        Parameters
        ----------
        sound : Sound, str, path-like, bytes or binary file
            A sound, or a file as :meth:`Sound.from_file` takes it, of at most :attr:`longest_sound` seconds.

        Returns
        -------
        Sound
            The sound to put into a message.

        Raises
        ------
        InputError
            If it cannot be read, or is too long or too short to be heard.
        EngineError
            If the model is closed.

        Examples
        --------
        >>> heard = model.listen(sound)
        >>> [answer] = model.session().ask([("user", heard), ("user", "what is played?")], modality="text")
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
        """Make a sound from a caption.

        Parameters
        ----------
        text : str
            What is to be heard.
        audio : AudioSampling or None, default None
            How it is drawn; None for the bundle's defaults.
        on_rows : callable or None, default None
            Called every few rows, as in :meth:`run`.
        **options : fields of AudioSampling, and max_seconds
            Single fields that replace those of ``audio`` (``seed=7``, ``guidance=2.5``, ...). ``max_seconds`` limits
            the length in seconds, in place of ``max_steps``, None changes nothing; ``seed=None`` draws a seed.

        Returns
        -------
        Sound
            The sound, with its ``codes``, ``finish`` and ``seed``.

        Raises
        ------
        InputError
            For a text or an option that cannot be used, and for ``max_steps`` beside ``max_seconds``.
        ContextError
            Where the rows do not fit into ``max_context``.
        EngineError
            Where the engine fails, or the model is closed.

        Examples
        --------
        >>> cut = model.generate("a trumpet plays C5", seed=7, max_seconds=0.1)
        >>> cut.codes.shape, cut.samples.shape, cut.finish, cut.seed  # 50 frames a second, 320 samples a frame
        ((5, 8), (1600,), 'max_seconds', 7)
        >>> drawn = model.generate("a trumpet plays C5", seed=None, max_seconds=0.1)
        >>> again = model.generate("a trumpet plays C5", seed=drawn.seed, max_seconds=0.1)
        >>> (again.codes == drawn.codes).all().item()
        True
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
        """Make a sound from a caption, and hand it over while it is made.

        The chunks joined are what :meth:`generate` gives. A thread of its own computes ahead of the consumer, who
        iterates with ``for`` or ``async for``. Leaving the loop stops it, and so do ``cancel()`` and the end of a
        ``with`` block; at the end the stream has the whole ``sound``. Bad input is refused here; the work starts with
        the iteration.

        Parameters
        ----------
        text : str
            What is to be heard.
        profile : str or ChunkProfile, default "balanced"
            How large the chunks are: "first_sound", "balanced", "throughput" (``pacing.PROFILES``) or a profile.
        audio : AudioSampling or None, default None
            How it is drawn; None for the bundle's defaults.
        **options : fields of AudioSampling, and max_seconds
            Single fields that replace those of ``audio``, as in :meth:`generate`.

        Returns
        -------
        SoundStream
            An iterator over :class:`SoundChunk` events.

        Raises
        ------
        InputError
            For a text or an option that cannot be used.

        Examples
        --------
        >>> stream = model.stream("a trumpet plays C5", seed=7, max_seconds=0.1)
        >>> [chunk.samples.shape for chunk in stream], stream.sound.finish
        ([(1600,)], 'max_seconds')
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
        """Answer a question about a sound.

        The sound comes first, as in the training task ``audio_to_conversation``.

        Parameters
        ----------
        sound : Sound, Speech, str, path-like, bytes or binary file
            A sound, or a file as :meth:`Sound.from_file` takes it.
        question : str
            What is asked.
        text : TextSampling or None, default None
            How the answer is drawn; None for the bundle's defaults.
        on_rows : callable or None, default None
            Called every few rows, as in :meth:`run`.
        **options : fields of TextSampling, and max_tokens
            Single fields that replace those of ``text``. ``max_tokens`` limits the answer in tokens, in place of
            ``max_steps``, None changes nothing; ``seed=None`` draws a seed.

        Returns
        -------
        Answer
            A ``str`` that also carries what ended it, ``finish``, and its ``seed``.

        Raises
        ------
        InputError
            For a sound, a question or an option that cannot be used, and for ``max_steps`` beside ``max_tokens``.
        ContextError
            Where the rows do not fit into ``max_context``.
        EngineError
            Where the engine fails, or the model is closed.

        Examples
        --------
        >>> answer = model.ask(sound, "what is played?")
        >>> "trumpet" in answer, answer.finish
        (True, 'stop')
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
        """Think before, between or after sounds.

        Iterate over what is returned for the events, or call its ``result()``. Bad input is refused here; the work
        starts with the iteration. :class:`Reasoning` says what the modes do.

        Parameters
        ----------
        prompt : str or iterable of str
            A text; in a "dialogue", the user's turns, one or many, also from an iterator, which is asked for the next
            turn once the previous one is over.
        mode : {"enrich", "dialogue", "reflect"}, default "enrich"
            What is done with it.
        rounds : int, default 1
            How often a sound may be heard again, at least 1; more than 1 only for "reflect".
        session : Session or None, default None
            A conversation to go on with; None for a new one.
        audio : AudioSampling or None, default None
            How sounds are drawn; None for the bundle's defaults.
        text : TextSampling or None, default None
            How texts are drawn; None for the bundle's defaults.
        max_tokens : int or None, default None
            Longest text of a stage in tokens, in place of the ``max_steps`` of ``text``; None changes nothing.
        **options : fields of AudioSampling, and max_seconds
            Single fields that replace those of ``audio``, as in :meth:`generate`. ``seed`` is that of both modalities,
            None draws one.

        Returns
        -------
        Reasoning
            The reasoning, not begun.

        Raises
        ------
        InputError
            For a prompt, a mode or an option that cannot be used.

        Notes
        -----
        Turn k, from 0, draws with seed + k, as its stages show: a second try gives another result.

        Examples
        --------
        >>> result = model.reason("something cheerful on a marimba", max_seconds=0.1).result()
        >>> [stage.kind for stage in result.stages], result.sound.duration
        (['caption', 'sound'], 0.1)
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
        """Decode codec codes to a sound, without the transformer.

        Parameters
        ----------
        codes : numpy.ndarray
            Integers [T, 8], 0 to ``codebook_size`` - 1, T at least 1.

        Returns
        -------
        Sound
            The sound of T frames, with the codes as int16.

        Raises
        ------
        InputError
            For codes that are not this model's.
        EngineError
            Where the engine fails, or the model is closed.

        Examples
        --------
        >>> model.decode(np.zeros((10, 8), np.int16))
        Sound(0.20 s at 16000 Hz, codes of 10 frames)
        """
        checked = check_codes(codes, self.bundle.manifest.vocabulary.codebook_size)
        decoder = self.decoder("throughput")
        pieces = [decoder.push_codes(checked), decoder.flush()]
        return Sound(np.concatenate(pieces), decoder.sample_rate, checked)

    def decoder(self, profile: str | ChunkProfile = "balanced") -> SoundDecoder:
        """Make a decoder for codes that come piece by piece; its sound is that of :meth:`decode`.

        Parameters
        ----------
        profile : str or ChunkProfile, default "balanced"
            How large the pieces of sound are: "first_sound", "balanced", "throughput" or a profile.

        Returns
        -------
        SoundDecoder
            The decoder, for one sound after the other.

        Raises
        ------
        InputError
            For an unknown profile.
        EngineError
            Where the codec cannot be loaded, or the model is closed.

        Examples
        --------
        >>> decoder = model.decoder("first_sound")
        >>> pieces = [decoder.push_codes(part) for part in np.array_split(sound.codes, 5)]
        >>> len(np.concatenate([*pieces, decoder.flush()])) == len(sound.samples)
        True
        """
        return SoundDecoder(self.resources.engine, self.bundle, profile)

    def warm_up(self) -> None:
        """Load every part of the model and run it once, so that the first answer comes as fast as the next.

        Takes as long as a short question and a short sound; only the features of the noise that was heard are kept.

        Raises
        ------
        EngineError
            If a part cannot be loaded, or the model is closed.

        Examples
        --------
        >>> model.warm_up()
        """
        spec = self.bundle.manifest.features
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
        """Free the engine. The model cannot be used afterwards.

        Examples
        --------
        >>> small = Model.open(threads=1, max_context=1024)
        >>> small.close()
        >>> small.generate("a trumpet plays C5")
        Traceback (most recent call last):
        ualm.runtime.errors.EngineError: the model is closed; open it again
        """
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
        """Digest of the bundle's manifest, in hexadecimal: equal for equal bundles."""
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
        """Tell whether a prompt shares no word with what the model knows, so that its answer will be something else.

        Parameters
        ----------
        prompt : str
            A caption or a question. Its words are compared with those of :attr:`knows`: case, punctuation and a
            plural's ending do not.

        Returns
        -------
        bool
            False where the bundle does not say what the model knows, and for a prompt of stop words alone.

        Raises
        ------
        InputError
            If ``prompt`` is not a text.

        Examples
        --------
        >>> model.outside("a dog barks twice"), model.outside("a trumpet plays C5")
        (True, False)
        """
        if not isinstance(prompt, str):
            raise InputError(f"prompt = {shown(prompt)}: give a text")
        return self.knows is not None and self.knows.outside(prompt)

    @property
    def longest_sound(self) -> float:
        """Seconds of the longest sound that the model can hear."""
        return self.resources.features.longest
