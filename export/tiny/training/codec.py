"""An X-Codec for a few thousand known frames, in closed form: no gradient steps, exact up to bf16 rounding.

A frame is ``V z``, with V the eigenvectors of the frames' covariance; a greedy residual k-means gives every frame its
eight codes, and one least squares over all codewords makes their sum the frame's z. The DAC decoder is filled so that
it is V, spread over its four upsampling blocks as shuffles of samples.

Every layer of the decoder carries signal, so that an error in any of them is audible: half of each sample passes
through the three residual units of a block (shifted by +3, +2 and -1 taps at dilations 1, 3 and 9, which add up to no
shift), and in the blocks after the first a value is represented by two channels, (v + b, b - v), whose Snakes supply
part of the gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import XcodecConfig, XcodecModel

from ....runtime.vocabulary import STREAMS
from ..corpus.domain import HOP

CODEBOOK = 1024
LATENT = HOP
#: Width of the semantic half of a codeword, which only encoding would use; it is zero here.
SEMANTIC = 16
RATIOS = (8, 5, 4, 2)
#: Channels that hold samples after each block: 40 samples remain to be interleaved after the first, and so on.
_WIRES = (40, 8, 2, 1)
#: Tap offset of the residual units of a block.
_SHIFTS = (3, 2, -1)
#: Snake's frequency and the offset of a pair: it then gives sin(2 a b) of the gain.
_ALPHA, _OFFSET = 0.2, 0.25
#: A Snake that does nothing: x + a x^2 for small a.
_STILL = 1e-6
#: Codes that k-means may use at each level; the rest resolve collisions.
_LEVELS = (1024, 768, 640, 512, 512, 512, 512, 512)
_REFINEMENTS = 4


@dataclass(frozen=True)
class TinyCodec:
    """``model``: the XcodecModel, its values representable in bf16. ``codes``: int64 [frames, 8] of the frame bank."""

    model: XcodecModel
    codes: np.ndarray


def build_codec(frames: np.ndarray, seed: int = 0) -> TinyCodec:
    """``frames``: float32 [N, 320], the first silent; N at most the number that 8 codebooks can distinguish exactly."""
    x = torch.tensor(frames)
    _, vectors = torch.linalg.eigh(x.double().T @ x.double())
    basis = vectors.flip(1)[:, :LATENT].to(torch.bfloat16).float()
    model = make_model()
    fill_decoder(model, basis)
    _round(model)
    latents = _solve_latents(model, x, basis)
    codes = _greedy_codes(latents, seed)
    fill_codebooks(model, _fit_codebooks(latents, codes))
    return TinyCodec(model, codes.numpy())


def codec_config() -> XcodecConfig:
    """The smallest XcodecModel that can hold the construction; its encoder half is never used."""
    acoustic = {
        "model_type": "dac",
        "codebook_size": CODEBOOK,
        "decoder_hidden_size": LATENT,
        "encoder_hidden_size": 4,
        "hidden_size": LATENT,
        "downsampling_ratios": list(RATIOS),
        "upsampling_ratios": list(RATIOS),
        "hop_length": HOP,
        "sampling_rate": 16000,
        "n_codebooks": STREAMS,
        "codebook_dim": 8,
    }
    semantic = {
        "model_type": "hubert",
        "hidden_size": SEMANTIC,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 2 * SEMANTIC,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "layerdrop": 0.0,
    }
    return XcodecConfig(
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
        target_bandwidths=[0.5, 1, 2, 4],
        codebook_size=CODEBOOK,
        codebook_dim=LATENT + SEMANTIC,
    )


def make_model() -> XcodecModel:
    torch.manual_seed(0)
    model: XcodecModel = XcodecModel(codec_config())
    model.train(False)
    return model


def _pair_gain() -> float:
    """The gain of the difference of a pair's two Snakes for small values: 2 (1 + sin(2 a b))."""
    return 2 * (1 + math.sin(2 * _ALPHA * _OFFSET))


