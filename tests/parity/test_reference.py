"""The reference that everything else is compared with follows the contract, and its cases are safe for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.parity_cases import CASES
from support.reference import EOS, EOT, STREAMS, Conversation, Reference, UnsupportedModality
from support.runs import Run, make_run
from support.sounds import make_sound, write_sound

# float32 against float64 moves a logit by at most 8e-6 of its spread in these cases (measured); a gap a hundred times
# as large cannot be flipped by a correct implementation
SAFE_MARGIN = 1e-3

CAPTION = [("user", "A dog barks twice.")]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reference]:
    run = make_run(tmp_path_factory.mktemp("run"), seed=5)
    return run, Reference(run.folder)


@pytest.fixture
def ref(made: tuple[Run, Reference]) -> Reference:
    return made[1]


def greedy(max_steps: int, guidance: float = 1.0) -> dict[str, float]:
    return {"temperature": 0.0, "top_k": 20, "guidance": guidance, "max_steps": max_steps}


# ---- the cases ----


@pytest.mark.parametrize("name", CASES)
def test_case_answers_as_recorded_with_safe_margins_in_both_modes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    reference = Reference(make_run(tmp_path, **case.run).folder)
    for mode, expected in (("fixed", case.fixed), ("reference", case.reference)):
        conversation = Conversation(reference, mode)
        segments = conversation.turn(case.messages, **case.options)
        assert [(segment.modality, segment.ended_by) for segment in segments] == expected, mode
        for messages in case.later if mode == "fixed" else []:
            segments += conversation.turn(messages, **case.options)
        assert min(segment.margin for segment in segments) > SAFE_MARGIN, mode


def test_a_case_is_deterministic(tmp_path: Path) -> None:
    case = CASES["guidance_after_sound"]
    first, again = (
        Reference(make_run(tmp_path / name, **case.run).folder).run(case.messages, **case.options)[0] for name in "ab"
    )
    assert np.array_equal(first.rows, again.rows)
    assert all(np.array_equal(one, other) for one, other in zip(first.logits, again.logits, strict=True))
    assert first.pcm is not None and again.pcm is not None and np.array_equal(first.pcm, again.pcm)


# ---- rows and codes ----


def test_delay_and_its_undoing_are_inverse(ref: Reference) -> None:
    codes = np.random.default_rng(0).integers(0, ref.codebook_size, (STREAMS, 11))
    rows = ref.delayed(codes)
    assert rows.shape == (18, STREAMS)
    assert rows[3, 4] == ref.stream_pad(4) and rows[4, 4] == ref.stream_pad(4) + 1 + codes[4, 0]
    assert np.array_equal(ref.codes_of(rows), codes)


def test_a_pad_inside_a_sound_decodes_as_code_0(ref: Reference) -> None:
    codes = np.full((STREAMS, 5), 3)
    rows = ref.delayed(codes)
    rows[2 + 4, 4] = ref.stream_pad(4)
    codes[4, 2] = 0
    assert np.array_equal(ref.codes_of(rows), codes)


def test_a_sound_has_hop_samples_a_frame(ref: Reference) -> None:
    assert ref.decode(np.zeros((STREAMS, 6), np.int64)).shape == (6 * ref.hop,)


# ---- one turn ----


def test_guidance_mixes_the_branches_before_masking(ref: Reference) -> None:
    plain = ref.run(CAPTION, modality="audio", audio=greedy(8))[0]
    guided = ref.run(CAPTION, modality="audio", audio=greedy(8, 3.0))[0]
    # the null branch by hand: one pass, no cache, zero rows for the prompt and `assistant`, then the modality row
    length = ref.embed_prompt(CAPTION).shape[0] + 1
    rows = np.zeros((length + 1, STREAMS), np.int64)
    rows[-1, 0] = 8
    with torch.no_grad():
        hidden = ref.lm.model(inputs_embeds=torch.from_numpy(ref.embed_rows(rows))[None]).last_hidden_state[0, -1]
        null = ref.lm.lm_head(hidden[None] + ref.streams).numpy()
    drawable = np.isfinite(plain.logits[0])
    assert drawable.sum() == STREAMS * (ref.codebook_size + 1) + 2
    expected = 3 * plain.logits[0][drawable] - 2 * null[drawable]
    # one uncached pass against a cached one: float32 rounding of logits of size 10, tripled
    np.testing.assert_allclose(guided.logits[0][drawable], expected, atol=1e-4)


def test_stepping_with_a_cache_equals_one_pass(ref: Reference) -> None:
    segment = ref.run(CAPTION, modality="audio", audio=greedy(12))[0]
    prompt = ref.embed_prompt(CAPTION)
    heads = np.zeros((2, STREAMS), np.int64)
    heads[:, 0] = (6, 8)
    spoken = ref.embed_rows(np.concatenate([heads, segment.rows[:-1]]))
    with torch.no_grad():
        hidden = ref.lm.model(inputs_embeds=torch.from_numpy(np.concatenate([prompt, spoken]))[None]).last_hidden_state
        logits = ref.lm.lm_head(hidden[0, -12:, None] + ref.streams).numpy()
    for step, expected in zip(segment.logits, logits, strict=True):
        drawable = np.isfinite(step)
        np.testing.assert_allclose(step[drawable], expected[drawable], atol=1e-4)


class Forced(Conversation):
    """A conversation whose stream 0 draws given ids at given rows; everything else is the model's."""

    wishes: dict[int, int]
    at: int

    def _mixed(self, *arguments: Any) -> torch.Tensor:
        logits = super()._mixed(*arguments)
        if self.at in self.wishes:
            logits[0, self.wishes[self.at]] = 1e3
        self.at += 1
        return logits


