"""The closed-form codec against transformers' XcodecModel; and that every part of its decoder matters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import XcodecModel
from transformers.models.dac.modeling_dac import Snake1d

from ualm.export.tiny.corpus.domain import Clip, FrameBank
from ualm.export.tiny.training.codec import TinyCodec, build_codec

CLIPS = [Clip("piano", (72,)), Clip("trumpet", (79, 79), "quick"), Clip("snare drum", (-1, -1), "moderate")]


Small = tuple[TinyCodec, dict[int, int]]


@pytest.fixture(scope="module")
def small(bank: FrameBank) -> Small:
    """A codec for the frames of only three sounds, and the index in it of each frame of the bank."""
    numbers = sorted({0, *(int(i) for clip in CLIPS for i in bank.ids(clip))})
    return build_codec(bank.frames[numbers]), {number: place for place, number in enumerate(numbers)}


def _snr(small: Small, bank: FrameBank) -> float:
    """Smallest signal-to-noise ratio of the decoded clips, in dB."""
    codec, place = small
    ratios = []
    for clip in CLIPS:
        codes = codec.codes[[place[int(i)] for i in bank.ids(clip)]]
        with torch.no_grad():
            decoded = codec.model.decode(torch.from_numpy(codes.T.copy())[None]).audio_values[0, 0].numpy()
        wanted = bank.samples(clip)
        ratios.append(10 * np.log10((wanted**2).sum() / ((wanted - decoded) ** 2).sum()))
    return float(min(ratios))


def test_decoding_gives_the_frames_back(small: Small, bank: FrameBank) -> None:
    assert _snr(small, bank) > 50


def test_every_frame_has_codes_of_its_own_and_silence_has_code_zero(small: Small) -> None:
    codes = small[0].codes
    assert len(np.unique(codes, axis=0)) == len(codes)
    assert not codes[0].any() and codes.max() < 1024


def test_all_values_are_bf16s_own(small: Small) -> None:
    for name, tensor in small[0].model.state_dict().items():
        if (tensor.is_floating_point() and "acoustic_decoder" in name) or name.endswith("codebook.embed"):
            assert torch.equal(tensor, tensor.to(torch.bfloat16).float()), name


Bug = Callable[[XcodecModel, pytest.MonkeyPatch], None]


def _snake(formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Bug:
    return lambda model, patch: patch.setattr(Snake1d, "forward", lambda self, x: formula(x, self.alpha))


def _dilation(unit: int, wrong: int) -> Bug:
    def break_it(model: XcodecModel, patch: pytest.MonkeyPatch) -> None:
        conv = getattr(model.acoustic_decoder.block[0], f"res_unit{unit}").conv1
        patch.setattr(conv, "dilation", (wrong,))
        patch.setattr(conv, "padding", (3 * wrong,))

    return break_it


def _lost_skip(model: XcodecModel, patch: pytest.MonkeyPatch) -> None:
    unit = model.acoustic_decoder.block[2].res_unit2
    inner = unit.forward
    patch.setattr(unit, "forward", lambda x: inner(x) - x)


def _lost_stream(model: XcodecModel, patch: pytest.MonkeyPatch) -> None:
    book = model.quantizer.quantizers[0].codebook  # so few frames need only the first
    patch.setitem(book._buffers, "embed", torch.zeros_like(book.embed))


def _lost_bias(model: XcodecModel, patch: pytest.MonkeyPatch) -> None:
    conv = model.acoustic_decoder.block[1].conv_t1
    patch.setitem(conv._parameters, "bias", None)


def _tanh(model: XcodecModel, patch: pytest.MonkeyPatch) -> None:
    conv = model.acoustic_decoder.conv2
    inner = conv.forward
    patch.setattr(conv, "forward", lambda x: torch.tanh(inner(x)))


BUGS: dict[str, Bug] = {
    "no Snake": _snake(lambda x, a: x),
    "sine instead of its square": _snake(lambda x, a: x + torch.sin(a * x) / (a + 1e-9)),
    "alpha instead of its inverse": _snake(lambda x, a: x + a * torch.sin(a * x) ** 2),
    "dilation 3 in place of 1": _dilation(1, 3),
    "dilation 1 in place of 3": _dilation(2, 1),
    "dilation 3 in place of 9": _dilation(3, 3),
    "a residual path without its direct one": _lost_skip,
    "a codebook left out": _lost_stream,
    "a bias left out": _lost_bias,
    "a tanh at the end": _tanh,
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_broken_decoder_is_heard(bug: str, small: Small, bank: FrameBank, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](small[0].model, monkeypatch)
    assert _snr(small, bank) < 30


def test_building_is_repeatable(small: Small, bank: FrameBank) -> None:
    numbers = sorted(small[1])
    again = build_codec(bank.frames[numbers])
    assert np.array_equal(again.codes, small[0].codes)