def _writers(index: int, paired: bool) -> tuple[tuple[int, float], ...]:
    return ((2 * index, 1.0), (2 * index + 1, -1.0)) if paired else ((index, 1.0),)


def _readers(index: int, paired: bool) -> tuple[tuple[int, float], ...]:
    gain = 1 / _pair_gain()
    return ((2 * index, gain), (2 * index + 1, -gain)) if paired else ((index, 1.0),)


@torch.no_grad()
def fill_decoder(model: XcodecModel, basis: torch.Tensor) -> None:
    """Make the decoder compute ``basis @ z`` for each frame; ``basis``: float32 [320, 320]."""
    decoder = model.acoustic_decoder
    for name, parameter in decoder.named_parameters():
        parameter.fill_(_STILL if name.endswith("alpha") else 0.0)
    model.fc2.weight.zero_()
    model.fc2.weight[:, :LATENT] = torch.eye(LATENT)
    model.fc2.bias.zero_()
    decoder.conv1.weight[:, :, 3] = torch.eye(LATENT)
    for index, (block, ratio, wires) in enumerate(zip(decoder.block, RATIOS, _WIRES, strict=True)):
        padding, paired_in, paired = math.ceil(ratio / 2), index > 1, index > 0
        up = block.conv_t1.weight
        if index == 0:
            # latent i -> sample s * 40 + c of the frame, once as the payload and once for the residual path
            spread = 0.5 * basis.t().reshape(LATENT, ratio, wires)
            for step in range(ratio):
                up[:, :wires, step + padding] = spread[:, step]
                up[:, wires : 2 * wires, step + padding] = spread[:, step]
        else:
            block.snake1.alpha.fill_(_ALPHA if paired_in else _STILL)
            block.conv_t1.bias[: 8 * wires] = _OFFSET
            for step in range(ratio):
                for wire in range(wires):
                    for lane in (0, 1):
                        for source, read in _readers(step * wires + wire, paired_in):
                            for target, write in _writers(lane * wires + wire, paired):
                                up[source, target, step + padding] = 0.5 * read * write
        # lane 0 holds the sum, lanes 1 to 3 pass the residual half from unit to unit and back into lane 0
        hops = ((1, 2), (2, 3), (3, 0))
        units = (block.res_unit1, block.res_unit2, block.res_unit3)
        for unit, (source_lane, target_lane), shift in zip(units, hops, _SHIFTS, strict=True):
            unit.snake1.alpha.fill_(_ALPHA if paired else _STILL)
            unit.snake2.alpha.fill_(_ALPHA if paired else _STILL)
            if paired:
                unit.conv1.bias[: 2 * wires] = _OFFSET
            for wire in range(wires):
                for source, read in _readers(source_lane * wires + wire, paired):
                    for target, write in _writers(wire, paired):
                        unit.conv1.weight[target, source, 3 - shift] = read * write
                for source, read in _readers(wire, paired):
                    for target, write in _writers(target_lane * wires + wire, paired):
                        unit.conv2.weight[target, source, 0] = read * write
    decoder.snake1.alpha.fill_(_ALPHA)
    for source, read in _readers(0, True):
        decoder.conv2.weight[0, source, 3] = read


@torch.no_grad()
def fill_codebooks(model: XcodecModel, codebooks: torch.Tensor) -> None:
    """``codebooks``: float32 [8, 1024, 320]."""
    for quantizer, values in zip(model.quantizer.quantizers, codebooks, strict=True):
        codebook: Any = quantizer.codebook
        codebook.embed.zero_()
        codebook.embed[:, :LATENT] = values
        codebook.embed_avg.copy_(codebook.embed)
        codebook.cluster_size.fill_(1.0)


