"""How well a bundle's narrower weights agree with fp32, measured on what the finished bundle itself generates.

The engine answers built-in prompts, as users will run it; the rows it draws then go through the body in float32 with
the checkpoint's weights, and both sets of logits are compared where a token was drawn. Guidance is on, because it
multiplies an error in the logits and tokens are drawn from the guided distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...runtime.bundle.bundle import TOKENIZER, Bundle
from ...runtime.bundle.feature_spec import FeatureSpec
from ...runtime.conversation.prompt import Message, check_messages, prompt_parts
from ...runtime.engines.protocol import Engine, EngineSequence
from ...runtime.files.safetensors_reader import widen
from ...runtime.sampling import AudioSampling, TextSampling
from ...runtime.sound.sound import Sound
from ...runtime.text.tokenizer import TextCodec
from ...runtime.vocabulary import MODALITIES, ROLES, STREAMS, Modality, Vocabulary
from ..run.qwen2 import BackboneShape

#: Prompts of the held rows; calibration never sees them.
PROMPTS = (
    "Rain on a tin roof, with thunder rolling far away.",
    "A small dog barks twice and a gate creaks open.",
    "Slow piano chords in a large, empty hall.",
    "Footsteps on gravel come closer, then a door slams shut.",
    # long enough that the matrices for long prompts read it, with any tokenizer
    "A harbour at dawn: water laps against wooden boats, ropes creak, a gull cries three times, far off a ship's horn "
    "answers, then an old engine coughs, starts, and runs unevenly while two men talk quietly and a bell rings.",
)
HELD: Sequence[Sequence[Message]] = [[("user", prompt)] for prompt in PROMPTS]
#: Rows drawn per prompt.
MODALITY_ROWS: Mapping[Modality, int] = {"audio": 32, "text": 16}


@dataclass(frozen=True)
class HeldSegment:
    """An engine's answer: embeddings fed before the first row, rows int32 [n, 8], logits float32 [n, branches, L].

    ``prompt``: what it read before the segment, as :func:`read_rows` returns it.
    """

    modality: Modality
    prefix: np.ndarray
    rows: np.ndarray
    logits: np.ndarray
    prompt: Sequence[np.ndarray] = ()


@dataclass
class Agreement:
    """Sums over draws, and the figures computed from them."""

    draws: np.ndarray = field(default_factory=lambda: np.zeros(STREAMS, np.int64))
    same: np.ndarray = field(default_factory=lambda: np.zeros(STREAMS, np.int64))
    divergence: float = 0.0

    def add(self, stream: int, exact: np.ndarray, found: np.ndarray) -> None:
        """Two sets of logits float32 [n] over the same candidates."""
        self.draws[stream] += 1
        self.same[stream] += int(np.argmax(exact) == np.argmax(found))
        p, q = _log_softmax(exact), _log_softmax(found)
        self.divergence += float(np.sum(np.exp(p) * (p - q)))

    def to_json(self) -> dict[str, Any]:
        used = self.draws > 0
        by_stream = (self.same[used] / self.draws[used]).round(4).tolist()
        draws = int(self.draws.sum())
        return {
            "draws": draws,
            "top1": round(float(self.same.sum() / draws), 4),
            "top1_by_stream": by_stream,
            "kl": float(f"{self.divergence / draws:.3g}"),
        }


def hold_rows(
    engine: Engine,
    bundle: Bundle,
    conversations: Sequence[Sequence[Message]] = HELD,
    hear: Callable[[Sound], np.ndarray] | None = None,
) -> list[HeldSegment]:
    """Let the engine answer each conversation, in sound and in text; ``hear`` returns the features of sounds."""
    vocabulary = bundle.manifest.vocabulary
    embedding = bundle.table("embedding")
    held: list[HeldSegment] = []
    for index, parts in enumerate(read_rows(bundle, conversations, hear)):
        prompt = embed_parts(embedding, parts)
        sequence = engine.open_sequence()
        sequence.prefill(parts)
        for modality in MODALITY_ROWS:
            marker = _embed(embedding, vocabulary.special_row(MODALITIES[modality])[None])
            prefix = np.concatenate([prompt, marker])
            sequence.truncate(len(prompt))
            for rows, logits in _answers(sequence, modality, seed=index):
                held.append(HeldSegment(modality, prefix, rows, logits, parts))
    return held


def read_rows(
    bundle: Bundle, conversations: Sequence[Sequence[Message]], hear: Callable[[Sound], np.ndarray] | None = None
) -> Iterator[list[np.ndarray]]:
    """What the model reads of each conversation before it answers: rows int32 [n, 8], and features float32 [n, H] of
    sounds."""
    vocabulary = bundle.manifest.vocabulary
    text = TextCodec(bundle.path(TOKENIZER))
    assistant = vocabulary.special_row(ROLES["assistant"])[None]
    for messages in conversations:
        checked = check_messages(messages, vocabulary, text, lambda sound: None)
        yield [*prompt_parts(checked, vocabulary, hear or _deaf), assistant]


def embed_parts(table: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Input embeddings float32 [n, H] of what :func:`read_rows` returns for a conversation."""
    return np.concatenate([part if part.dtype == np.float32 else _embed(table, part) for part in parts])


