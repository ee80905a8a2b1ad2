"""The part of a training run that other engines can serve: the Qwen2 body and stream 0, which carries text.

A row of text holds 0, whose embedding is zero, in streams 1 to 7, and stream 0 has no stream embedding: on text, a UALM
model is exactly a Qwen2 language model with a larger vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...runtime.errors import ExportError
from ...runtime.vocabulary import EOS, EOT, Vocabulary
from ..formats.precision import TEXT_PRECISIONS, check_text_precision
from ..formats.store import WeightStore
from ..parts.backbone import BackbonePlan
from ..parts.codec.codec import plan_codec
from ..parts.heads import EMBEDDING, HEAD, HeadsPlan
from ..run.checkpoint import Checkpoint
from ..run.qwen2 import BackboneShape
from ..run.recipe import Recipe, RunFiles, find_run, read_recipe
from .registry import ExportRequest


@dataclass(frozen=True)
class TextSide:
    """A run that was found, read and checked. ``tensors``: transformers' names and the shapes of the body, of the
    embedding table and of the head; ``dtype``: how to store them."""

    files: RunFiles
    recipe: Recipe
    checkpoint: Checkpoint
    vocabulary: Vocabulary
    tensors: Mapping[str, tuple[int, ...]]
    dtype: str

    @property
    def shape(self) -> BackboneShape:
        return self.recipe.backbone

    @property
    def text_ids(self) -> range:
        """Ids of text; stream 0 may draw any of them, and apart from them only eos and eot."""
        return range(self.vocabulary.text_base, self.vocabulary.text_base + self.vocabulary.text_size)

    @property
    def suppressed(self) -> list[range]:
        """Ids that can never be drawn in a text, ascending."""
        allowed = np.zeros(self.vocabulary.size + 2, bool)  # one extra on either side
        allowed[[EOS + 1, EOT + 1]] = True
        allowed[self.text_ids.start + 1 : self.text_ids.stop + 1] = True
        allowed[[0, -1]] = True
        edges = np.flatnonzero(np.diff(allowed))
        return [range(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def read_text_side(request: ExportRequest) -> TextSide:
    """Find and check the run of a request; raises :class:`ExportError` as an export to a bundle does."""
    check_text_precision(request.precision)
    files = find_run(request.run, config=request.config, weights=request.weights, step=request.step)
    recipe = read_recipe(files.config)
    checkpoint = Checkpoint(files.weights)
    planned = WeightStore("checked, never written")
    codec = plan_codec(checkpoint, dict(recipe.codec), planned, "float32")
    vocabulary = Vocabulary.in_order(recipe.vocabulary_order, recipe.text_size, codec.codebook_size)
    body = BackbonePlan(checkpoint, recipe.backbone, planned)
    heads = HeadsPlan(checkpoint, vocabulary, recipe.backbone.hidden_size, planned)
    if checkpoint.read(EMBEDDING, slice(0, 1)).any():
        raise ExportError(f"tensor {EMBEDDING}: row 0 (padding) is not zero; this is not a UALM embedding table")
    tensors = {EMBEDDING: heads.tensors[EMBEDDING], **body.tensors, HEAD: heads.tensors[HEAD]}
    if request.precision is not None:
        dtype = TEXT_PRECISIONS[request.precision]
    else:
        dtype = checkpoint.dtype(EMBEDDING)
        if dtype not in TEXT_PRECISIONS.values():
            raise ExportError(f"{files.weights}: tensors are {dtype}; name another format with --precision")
    return TextSide(files, recipe, checkpoint, vocabulary, tensors, dtype)