@torch.no_grad()
def _round(model: XcodecModel) -> None:
    """Round every value to bf16, as a checkpoint stores it; the fit then compensates for the rounding."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(torch.bfloat16).float())


@torch.no_grad()
def decode_latents(model: XcodecModel, latents: torch.Tensor) -> torch.Tensor:
    """Latents float32 [T, 320] of a sequence -> its samples as frames, float32 [T, 320].

    Two silent frames after it receive what the residual paths still hold.
    """
    padded = torch.cat([latents, latents.new_zeros(2, LATENT)])
    return model.acoustic_decoder(padded.t()[None])[0, 0].reshape(-1, HOP)[: len(latents)]


def _solve_latents(model: XcodecModel, frames: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Latents that the decoder, rounded and with its small non-linearity, turns into the frames.

    Fixed-point iteration: the decoder equals the basis up to a few percent. Frames do not influence each other (a
    sample is moved and moved back), so all are solved as one sequence.
    """
    latents = frames @ basis
    for _ in range(_REFINEMENTS):
        latents += (frames - decode_latents(model, latents)) @ basis
    latents[0] = 0  # silence stays the zero code; the remaining offsets are below -60 dB
    return latents


def _k_means(x: torch.Tensor, count: int, seed: int, rounds: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [count, D], the first fixed at zero, and the index of the nearest for each row."""
    generator = torch.Generator().manual_seed(seed)
    energy = x.pow(2).sum(1)
    drawn = min(count - 1, len(x))
    centres = torch.zeros(count, x.shape[1])
    centres[1 : drawn + 1] = x[torch.multinomial(energy + 1e-9, drawn, generator=generator)]
    for _ in range(rounds):
        distance, nearest = (centres.pow(2).sum(1) - 2 * x @ centres.t()).min(1)
        held = torch.bincount(nearest, minlength=count).float()
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        used = held > 0
        used[0] = False
        centres[used] = sums[used] / held[used, None]
        empty = (held == 0).nonzero()[:, 0]
        empty = empty[empty > 0][: len(x)]
        centres[empty] = x[(distance + energy).topk(len(empty)).indices]
    return centres, (centres.pow(2).sum(1) - 2 * x @ centres.t()).argmin(1)


def _greedy_codes(latents: torch.Tensor, seed: int) -> torch.Tensor:
    """Codes int64 [N, 8], all rows different; code 0 is the zero vector at every level."""
    rest, columns = latents.clone(), []
    generator = torch.Generator().manual_seed(seed)
    for level, count in enumerate(_LEVELS):
        centres, nearest = _k_means(rest, count, seed + level)
        # spread over 1 .. 1023, so that all rows of the tables are used somewhere
        place = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(CODEBOOK - 1, generator=generator)])
        nearest[0] = 0
        rest = rest - torch.where((nearest > 0)[:, None], centres[nearest], 0.0)
        columns.append(place[nearest])
    codes = torch.stack(columns, 1)
    free = [code for code in range(1, CODEBOOK) if code not in set(codes[:, -1].tolist())]
    seen: set[tuple[int, ...]] = set()
    for row in codes:
        if tuple(row.tolist()) in seen:
            row[-1] = free.pop()
        seen.add(tuple(row.tolist()))
    return codes


def _fit_codebooks(latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Codebooks [8, 1024, 320], representable in bf16, whose sums are the latents.

    Minimum-norm least squares over all levels; then one level at a time is rounded and the following levels absorb its
    rounding error.
    """
    books = torch.zeros(STREAMS, CODEBOOK, LATENT, dtype=torch.float64)
    target = latents.double()
    for first in range(STREAMS):
        free = codes[:, first:]
        rest = target - sum(books[level][codes[:, level]] for level in range(STREAMS))
        same = (free[:, None, :] == free[None, :, :]) & (free != 0)[:, None, :]
        gram = same.sum(2).double()
        ridge = 1e-6 * torch.eye(len(gram), dtype=torch.float64)
        solved = torch.linalg.solve(gram + ridge, rest)
        for level in range(first, STREAMS):
            books[level].index_add_(0, codes[:, level], solved)
            books[level][0] = 0
        books[first] = books[first].to(torch.bfloat16).double()
    return books.float()