def forced_turn(ref: Reference, wishes: dict[int, int], max_steps: int) -> tuple[Any, Forced]:
    conversation = Forced(ref, "fixed")
    conversation.wishes, conversation.at = wishes, 0
    segment = conversation.turn(CAPTION, modality="audio", audio=greedy(max_steps), max_segments=1)[0]
    return segment, conversation


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 8, 12])
@pytest.mark.parametrize("drawn", ["pad", "eos", "eot"])
def test_an_early_end_drains_the_delay_pattern_then_stops(ref: Reference, frames: int, drawn: str) -> None:
    token = {"pad": ref.stream_pad(0), "eos": EOS, "eot": EOT}[drawn]
    segment, conversation = forced_turn(ref, {frames: token}, 30)
    rows = segment.rows
    assert segment.ended_by == drawn and rows.shape == (frames + 8, STREAMS)
    assert segment.codes.shape == (STREAMS, frames) and segment.pcm.shape == (frames * ref.hop,)
    pads = [ref.stream_pad(n) for n in range(STREAMS)]
    for n in range(STREAMS):
        assert (rows[:n, n] == pads[n]).all()
        assert (rows[frames + n : -1, n] == pads[n]).all()
        assert ((rows[n : n + frames, n] >= pads[n]) & (rows[n : n + frames, n] <= pads[n] + ref.codebook_size)).all()
    last = segment.logits[-1][0]
    better = EOS if last[EOS] > last[EOT] else EOT
    assert rows[-1].tolist() == [better if drawn == "pad" else token, *pads[1:]]
    assert conversation.fed[-1] == (rows[-1, 0], 0, 0, 0, 0, 0, 0, 0)
    assert conversation.fed[-2] == tuple(rows[-2])


@pytest.mark.parametrize("unwanted", ["pad", "eos", "eot"])
def test_row_0_of_stream_0_is_a_code_whatever_the_model_wants(ref: Reference, unwanted: str) -> None:
    token = {"pad": ref.stream_pad(0), "eos": EOS, "eot": EOT}[unwanted]
    segment, _ = forced_turn(ref, {0: token}, 12)
    assert segment.rows[0, 0] > ref.stream_pad(0)
    assert segment.ended_by == "max_steps"


def test_max_steps_reserves_the_drain_and_closes_the_turn_with_eos(ref: Reference) -> None:
    segment, conversation = forced_turn(ref, {5: EOT}, 12)  # row 5 = 12 - 7 no longer asks stream 0
    assert segment.rows.shape == (12, STREAMS) and segment.stop is None and segment.ended_by == "max_steps"
    assert segment.codes.shape == (STREAMS, 5)
    assert (segment.rows[5:, 0] == ref.stream_pad(0)).all()
    assert conversation.fed[-2:] == [tuple(segment.rows[-1]), (EOS, 0, 0, 0, 0, 0, 0, 0)]


def test_between_segments_fixed_feeds_assistant_alone_and_reference_the_prompt_again(tmp_path: Path) -> None:
    case = CASES["text_then_audio"]
    ref = Reference(make_run(tmp_path, **case.run).folder)
    prompt = ref.embed_prompt(case.messages).shape[0]
    for mode, again in (("fixed", 0), ("reference", prompt)):
        conversation = Conversation(ref, mode)
        first = conversation.turn(case.messages, **case.options)[0]
        second = prompt + 2 + len(first.rows)
        assert conversation.fed[second - 1] == (EOT, 0, 0, 0, 0, 0, 0, 0)
        assert conversation.fed[second + again] == (6, 0, 0, 0, 0, 0, 0, 0)
        assert conversation.fed[second : second + again] == conversation.fed[:again]


