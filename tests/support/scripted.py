"""A random model that answers according to a script.

Its rows really pass through body, cache and codec; only the draws are decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from ualm.runtime import Model
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeSequence
from ualm.runtime.engines.protocol import Frames
from ualm.runtime.vocabulary import CHOOSABLE, EOS, EOT, MODALITIES, STREAMS


@dataclass(frozen=True)
class Says:
    """A text segment."""

    text: str
    finish: Literal["eos", "eot"] = "eos"


@dataclass(frozen=True)
class Plays:
    """An audio segment with so many frames, in which every code is ``code``."""

    frames: int = 300
    finish: Literal["eos", "eot"] = "eos"
    code: int = 1


@dataclass
class Script:
    """The record: the segments drawn so far (modality, seed), and the turns' inputs as texts and "[sound]"."""

    segments: list[Says | Plays]
    drawn: list[tuple[str, int]] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)


@contextmanager
def scripted(model: Model, *segments: Says | Plays) -> Iterator[Script]:
    """The model produces the segments, one after the other, for any request; the test fails unless all are used."""
    script, vocabulary, text = Script(list(segments)), model.resources.vocabulary, model.resources.tokenizer
    prefill, state = OnnxRuntimeSequence.prefill, {}

    def note(parts: Any) -> None:
        for part in parts:
            if part.dtype == np.float32:
                script.heard.append("[sound]")
                continue
            ids: list[int] = []
            for token in [*part[:, 0], -1]:
                if vocabulary.text_base <= token < vocabulary.text_base + vocabulary.text_size:
                    ids.append(int(token) - vocabulary.text_base)
                elif ids:
                    script.heard.append(text.decode(ids))
                    ids = []

    def noted_prefill(self: Any, parts: Any) -> None:
        note(parts)
        prefill(self, parts)

    def modality_logits(self: Any) -> np.ndarray:
        wanted = "text" if isinstance(script.segments[0], Says) else "audio"
        return np.array([name == wanted for name in CHOOSABLE], np.float32)

    def begin_segment(self: Any, modality: str, sampling: Any, **options: Any) -> None:
        plan = script.segments.pop(0)
        assert modality == ("text" if isinstance(plan, Says) else "audio"), f"{modality} was asked for, {plan} follows"
        script.drawn.append((modality, sampling.seed))
        stop = vocabulary.special_row(EOS if plan.finish == "eos" else EOT)
        if isinstance(plan, Says):
            rows = list(vocabulary.text_rows(text.encode(plan.text))) if plan.text else []
            latents = np.zeros((0, 1), np.float32)
        else:
            codes = np.full((plan.frames, STREAMS), plan.code, np.int16)
            rows = list(vocabulary.delayed_rows(codes))
            latents = self._engine.codes_to_latents(codes)
        state[id(self)] = [vocabulary.special_row(MODALITIES[modality]), [*rows, stop], latents, 0]

    def run_frames(self: Any, count: int) -> Frames:
        last, rows, latents, done = state[id(self)]
        prefill(self, [last[None]])
        row, rest = rows[0], rows[1:]
        first = max(done - STREAMS + 1, 0)
        complete = latents[first : max(done - STREAMS + 2, 0)]
        state[id(self)] = [row, rest, latents, done + 1]
        if not rest:
            complete = latents[:0]
        return Frames(row[None], complete, None if rest else "stop")

    with pytest.MonkeyPatch.context() as patch:
        for name, made in (
            ("prefill", noted_prefill),
            ("modality_logits", modality_logits),
            ("begin_segment", begin_segment),
            ("run_frames", run_frames),
        ):
            patch.setattr(OnnxRuntimeSequence, name, made)
        yield script
    assert not script.segments, f"never played: {script.segments}"
