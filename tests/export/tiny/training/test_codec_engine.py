"""The codec with all layers in use, in the engine: a broken layer, in any format or graph, shows against real renders.

Every unit of its decoder carries half of the signal or moves it in time (``test_codec`` breaks them one by one: each
gives below 30 dB), so that the signal-to-noise ratio of a known sound tests the whole decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from ualm.export.bundle import export_run
from ualm.export.tiny.corpus.domain import Clip, FrameBank
from ualm.export.tiny.corpus.writer import Studio
from ualm.export.tiny.judging.examine import codes_of
from ualm.export.tiny.training.codec import build_codec
from ualm.export.tiny.training.network import TinyShape, TinyUalm
from ualm.export.tiny.training.run_folder import write_run
from ualm.runtime import Model
from ualm.runtime.audio.stream_decoder import SoundDecoder
from ualm.runtime.bundle import packaged

CLIPS = [Clip("piano", (72,)), Clip("trumpet", (79, 79), "quick"), Clip("snare drum", (-1, -1), "moderate")]
SHAPE = TinyShape(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, encoder_width=32, encoder_layers=1)
#: Decibels; a broken layer leaves less than 30. The shipped model's decoder is in fp16, as a codec may be.
LEAST = {"fp32": 50.0, "fp16": 45.0}


def snr(samples: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((wanted - samples) ** 2).sum()))


def streamed(model: Model, codes: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Decoded frame by frame with the codec's state, in pushes of ``sizes`` in turn."""
    decoder = SoundDecoder(model.resources.engine, model.bundle, "first_sound")
    pieces, at, turn = [], 0, 0
    while at < len(codes):
        size = sizes[turn % len(sizes)]
        pieces.append(decoder.push_codes(codes[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*pieces, decoder.flush()])


@pytest.fixture(scope="module")
def run(
    bank: FrameBank, studio: Studio, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, np.ndarray]]:
    """A run whose codec knows the frames of three sounds, and the codes of each of them."""
    numbers = sorted({0, *(int(i) for clip in CLIPS for i in bank.ids(clip))})
    codec = build_codec(bank.frames[numbers])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec") / "run"
    network = TinyUalm(SHAPE, studio.vocabulary, 75)
    write_run(folder, network, codec.model, tokenizer, codes=studio.codes, step=0, documents={})
    return folder, dict(zip(numbers, codec.codes, strict=True))


@pytest.fixture(scope="module", params=list(LEAST))
def opened(
    run: tuple[Path, dict[int, np.ndarray]], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Model]]:
    bundle = tmp_path_factory.mktemp("bundle") / request.param
    export_run(run[0], bundle, codec_precision=request.param, accept_quality=True)
    with Model.open(bundle, threads=1, verify="never") as model:
        assert model.bundle.manifest.parts["codec"].precision == request.param
        yield request.param, model


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.sound)
def test_a_real_sound_comes_back_in_every_format_whole_and_streamed(
    clip: Clip, opened: tuple[str, Model], run: tuple[Path, dict[int, np.ndarray]], bank: FrameBank
) -> None:
    precision, model = opened
    codes = np.stack([run[1][int(i)] for i in bank.ids(clip)])
    wanted = bank.samples(clip)
    whole = np.asarray(model.decode(codes).samples).reshape(-1)
    assert snr(whole, wanted) > LEAST[precision]
    for sizes in ([1], [3, 1, 17], [len(codes)]):
        assert snr(streamed(model, codes, sizes), wanted) > LEAST[precision], sizes


def test_the_shipped_codec_gives_every_real_render_back(
    bank: FrameBank, real_renders: dict[tuple[str, int], np.ndarray]
) -> None:
    folder = packaged.packaged_bundle()
    assert folder is not None
    codes = codes_of(None)
    with Model.open(folder, threads=1, verify="never") as model:
        for name, note in real_renders:
            clip = Clip(name, (note,))
            samples = np.asarray(model.decode(codes[bank.ids(clip)]).samples).reshape(-1)
            assert snr(samples, bank.samples(clip)) > LEAST["fp16"], clip
