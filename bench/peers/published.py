"""The published inference algorithm in torch, over any body: embeddings, the whole head, guidance, mask and draw.

Guidance is a batch of two; the whole head is computed for all eight streams of both branches, with the stream
embeddings added to the hidden state; a mask over the whole vocabulary, top-k, softmax, a draw. Every frame's ids are
copied to the host, as in the published loop, so that its time includes the device's work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from ...runtime.sampling import AudioSampling, TextSampling
from ...runtime.vocabulary import EOS, EOT, MODALITIES, PAD, STREAMS, Modality, Vocabulary


class PublishedAlgorithm(ABC):
    """What is computed around a body. ``engine``: torch's version and the device, for a result."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        device: torch.device,
        dtype: torch.dtype,
        *,
        embedding: torch.Tensor,
        head: torch.Tensor,
        streams: torch.Tensor,
    ) -> None:
        """``embedding`` and ``head`` [ids, H], ``streams`` [8, H], of which the first row is not used; on ``device``,
        in ``dtype``."""
        self.vocabulary, self.device, self._dtype = vocabulary, device, dtype
        self.engine = f"torch {torch.__version__}" + ("" if device.type == "cpu" else f", {device}")
        self._embedding, self._head = embedding, head
        self._streams = streams.clone()
        self._streams[0] = 0.0
        self._masks = {modality: self._mask(modality) for modality in ("audio", "text")}

    @abstractmethod
    def through(self, embeddings: torch.Tensor, cache: Any) -> torch.Tensor:
        """Final hidden state [B, H] of the last of ``embeddings`` [B, S, H], whose keys and values ``cache`` takes."""

    @abstractmethod
    def noise(self, rows: int, branches: int) -> Any:
        """A cache that holds ``rows`` rows of noise."""

    def _mask(self, modality: str) -> torch.Tensor:
        """Forbidden ids of each stream, bool [8, ids]."""
        vocabulary = self.vocabulary
        mask = torch.ones(STREAMS, vocabulary.size, dtype=torch.bool)
        if modality == "audio":
            for stream, pad in enumerate(vocabulary.pads.tolist()):
                mask[stream, pad : pad + 1 + vocabulary.codebook_size] = False
        else:
            mask[0, vocabulary.text_base : vocabulary.text_base + vocabulary.text_size] = False
            mask[1:, PAD] = False
        mask[0, [EOS, EOT]] = False
        return mask.to(self.device)

    def embedding_rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows float32 [n, H] of the embedding table, as held here."""
        return self._embedding[torch.from_numpy(ids).to(self.device)].float().cpu().numpy()

    def embed(self, part: np.ndarray) -> torch.Tensor:
        """Embeddings [1, n, H] of rows (integers [n, 8]), or features (float32 [n, H]) as they are."""
        if part.dtype == np.float32:
            return torch.from_numpy(part)[None].to(self.device, self._dtype)
        ids = torch.from_numpy(part.astype(np.int64)).to(self.device)
        return torch.nn.functional.embedding(ids, self._embedding).sum(1)[None]

    @torch.inference_mode()
    def frame(
        self, row: np.ndarray, cache: Any, modality: Modality, sampling: AudioSampling | TextSampling, random: Any
    ) -> np.ndarray:
        """Feed ``row`` int64 [8] to all branches of ``cache`` and draw the next row."""
        guided = sampling.guidance > 1
        logits = self.logits(self.through(self.embed(row[None]).tile(1 + guided, 1, 1), cache))
        if guided:
            mine, null = logits.chunk(2)
            logits = mine * sampling.guidance + null * (1 - sampling.guidance)
        logits = logits[0].masked_fill_(self._masks[modality], float("-inf"))
        if sampling.temperature == 0:
            return logits.argmax(-1).cpu().numpy()
        values, ids = torch.topk(logits, sampling.top_k or logits.shape[-1])
        drawn = torch.multinomial(torch.softmax(values / sampling.temperature, -1), 1, generator=random)
        return torch.gather(ids, -1, drawn)[:, 0].cpu().numpy()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [B, 8, ids] of hidden states [B, H]."""
        return torch.nn.functional.linear(hidden[:, None] + self._streams, self._head)

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def marker(self, modality: Modality) -> np.ndarray:
        """The first row of a segment, int64 [8]."""
        return self.vocabulary.special_row(MODALITIES[modality]).astype(np.int64)
