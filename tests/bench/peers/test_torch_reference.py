"""The rival computes the published algorithm: row for row equal to the slow reference, when greedy and in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from support.parity_cases import CASES
from support.reference import Reference
from support.runs import make_run
from ualm.bench.peers.torch_reference import TorchReference
from ualm.bench.scenarios.published import TorchDecode, TorchPrefill
from ualm.runtime import AudioSampling, ExportError, TextSampling

#: Cases whose first segment covers something that the others do not.
SHOWN = ("caption_guidance_1", "caption_guidance_3", "ended_by_eos", "text_answer", "guidance_after_sound",
         "odd_dims", "explicit_head_dim", "audio_before_text")  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_rows_equal_the_slow_reference(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    run = make_run(tmp_path / "run", **case.run)
    slow = Reference(run.folder)
    options = {**case.options, "max_segments": 1, "mode": "reference"}
    expected = slow.run(case.messages, **options)[0]
    kind = AudioSampling if expected.modality == "audio" else TextSampling
    sampling = kind.from_mapping(options[expected.modality])
    rival = TorchReference(run.folder, "float32", threads=1)
    prompt = [part for _, part in slow.prompt_parts(case.messages)]
    rows = rival.speak(prompt, expected.modality, sampling)
    np.testing.assert_array_equal(rows, expected.rows)
    assert expected.margin > 1e-4  # rounding cannot have changed the path


@pytest.fixture(scope="module")
def rival(tiny_run) -> TorchReference:
    return TorchReference(tiny_run.folder, "bfloat16", threads=1)


def test_in_bf16_all_weights_are_bf16(rival):
    assert {value.dtype for value in rival._body.parameters()} == {torch.bfloat16}
    assert rival._head.dtype == rival._streams.dtype == torch.bfloat16


def test_draws_are_among_the_allowed_ids_and_follow_the_seed(rival, tiny_run):
    vocabulary = rival.vocabulary
    prompt = [vocabulary.text_rows([5, 6, 7])]
    first, again, other = (
        rival.speak(prompt, "audio", AudioSampling(temperature=1.0, seed=seed, max_steps=12, top_k=5))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()
    for stream, pad in enumerate(vocabulary.pads):
        inside = (first[:, stream] >= pad) & (first[:, stream] <= pad + vocabulary.codebook_size)
        assert (inside | ((stream == 0) & (first[:, stream] < 4))).all()


def test_what_is_measured_is_a_frame_behind_the_rows_held(rival):
    case = TorchDecode(rival, 37, "audio", 3.0, 0)
    assert len(case.block(3)["frame"]) == 3
    case._begin()
    for rows in (38, 39):
        case._step()
        assert case._cache.get_seq_length() == rows
    assert case._cache.layers[0].keys.shape[0] == 2
    single = TorchDecode(rival, 8, "text", 1.0, 0)
    assert single._cache.layers[0].keys.shape[0] == 1


def test_prefill_makes_a_null_branch_as_long_as_the_prompt(rival):
    figures = TorchPrefill(rival, 9, 3.0, 0).block(2)
    assert {name: len(values) for name, values in figures.items()} == {"prefill": 2, "row": 2, "begin": 2}
    assert "begin" not in TorchPrefill(rival, 9, 1.0, 0).block(1)
    cache, _ = rival.prefill([rival.vocabulary.text_rows([5, 6, 7])])
    both = rival.with_null_branch(cache)
    assert both.get_seq_length() == 3 and both.layers[0].values.shape[0] == 2
    null = both.layers[-1].values[1].float()
    assert (null == null[:, :1]).all() and (both.layers[-1].values[0] != both.layers[-1].values[1]).any()


def test_a_run_that_is_none_is_refused(tmp_path):
    with pytest.raises(ExportError, match="no such folder"):
        TorchReference(tmp_path / "none", "float32", threads=1)
