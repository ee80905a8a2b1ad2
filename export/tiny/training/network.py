"""The network to train: UALM's structure in small, with the checkpoint's own tensor names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from ....runtime.vocabulary import STREAMS, Vocabulary


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the model."""

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 768
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_positions: int = 4096
    encoder_width: int = 256
    encoder_layers: int = 3
    encoder_heads: int = 4
    encoder_ffn: int = 768

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def encoder_config(self) -> Qwen2_5OmniAudioEncoderConfig:
        return Qwen2_5OmniAudioEncoderConfig(
            num_mel_bins=128,
            d_model=self.encoder_width,
            encoder_layers=self.encoder_layers,
            encoder_attention_heads=self.encoder_heads,
            encoder_ffn_dim=self.encoder_ffn,
            output_dim=self.hidden,
            n_window=100,
            max_source_positions=1500,
        )


class _Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self._eps)


class _Attention(nn.Module):
    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self._shape = shape
        kv = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = nn.Linear(shape.hidden, kv)
        self.v_proj = nn.Linear(shape.hidden, kv)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, future: Tensor) -> Tensor:
        s, (batch, time, _) = self._shape, x.shape
        q = self.q_proj(x).view(batch, time, s.heads, s.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, time, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, time, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = (_rotated(y, cosine, sine).to(v.dtype) for y in (q, k))
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # written out: for rows this short, the backward pass of torch's fused kernel is several times slower on a CPU
        scores = (q @ k.transpose(-1, -2)).float() * s.head_dim**-0.5
        mixed = torch.softmax(scores + future, -1).to(v.dtype) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class _FeedForward(nn.Module):
    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _FeedForward(shape)
        self.input_layernorm = _Norm(shape.hidden, shape.rms_norm_eps)
        self.post_attention_layernorm = _Norm(shape.hidden, shape.rms_norm_eps)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, future: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, future)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Body(nn.Module):
    def __init__(self, shape: TinyShape, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, shape.hidden, padding_idx=0)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _Norm(shape.hidden, shape.rms_norm_eps)


class TinyUalm(nn.Module):
    """Language model, encoder and adaptor; ``probe`` is an auxiliary head for training the encoder and not part of the
    checkpoint."""

    def __init__(self, shape: TinyShape, vocabulary: Vocabulary, classes: int) -> None:
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        self.model = _Body(shape, vocabulary.size)
        self.lm_head = nn.Linear(shape.hidden, vocabulary.size, bias=False)
        self.stream_emb = nn.Embedding(STREAMS, shape.hidden)
        self.audio_tower = Qwen2_5OmniAudioEncoder(shape.encoder_config())
        self.adaptor = nn.Linear(shape.hidden, shape.hidden)
        self.probe = nn.Linear(shape.hidden, classes + 1)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("audio_tower"):
                continue
            if parameter.ndim == 2:
                scale = 0.05 if "embed" in name else 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= math.sqrt(2 * self.shape.layers)
                nn.init.normal_(parameter, 0.0, scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.model.embed_tokens.weight[0] = 0
            self.stream_emb.weight[0] = 0  # treated as 0 by the model

    def embed(self, rows: Tensor) -> Tensor:
        """Rows int64 [..., 8] -> float32 [..., H]; id 0 adds nothing."""
        table = self.model.embed_tokens.weight
        summed = F.embedding_bag(rows.reshape(-1, STREAMS), table, mode="sum", padding_idx=0)
        return summed.view(*rows.shape[:-1], -1)

    def hear(self, mels: list[Tensor]) -> Tensor:
        """Log-mel frames [128, m] of each sound, m even -> features [sum of m // 4, H]."""
        lengths = torch.tensor([mel.shape[1] for mel in mels], device=mels[0].device)
        heard = self.audio_tower(input_features=torch.cat(mels, 1), feature_lens=lengths)
        return self.adaptor(heard.last_hidden_state)

    def body(self, x: Tensor) -> Tensor:
        """Embeddings [B, T, H] -> final-norm hidden states [B, T, H]."""
        s, device = self.shape, x.device
        rates = s.rope_theta ** (-torch.arange(0, s.head_dim, 2, device=device) / s.head_dim)
        angles = torch.arange(x.shape[1], device=device)[:, None] * torch.cat([rates, rates])
        cosine, sine = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        if not torch.is_autocast_enabled(device.type):
            cosine, sine = angles.cos(), angles.sin()
        future = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=device).triu(1)
        for layer in self.model.layers:
            x = layer(x, cosine, sine, future)
        return self.model.norm(x)

    def modality_logits(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, 6], of ids 7 (text) .. 12 (toolcall)."""
        return F.linear(hidden, self.lm_head.weight[7:13])

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, text_size + 2]: the text ids, eos, eot."""
        v = self.vocabulary
        weights = torch.cat([self.lm_head.weight[v.text_base : v.text_base + v.text_size], self.lm_head.weight[2:4]])
        return F.linear(hidden, weights)

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, 8 * 1025 + 2]: pad and codes of each stream, then eos and eot of stream 0."""
        v, each = self.vocabulary, self.vocabulary.codebook_size + 1
        audio = self.lm_head.weight[v.audio_base :]
        streams = torch.cat([torch.zeros_like(self.stream_emb.weight[:1]), self.stream_emb.weight[1:]])
        bias = torch.einsum("nkh,nh->nk", audio.view(STREAMS, each, -1), streams.to(audio.dtype)).reshape(-1)
        ends = self.lm_head.weight[2:4]
        return torch.cat([F.linear(hidden, audio, bias), F.linear(hidden, ends)], 1)