def test_image_cannot_be_spoken(tmp_path: Path) -> None:
    ref = Reference(make_run(tmp_path, lean={"image": 30.0}).folder)
    with pytest.raises(UnsupportedModality, match="image"):
        ref.run(CAPTION)


# ---- inputs ----


def test_prompt_rows_follow_the_contract(ref: Reference) -> None:
    sound = (make_sound(0.3), 16000, "speech")
    parts = ref.prompt_parts([("system", "!"), ("user", sound), ("user", "hi")])
    ids = [part[:, 0].tolist() if kind == "rows" else "sound" for kind, part in parts]
    said = [token + ref.text_start for token in ref.tokenizer.encode("hi")]
    assert ids == [[1], [4, 7, 0], [EOS], [5, 9], "sound", [EOT], [5, 7, *said], [EOS]]


def test_a_pad_or_id_0_adds_nothing_to_a_row(ref: Reference) -> None:
    assert not ref.embed_rows(np.zeros((1, STREAMS), np.int64)).any()


def test_drawn_text_is_cleaned_up_and_padded_ids_are_silent(ref: Reference) -> None:
    ids = ref.text_ids("well , it 's quiet . now")
    beyond = ref.text_start + ref.text_size - 1
    special = ref.text_start + ref.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ref.decode_text([*ids[:2], beyond, special, *ids[2:]]) == "well, it's quiet. now"
    assert ref.decode_text([ref.text_start]) == "!"


@pytest.mark.parametrize(("seconds", "rate"), [(0.3, 16000), (0.31, 22050), (0.2001, 44100), (0.03, 16000)])
@pytest.mark.parametrize("encoder", ["omni", "afwhisper"])
def test_a_sound_takes_one_row_per_40_ms(tmp_path: Path, encoder: str, seconds: float, rate: int) -> None:
    ref = Reference(make_run(tmp_path, encoder=encoder).folder)
    samples = make_sound(seconds, rate, channels=2)
    mel_frames = int(np.ceil(samples.shape[1] * 16000 / rate)) // 160
    features = ref.features((samples, rate))
    assert features.shape == (((mel_frames - 1) // 2 - 1) // 2 + 1, 32)
    assert np.array_equal(features, ref.features((samples[:1], rate)))  # channel 0 is what is heard
    assert np.array_equal(features, ref.features(write_sound(tmp_path / "sound.wav", samples, rate)))


# ---- contents of a run ----


def test_weight_norm_spellings_hold_the_same_codec(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(0, 16, (STREAMS, 9))
    sounds = [
        Reference(make_run(tmp_path / spelling, seed=1, dtype="float32", weight_norm=spelling).folder).decode(codes)
        for spelling in ("folded", "weight_g", "parametrizations")
    ]
    # folding g * v / |v| in float32 rounds each weight once more
    np.testing.assert_allclose(sounds[1], sounds[0], atol=2e-5 * np.abs(sounds[0]).max())
    np.testing.assert_array_equal(sounds[2], sounds[1])


def test_a_run_is_not_degenerate(made: tuple[Run, Reference]) -> None:
    run, ref = made
    stored = torch.load(run.checkpoint, weights_only=True)["module"]
    assert all(value.dtype == torch.bfloat16 for value in stored.values())
    assert not stored["model.embed_tokens.weight"][0].any() and stored["stream_emb.weight"][0].any()
    assert not torch.equal(stored["model.embed_tokens.weight"], stored["lm_head.weight"])
    zero = [name for name, value in stored.items() if not value.any()]
    assert zero == []
    segment = ref.run(CAPTION, modality="audio", audio=greedy(40))[0]
    assert segment.codes is not None and segment.pcm is not None
    assert min(len(set(stream)) for stream in segment.codes.tolist()) > 2
    assert 0.01 < np.abs(segment.pcm).max() < 1.5


def test_the_newest_step_of_a_tree_is_read(tmp_path: Path) -> None:
    flat = Reference(make_run(tmp_path / "flat", seed=2).folder)
    tree = Reference(make_run(tmp_path / "tree", seed=2, layout="tree", steps=(9, 10)).folder)
    assert torch.equal(flat.state["lm_head.weight"], tree.state["lm_head.weight"])
