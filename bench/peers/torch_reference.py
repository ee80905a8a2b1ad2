"""The baseline: the published inference algorithm in torch, as its authors' code computes it.

transformers' Qwen2 body with a growing cache; guidance as a batch of two, whose null branch is a dense prefill of zero
embeddings; the whole head for all eight streams of both branches, with the stream embeddings added to the hidden state;
a mask over the whole vocabulary, top-k, softmax, a draw. Work of the published code whose results are never read is
left out in the baseline's favour: the head of every prompt position, and a second masking.

Needs the export extra: torch, transformers, and the exporter's reader of training runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from ...export.parts.heads import EMBEDDING, HEAD, STREAM_EMBEDDING
from ...export.run.checkpoint import Checkpoint
from ...export.run.recipe import find_run, read_recipe
from ...runtime.errors import ExportError
from ...runtime.sampling import AudioSampling, TextSampling
from ...runtime.vocabulary import EOS, EOT, ROLES, SPECIALS, STREAMS, Modality, Vocabulary
from .published import PublishedAlgorithm


class TorchReference(PublishedAlgorithm):
    """The body, embedding table and head of a training run in ``dtype`` ("float32" or "bfloat16").

    ``device``: torch's name, "cpu" or "cuda". Sets torch's number of threads, for the whole process.
    """

    def __init__(self, run: Path, dtype: str, *, threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        place, number = torch.device(device), getattr(torch, dtype)

        def read(name: str) -> torch.Tensor:
            return torch.from_numpy(checkpoint.read(name).copy()).to(place, number)

        files = find_run(run)
        recipe, checkpoint = read_recipe(files.config), Checkpoint(files.weights)
        ids, s = checkpoint.shape(HEAD)[0], recipe.backbone
        audio, rest = divmod(ids - SPECIALS - recipe.text_size, STREAMS)
        if rest or audio < 2:
            raise ExportError(f"{files.weights}: {HEAD} has {ids} rows, which is not a vocabulary of {STREAMS} streams")
        vocabulary = Vocabulary.in_order(recipe.vocabulary_order, recipe.text_size, audio - 1)
        settings: dict[str, Any] = {
            "vocab_size": ids,
            "hidden_size": s.hidden_size,
            "intermediate_size": s.ffn_size,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "max_position_embeddings": s.max_positions,
            "rms_norm_eps": s.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": s.rope_theta},
            "attn_implementation": "sdpa",
            "tie_word_embeddings": False,
        }
        config = Qwen2Config(**settings)
        self._shape = s
        with torch.device("meta"):  # randomly initialised weights would only cost time and memory
            self._body: Any = Qwen2Model(config)
        names = [name for name in checkpoint if name.startswith("model.")]
        state = {name.removeprefix("model."): read(name) for name in names}
        self._body.load_state_dict(state, strict=True, assign=True)
        # its frequencies are not part of a state dict
        self._body.rotary_emb = Qwen2RotaryEmbedding(config).to(place)
        self._body.requires_grad_(False)
        self._body.train(False)
        super().__init__(
            vocabulary,
            place,
            number,
            embedding=state[EMBEDDING.removeprefix("model.")],
            head=read(HEAD),
            streams=read(STREAM_EMBEDDING),
        )

    # ---- the algorithm ----

    def through(self, embeddings: torch.Tensor, cache: Any) -> torch.Tensor:
        """Final hidden state [B, H] of the last of ``embeddings`` [B, S, H], whose keys and values ``cache`` takes."""
        # by position: ids, mask, positions, cache, embeddings; the cache's keyword was renamed within transformers 5
        output = self._body(None, None, None, cache, embeddings, use_cache=True)
        hidden: torch.Tensor = output.last_hidden_state[:, -1]
        return hidden

    @torch.inference_mode()
    def prefill(self, parts: Sequence[np.ndarray]) -> tuple[Any, torch.Tensor]:
        """Prefill a prompt: returns the cache, and the logits [8, ids] after its last row."""
        cache = DynamicCache()
        hidden = self.through(torch.cat([self.embed(part) for part in parts], dim=1), cache)
        return cache, self.logits(hidden)[0]

    @torch.inference_mode()
    def with_null_branch(self, cache: Any) -> Any:
        """The cache with a second branch, made of as many rows of zeros."""
        null: Any = DynamicCache()
        both = DynamicCache()
        zeros = np.zeros((cache.get_seq_length(), STREAMS), np.int64)
        self.through(self.embed(zeros), null)
        for layer, (mine, other) in enumerate(zip(cache.layers, null.layers, strict=True)):
            both.update(torch.cat([mine.keys, other.keys]), torch.cat([mine.values, other.values]), layer)
        return both

    @torch.inference_mode()
    def speak(
        self, prompt: Sequence[np.ndarray], modality: Modality, sampling: AudioSampling | TextSampling
    ) -> np.ndarray:
        """One segment after ``prompt`` (rows and features, without ``assistant``): its rows, int64 [n, 8]."""
        assistant = self.vocabulary.special_row(ROLES["assistant"])[None]
        cache, _ = self.prefill([*prompt, assistant])
        if sampling.guidance > 1:
            cache = self.with_null_branch(cache)
        random = self.generator(sampling.seed)
        row = self.marker(modality)
        rows: list[np.ndarray] = []
        while len(rows) < sampling.max_steps:
            row = self.frame(row, cache, modality, sampling, random)
            rows.append(row)
            if row[0] in (EOS, EOT):
                break
        return np.stack(rows)

    @torch.inference_mode()
    def noise(self, rows: int, branches: int) -> Any:
        """A cache that holds ``rows`` rows of noise."""
        cache, s = DynamicCache(), self._shape
        row = torch.randn(branches, s.kv_heads, 1, s.head_dim, generator=torch.Generator().manual_seed(0))
        held = row.to(self.device, self._dtype).repeat(1, 1, rows, 1)
        for layer in range(s.layers):
            cache.update(held, held, layer)  # the first row that follows gives each layer its own memory
        return cache