def _deaf(sound: Sound) -> np.ndarray:
    raise AssertionError("no conversation holds a sound")


def default_sampling(modality: Modality, rows: int, seed: int = 0) -> AudioSampling | TextSampling:
    """The sampling of ``rows`` rows, as UALM's authors do it."""
    options: dict[str, Any] = {"seed": seed, "max_steps": rows + STREAMS}
    return AudioSampling(**options) if modality == "audio" else TextSampling(**options)


def _answers(sequence: EngineSequence, modality: Modality, *, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows int32 [n, 8] and logits [n, branches, L] of segments appended to what the sequence holds, until enough rows
    are drawn."""
    wanted, length = MODALITY_ROWS[modality], sequence.length
    sampling = default_sampling(modality, wanted, seed)
    for segment in itertools.count():  # a segment may end early; the next draws differ by its number
        sequence.truncate(length)
        sequence.begin_segment(modality, sampling, mode="fixed", segment=segment)
        rows, logits = [], []
        end = None
        while wanted > 0 and end is None:
            frames = sequence.run_frames(1)
            rows.append(frames.rows)
            logits.append(sequence.logits.copy())
            wanted, end = wanted - 1, frames.end
        yield np.concatenate(rows), np.stack(logits)
        if wanted == 0:
            return


def branches(segment: HeldSegment, embedding: np.ndarray) -> list[np.ndarray]:
    """Input embeddings float32 [n, H] of what the body read: conditional, and with guidance the null branch."""
    fed = _embed(embedding, segment.rows[:-1])
    sequences = [np.concatenate([segment.prefix, fed])]
    if segment.logits.shape[1] == 2:  # the null branch's prefix is all zeros except for the modality row
        sequences.append(np.concatenate([np.zeros_like(segment.prefix[:-1]), segment.prefix[-1:], fed]))
    return sequences


def held_codes(held: Sequence[HeldSegment], vocabulary: Vocabulary) -> np.ndarray:
    """Codes int16 [T, 8] of the sounds among the held rows, one after the other."""
    cells = [segment.rows - vocabulary.pads - 1 for segment in held if segment.modality == "audio"]
    rows = np.concatenate(cells)
    # rows as drawn, with the delay: any codes will do for the codec
    return np.clip(rows, 0, vocabulary.codebook_size - 1).astype(np.int16)


def probe_sound(spec: FeatureSpec) -> Sound:
    """Three seconds, or what the encoder takes: a rising tone, then bursts of noise, then a chord."""
    random = np.random.default_rng(20261012)
    time = np.arange(spec.sample_rate) / spec.sample_rate
    sweep = np.sin(2 * np.pi * (200 + 900 * time) * time)
    bursts = random.standard_normal(len(time)) * (np.sin(2 * np.pi * 4 * time) > 0)
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (262, 330, 392))
    samples = np.concatenate([sweep, bursts, chord / 3])[: spec.max_samples]
    return Sound(0.3 * samples.astype(np.float32), spec.sample_rate)


def compare(
    held: Sequence[HeldSegment],
    exact: Callable[[str], np.ndarray],
    shape: BackboneShape,
    vocabulary: Vocabulary,
    embedding: np.ndarray,
) -> dict[str, Agreement]:
    """Agreement by modality of the held logits with those of the weights that ``exact`` returns in float32."""
    from .reference_body import hidden_states  # needs torch, which comparing two bundles does not

    # one pass over the layers for all, because reading them takes the time
    hidden = iter(hidden_states(exact, shape, [sequence for each in held for sequence in branches(each, embedding)]))
    heads = {name: exact(f"head.{name}") for name in MODALITY_ROWS}
    biases: dict[str, Any] = {"audio": exact("head.audio.bias"), "text": np.float32(0)}
    exact_logits = []
    for segment in held:
        states = [next(hidden) for _ in range(segment.logits.shape[1])]
        # the hidden state of the last prefix row yields the first drawn row's logits
        drawn = [
            state[len(segment.prefix) - 1 :] @ heads[segment.modality] + biases[segment.modality] for state in states
        ]
        exact_logits.append(np.stack(drawn, axis=1))
    return tally(held, exact_logits, [segment.logits for segment in held], vocabulary)


def tally(
    held: Sequence[HeldSegment],
    exact: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    vocabulary: Vocabulary,
) -> dict[str, Agreement]:
    """Agreement by modality of two sets of logits float32 [n, branches, L] for the rows of each held segment."""
    counted = {"audio": Agreement(), "text": Agreement()}
    scales = {"audio": AudioSampling().guidance, "text": TextSampling().guidance}
    for segment, right, ours in zip(held, exact, found, strict=True):
        scale = scales[segment.modality]
        for row, (mixed, drawn) in enumerate(zip(_mix(right, scale), _mix(ours, scale), strict=True)):
            for stream, columns in _candidates(segment, row, vocabulary):
                counted[segment.modality].add(stream, mixed[columns], drawn[columns])
    return counted


def _mix(logits: np.ndarray, scale: float) -> np.ndarray:
    """float32 [n, L] of float32 [n, branches, L]."""
    return logits[:, 0] if logits.shape[1] == 1 else scale * logits[:, 0] + (1 - scale) * logits[:, 1]


def _candidates(segment: HeldSegment, row: int, vocabulary: Vocabulary) -> Iterator[tuple[int, slice]]:
    """Streams in which a token was drawn at a row, and the columns it was drawn from."""
    if segment.modality == "text":
        yield 0, slice(0, 2 + vocabulary.text_size)
        return
    width = vocabulary.codebook_size + 1
    for stream in range(STREAMS):
        base = int(vocabulary.pads[stream])
        if base < segment.rows[row, stream] < base + width:  # anything else was a held token or ended the segment
            # the stream's codes; its pad, eos and eot, which end sounds, are left out
            yield stream, slice(2 + stream * width + 1, 2 + (stream + 1) * width)


def _embed(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Input embeddings float32 [n, H] of rows int32 [n, 8]; id 0 has a row of zeros."""
    return widen(table[rows]).sum(axis=1, dtype=np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def cosine(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Mean and smallest cosine similarity of rows float32 [n, H]."""
    a, b = exact.astype(np.float64), found.astype(np.float64)
    angles = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return {"cosine": round(float(angles.mean()), 6), "cosine_least": round(float(angles.min()), 6)}


def signal_to_noise(exact: np.ndarray, found: np.ndarray) -> float:
    """Signal-to-noise ratio of ``found`` against ``exact`` in decibels; 200 where they are equal, -inf for NaN or
    infinity."""
    noise = float(np.square(exact.astype(np.float64) - found).sum())
    if not math.isfinite(noise):
        return -math.inf
    signal = float(np.square(exact, dtype=np.float64).sum())
    return round(10 * math.log10(signal / noise), 2) if noise > signal * 1e-20 else 200.0
