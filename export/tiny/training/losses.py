"""The loss of a batch of conversations: cross-entropies over the ids that can be drawn, with and without guidance.

A model trained without guidance is useless at guidance 3: ``u + s (c - u)`` lifts the tail of the distribution. So the
loss covers what is drawn: CE(c) + 0.3 CE(u) + CE(u + s (c - u)) with s uniform in 1.5 .. 4, and u the null branch as in
inference (all rows zero up to the modality row, which both branches are fed).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....runtime.audio.features import log_mel, normalized
from ....runtime.vocabulary import EOS, STREAMS, Vocabulary
from ..corpus.writer import AUDIO, FEATURES, MODALITY, TEXT, Example
from .network import TinyUalm

NULL_WEIGHT, PROBE_WEIGHT = 0.3, 0.5
GUIDANCE = (1.5, 4.0)
#: Rows of a chunk, padding included, computed at once.
_CHUNK_ROWS = 1400


@dataclass
class Losses:
    """``total``: the loss to minimise; ``curves``: name -> (sum, weight), to be averaged over steps."""

    total: Tensor
    curves: dict[str, tuple[float, float]] = field(default_factory=dict)


def mel_filters() -> np.ndarray:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(201, 128, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    return filters.astype(np.float32)


@dataclass
class _Item:
    """One sequence to compute: an example, or the null branch of one of its sounds."""

    rows: np.ndarray
    features: list[tuple[int, Tensor]]
    #: Rows whose hidden states are needed (the row before a target).
    wanted: np.ndarray
    hidden: Tensor | None = None


class LossFunction:
    def __init__(self, network: TinyUalm, filters: np.ndarray) -> None:
        self.network, self._filters = network, filters
        self.vocabulary: Vocabulary = network.vocabulary
        self._device = network.lm_head.weight.device

    def _put(self, array: np.ndarray) -> Tensor:
        """The array, on the network's device."""
        return torch.from_numpy(array).to(self._device)

    def __call__(self, examples: Sequence[Example], rng: random.Random, guided: float, null: float) -> Losses:
        """``guided``: share of the sounds trained with both branches and guidance; ``null``: with both, unguided."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            return self._compute(examples, rng, guided, null)

    def _compute(self, examples: Sequence[Example], rng: random.Random, guided: float, null: float) -> Losses:
        curves: dict[str, tuple[float, float]] = {}
        probe_loss, features = self._hear(examples, curves)
        items = [_Item(e.rows, f, np.flatnonzero(e.kinds) - 1) for e, f in zip(examples, features, strict=True)]
        branches: list[tuple[int, int, int, bool]] = []  # example, first and stop row, guided
        nulls: list[_Item] = []
        for index, example in enumerate(examples):
            if example.sounds and (draw := rng.random()) < guided + null:
                first, stop = rng.choice(example.sounds)
                rows = example.rows[:stop].copy()
                rows[:first] = 0
                nulls.append(_Item(rows, [], np.arange(first, stop - 1)))
                branches.append((index, first, stop, draw < guided))
        self._run(items + nulls)

        kinds = np.concatenate([e.kinds[e.kinds > 0] for e in examples])
        rows = self._put(np.concatenate([e.rows[e.kinds > 0] for e in examples]).astype(np.int64))
        weights = self._put(np.concatenate([e.weights[e.kinds > 0] for e in examples]))
        tasks = np.concatenate([np.full(int((e.kinds > 0).sum()), e.task, object) for e in examples])
        hidden = torch.cat([item.hidden for item in items if item.hidden is not None])

        total = PROBE_WEIGHT * probe_loss + self._text(hidden, rows, weights, kinds, tasks, curves)
        audio = np.flatnonzero(kinds == AUDIO)
        if len(audio):
            logits = self.network.audio_logits(hidden[self._put(audio)]).float()
            targets = self._audio_targets(rows[audio])
            cells = self._cross_entropy(logits, targets)
            total = total + _mean(cells, weights[audio])
            _curve(curves, "audio", cells.detach(), weights[audio])
            self._audio_curves(curves, logits.detach(), targets, weights[audio], tasks[audio])
            if branches:
                total = total + self._branches(
                    examples, kinds, audio, logits, targets, weights, branches, nulls, rng, curves
                )
        return Losses(total, curves)

    def _hear(
        self, examples: Sequence[Example], curves: dict[str, tuple[float, float]]
    ) -> tuple[Tensor, list[list[tuple[int, Tensor]]]]:
        found: list[list[tuple[int, Tensor]]] = [[] for _ in examples]
        heard = [(index, sound) for index, example in enumerate(examples) for sound in example.heard]
        if not heard:
            return torch.zeros((), device=self._device), found
        mels = [self._put(log_mel(normalized(sound.samples), FEATURES, self._filters)) for _, sound in heard]
        features = self.network.hear(mels)
        for (index, sound), part in zip(heard, torch.split(features, [s.rows for _, s in heard]), strict=True):
            found[index].append((sound.start, part))
        logits = self.network.probe(features).float()
        classes = self._put(np.concatenate([s.classes for _, s in heard]))
        onsets = self._put(np.concatenate([s.onsets for _, s in heard])).float()
        loss = F.cross_entropy(logits[:, :-1], classes) + F.binary_cross_entropy_with_logits(logits[:, -1], onsets)
        right = (logits[:, :-1].argmax(1) == classes).float()
        curves["probe"] = (float(loss.detach()) * len(classes), len(classes))
        curves["probe_right"] = (float(right.sum()), len(classes))
        return loss, found

    def _run(self, items: list[_Item]) -> None:
        """Compute the hidden states that are needed, batching sequences of similar length."""
        order = sorted(range(len(items)), key=lambda i: len(items[i].rows))
        chunks: list[list[int]] = [[]]
        for index in order:
            if chunks[-1] and (len(chunks[-1]) + 1) * len(items[index].rows) > _CHUNK_ROWS:
                chunks.append([])
            chunks[-1].append(index)
        for chunk in chunks:
            longest = max(len(items[i].rows) for i in chunk)
            rows = np.zeros((len(chunk), longest, STREAMS), np.int64)
            for place, index in enumerate(chunk):
                rows[place, : len(items[index].rows)] = items[index].rows
            embedded = self.network.embed(self._put(rows))
            places = [
                (place * longest + start, part) for place, i in enumerate(chunk) for start, part in items[i].features
            ]
            if places:
                flat = embedded.reshape(-1, embedded.shape[-1])
                at = torch.cat([torch.arange(start, start + len(part), device=self._device) for start, part in places])
                flat = flat.index_copy(0, at, torch.cat([part for _, part in places]).to(flat.dtype))
                embedded = flat.view(len(chunk), longest, -1)
            hidden = self.network.body(embedded)
            for place, index in enumerate(chunk):
                items[index].hidden = hidden[place, self._put(items[index].wanted)]

    def _text(
        self,
        hidden: Tensor,
        rows: Tensor,
        weights: Tensor,
        kinds: np.ndarray,
        tasks: np.ndarray,
        curves: dict[str, tuple[float, float]],
    ) -> Tensor:
        v, total = self.vocabulary, torch.zeros((), device=self._device)
        text = np.flatnonzero(kinds == TEXT)
        if len(text):
            logits = self.network.text_logits(hidden[self._put(text)]).float()
            ids = rows[text, 0]
            targets = torch.where(ids >= v.text_base, ids - v.text_base, ids - EOS + v.text_size)
            cells, weight = F.cross_entropy(logits, targets, reduction="none"), weights[text, 0]
            total = total + _mean(cells, weight)
            right = (logits.argmax(1) == targets).float()
            for task in set(tasks[text]):
                of_task = self._put((tasks[text] == task).astype(np.bool_))
                _curve(curves, f"text.{task}", cells.detach()[of_task])
                content = of_task & (weight > 1)
                _curve(curves, f"content_right.{task}", right[content])
        modality = np.flatnonzero(kinds == MODALITY)
        if len(modality):
            logits = self.network.modality_logits(hidden[self._put(modality)]).float()
            cells = F.cross_entropy(logits, rows[modality, 0] - 7, reduction="none")
            total = total + 0.2 * _mean(cells, weights[modality, 0])
            _curve(curves, "modality", cells.detach(), weights[modality, 0])
        return total

    def _audio_targets(self, rows: Tensor) -> Tensor:
        """[N, 8]: class of each stream; 1025 and 1026 for eos and eot in stream 0, -100 if nothing is drawn."""
        pads = self._put(self.vocabulary.pads.astype(np.int64))
        targets = rows - pads
        each = self.vocabulary.codebook_size + 1
        stop = rows[:, 0] < self.vocabulary.audio_base
        targets[stop] = -100
        targets[stop, 0] = rows[stop, 0] - EOS + each
        return targets

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cells [N, 8] from the logits of :meth:`TinyUalm.audio_logits`."""
        each, count = self.vocabulary.codebook_size + 1, len(logits)
        first = torch.cat([logits[:, :each], logits[:, -2:]], 1)
        rest = logits[:, each:-2].reshape(count * (STREAMS - 1), each)
        a = F.cross_entropy(first, targets[:, 0], reduction="none")
        b = F.cross_entropy(rest, targets[:, 1:].reshape(-1), reduction="none", ignore_index=-100)
        return torch.cat([a[:, None], b.view(count, STREAMS - 1)], 1)

    def _branches(
        self,
        examples: Sequence[Example],
        kinds: np.ndarray,
        audio: np.ndarray,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        branches: list[tuple[int, int, int, bool]],
        nulls: list[_Item],
        rng: random.Random,
        curves: dict[str, tuple[float, float]],
    ) -> Tensor:
        """The terms with the null branch, over the rows of the chosen sounds."""
        begins = np.cumsum([0] + [int((e.kinds > 0).sum()) for e in examples])
        place_of = np.full(len(kinds), -1)
        place_of[audio] = np.arange(len(audio))
        places, scales = [], []
        for index, first, stop, is_guided in branches:
            learnt = begins[index] + np.cumsum(examples[index].kinds > 0)[first + 1 : stop] - 1
            places.append(place_of[learnt])
            scales += [rng.uniform(*GUIDANCE) if is_guided else 0.0] * (stop - 1 - first)
        at = self._put(np.concatenate(places))
        cell_weights = weights[self._put(audio)][at]
        u = self.network.audio_logits(torch.cat([n.hidden for n in nulls if n.hidden is not None])).float()
        null_cells = self._cross_entropy(u, targets[at])
        loss = NULL_WEIGHT * _mean(null_cells, cell_weights.clamp(max=1))
        _curve(curves, "null", null_cells.detach(), cell_weights.clamp(max=1))
        scale = torch.tensor(scales, device=self._device)
        use = torch.nonzero(scale > 0)[:, 0]
        if len(use):
            null_used = u[use]
            mixed = null_used + scale[use, None] * (logits[at[use]] - null_used)
            guided_targets = targets[at[use]]
            cells = self._cross_entropy(mixed, guided_targets)
            loss = loss + _mean(cells, cell_weights[use])
            _curve(curves, "guided", cells.detach(), cell_weights[use])
            onsets = cell_weights[use][:, 0] >= 8
            right = (mixed.detach()[:, : self.vocabulary.codebook_size + 1].argmax(1) == guided_targets[:, 0]).float()
            _curve(curves, "guided_onset_right", right[onsets])
        return loss

    def _audio_curves(
        self,
        curves: dict[str, tuple[float, float]],
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        tasks: np.ndarray,
    ) -> None:
        each = self.vocabulary.codebook_size + 1
        right = (logits[:, :each].argmax(1) == targets[:, 0]).float()
        _curve(curves, "stream0_right", right)
        for task in set(tasks):
            first = (weights[:, 0] >= 8) & self._put((tasks == task).astype(np.bool_))
            _curve(curves, f"onset_right.{task}", right[first])


def _mean(cells: Tensor, weights: Tensor) -> Tensor:
    return (cells * weights).sum() / weights.sum().clamp(min=1e-6)


def _curve(curves: dict[str, tuple[float, float]], name: str, cells: Tensor, weights: Tensor | None = None) -> None:
    """``weights`` None: all equal."""
    count = float(len(cells) if weights is None else weights.sum())
    if count:
        curves[name] = (float((cells if weights is None else cells * weights).sum()), count)
