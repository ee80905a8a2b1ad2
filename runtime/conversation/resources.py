"""What all conversations with one model share, and the checks of their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..audio.feature_cache import FeatureCache
from ..audio.features import LogMelFrontend
from ..audio.pacing import ChunkProfile, Pace
from ..audio.post_codec import open_post_codec
from ..bundle.bundle import TOKENIZER, Bundle
from ..engines.protocol import Engine
from ..errors import InputError
from ..sampling import AudioSampling, TextSampling, check_kind
from ..sound.sound import Sound
from ..text.tokenizer import TextCodec
from ..vocabulary import Modality, Vocabulary
from .options import changed
from .prompt import CheckedMessage, Message, check_messages, prompt_parts, read_sources
from .segment import SegmentBuilder

#: Rows reserved for a conversation by default: five minutes of heard sound and a long answer.
DEFAULT_CONTEXT = 16384

_Sampling = TypeVar("_Sampling", AudioSampling, TextSampling)


@dataclass(frozen=True)
class Resources:
    """An opened model, as its sessions, turns and reasonings use it.

    ``features``: encodes sounds, each content once. ``pace``: how long a row and a codec call take here, for sounds
    that are played while they are made. ``audio``, ``text``: the bundle's sampling defaults.
    """

    bundle: Bundle
    engine: Engine
    max_context: int
    tokenizer: TextCodec
    features: FeatureCache
    pace: Pace
    audio: AudioSampling
    text: TextSampling

    @classmethod
    def open(cls, bundle: Bundle, engine: Engine, max_context: int) -> Resources:
        """:class:`BundleError` if the tokenizer, or the stage after the codec, cannot be used."""
        manifest = bundle.manifest
        tokenizer = TextCodec(bundle.path(TOKENIZER), manifest.vocabulary.text_size)
        frontend = LogMelFrontend(manifest.features, bundle.table("encoder.mel_filters"))
        open_post_codec(bundle)  # an unknown stage is refused when opening, not at the first sound
        defaults = manifest.sampling
        return cls(
            bundle,
            engine,
            max_context,
            tokenizer,
            FeatureCache(frontend, engine),
            Pace(),
            defaults.audio,
            defaults.text,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return self.bundle.manifest.vocabulary

    def read(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, with sounds in place of bytes and open files, which can be read only once."""
        return read_sources(messages, self.features.longest)

    def checked(self, messages: Sequence[Message]) -> list[CheckedMessage]:
        """See :func:`check_messages`."""
        return check_messages(messages, self.vocabulary, self.tokenizer, self.features.check, self.features.longest)

    def prompt(
        self,
        messages: Sequence[CheckedMessage],
        hear: Callable[[Sound], np.ndarray] | None = None,
        *,
        first: bool = True,
    ) -> list[np.ndarray]:
        """Rows and features of messages, see :func:`prompt_parts`; ``hear`` None: :attr:`features`."""
        return prompt_parts(messages, self.vocabulary, self.features.features if hear is None else hear, first=first)

    def builder(self, modality: Modality, profile: ChunkProfile, seed: int, *, live: bool) -> SegmentBuilder:
        """A builder for a segment. ``live``: its sound is played while it is made, so its pieces follow the clock."""
        pace = self.pace if live else None
        return SegmentBuilder(modality, self.bundle, self.tokenizer, self.engine, profile, pace, seed)

    def audio_sampling(self, audio: AudioSampling | None, values: Mapping[str, Any]) -> AudioSampling:
        """The bundle's defaults, or ``audio``, with single fields replaced."""
        return self._with(self.audio if audio is None else audio, values, AudioSampling)

    def text_sampling(self, text: TextSampling | None, values: Mapping[str, Any]) -> TextSampling:
        """The bundle's defaults, or ``text``, with single fields replaced."""
        return self._with(self.text if text is None else text, values, TextSampling)

    def sampling(
        self,
        audio: AudioSampling | None,
        text: TextSampling | None,
        max_seconds: float | None,
        max_tokens: int | None,
    ) -> tuple[AudioSampling, TextSampling]:
        """Options of both modalities; ``max_seconds`` and ``max_tokens`` replace their ``max_steps``."""
        return (
            self.audio_sampling(audio, {"max_seconds": max_seconds}),
            self.text_sampling(text, {"max_tokens": max_tokens}),
        )

    def _with(self, options: _Sampling, values: Mapping[str, Any], wanted: type[_Sampling]) -> _Sampling:
        check_kind(wanted, options)
        return changed(options, values, self.bundle.manifest.codec, self.max_context) if values else options

    def close(self) -> None:
        """Free the engine; nothing can be computed afterwards."""
        self.features.close()
        self.engine.close()


def check_modality(modality: object) -> None:
    """:class:`InputError` unless it is a modality that can be asked for, or None."""
    if modality not in (None, "audio", "text"):
        raise InputError(f"modality = {modality!r}: choose 'audio', 'text', or None to let the model choose")
