"""Training is reproducible, resumes where it stopped, and makes a run that the product runs as trained."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from ualm.export.bundle import export_run
from ualm.export.tiny.corpus.conversations import TASKS, make_example
from ualm.export.tiny.corpus.domain import Clip, FrameBank
from ualm.export.tiny.corpus.writer import Studio
from ualm.export.tiny.training.codec import build_codec
from ualm.export.tiny.training.loop import CURVES, MIX, STATE, Recipe, curves, load_state, step_examples, train
from ualm.export.tiny.training.losses import LossFunction, mel_filters
from ualm.export.tiny.training.network import TinyShape, TinyUalm
from ualm.export.tiny.training.run_folder import FRAMES, write_run
from ualm.export.tiny.training.stages import find_device
from ualm.export.tiny.training.starting_point import start_codes
from ualm.runtime import AudioSampling, InputError, Model, Sound
from ualm.runtime.vocabulary import ROLES

SHAPE = TinyShape(
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn=96,
    encoder_width=32,
    encoder_layers=1,
    encoder_heads=2,
    encoder_ffn=64,
)
RECIPE = Recipe(steps=4, rows=600, warmup=1, plain=0.5, guided=1.0, null=1.0, learning_rate=5e-3)


def _network(studio: Studio) -> TinyUalm:
    torch.manual_seed(3)
    network = TinyUalm(SHAPE, studio.vocabulary, 75)
    start_codes(network, studio.bank, studio.codes)
    return network


def _trained(studio: Studio, folder: Path, until: int | None = None) -> dict[str, torch.Tensor]:
    train(_network(studio), studio, RECIPE, folder, until=until, log_every=1)
    return load_state(folder / STATE)["network"]


def test_the_shares_of_the_tasks_hold_on_average(studio: Studio) -> None:
    assert sum(MIX.values()) == pytest.approx(1)
    rows = dict.fromkeys(MIX, 0)
    for step in range(25):
        for example in step_examples(studio, Recipe(), step):
            rows[example.task] += len(example.rows)
    total = sum(rows.values())
    assert total / 25 == pytest.approx(Recipe().rows, rel=0.1)
    assert all(rows[task] / total == pytest.approx(share, rel=0.4) for task, share in MIX.items())


def test_interrupted_training_ends_where_uninterrupted_training_does(studio: Studio, tmp_path: Path) -> None:
    whole = _trained(studio, tmp_path / "whole")
    _trained(studio, tmp_path / "parts", until=2)
    parts = _trained(studio, tmp_path / "parts")
    assert load_state(tmp_path / "parts" / STATE)["step"] == RECIPE.steps
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logged = curves(tmp_path / "parts" / CURVES)
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4]
    assert "guided" in logged[-1] and "guided" not in logged[0]


def test_training_lowers_the_loss(studio: Studio, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=12)
    train(_network(studio), studio, recipe, tmp_path, log_every=1)
    logged = curves(tmp_path / CURVES)
    assert logged[3]["audio"] < logged[0]["audio"]
    assert logged[-1]["text.hearing"] < 0.8 * logged[0]["text.hearing"]


def test_the_null_rows_of_both_tables_stay_zero(studio: Studio, tmp_path: Path) -> None:
    state = _trained(studio, tmp_path)
    assert not state["model.embed_tokens.weight"][0].any()
    assert not state["stream_emb.weight"][0].any()


def test_guidance_of_one_is_the_plain_loss(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """u + 1 (c - u) = c: the guided term at scale 1 is the plain cross-entropy of the same rows."""
    monkeypatch.setattr("ualm.export.tiny.training.losses.GUIDANCE", (1.0, 1.0))
    example = make_example(studio, "direct", random.Random(0))
    with torch.no_grad():
        found = LossFunction(_network(studio), mel_filters())([example], random.Random(0), 1.0, 0.0).curves
    plain, guided = (found[name][0] / found[name][1] for name in ("audio", "guided"))
    assert guided == pytest.approx(plain, rel=1e-3)


def test_everything_lies_where_the_network_does(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed for this: tensors created without a device, or taken from numpy without being moved, would be on
    another device than the network and make the loss fail."""
    network, rng = _network(studio), random.Random(0)
    examples = [make_example(studio, task, rng) for task in TASKS]
    expected = LossFunction(network, mel_filters())(examples, random.Random(0), 1.0, 0.0)
    monkeypatch.setattr(LossFunction, "_put", lambda self, array: torch.tensor(array, device=self._device))
    monkeypatch.setattr(torch, "from_numpy", None)
    with torch.device("meta"):
        found = LossFunction(network, mel_filters())(examples, random.Random(0), 1.0, 0.0)
        found.total.backward()
    assert torch.equal(found.total, expected.total) and found.curves == expected.curves


@pytest.mark.parametrize(
    ("device", "piece"), [("gpu", "choose cpu, or cuda"), ("meta", "trains on cpu or cuda"), ("cuda:99", "no such GPU")]
)
def test_a_device_that_is_not_here_is_refused(device: str, piece: str) -> None:
    with pytest.raises(InputError, match=f"--device {device}: .*{piece}"):
        find_device(device)


@pytest.fixture(scope="module")
def made(
    bank: FrameBank, studio: Studio, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TinyUalm, Path, Path]:
    """A network (with bf16 values), its run and its bundle. The codec has only a few frames."""
    folder = tmp_path_factory.mktemp("made")
    network = _network(studio)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("lm_head"):
                parameter *= 8  # decisive enough that rounding does not matter
            parameter.copy_(parameter.to(torch.bfloat16).float())
    ids = sorted({0, *(int(i) for i in bank.ids(Clip("piano", (72,))))})
    codec = build_codec(bank.frames[ids])
    write_run(
        folder / "run", network, codec.model, tokenizer, codes=studio.codes, step=7, documents={"training.json": "{}"}
    )
    return network, folder / "run", export_run(folder / "run", folder / "bundle").bundle


def test_a_run_exports_and_speaks_and_hears(made: tuple[TinyUalm, Path, Path], studio: Studio) -> None:
    _, run, bundle = made
    assert json.loads((run / "training.json").read_text()) == {}
    assert np.array_equal(np.load(run / FRAMES), studio.codes)
    with Model.open(bundle, threads=1) as model:
        sound = model.generate("a trumpet plays C5 and E5", max_steps=20)
        assert sound.sample_rate == 16000 and len(np.asarray(sound.samples).reshape(-1)) == 320 * len(sound.codes)
        assert isinstance(model.ask(sound, "what is played?", max_steps=5), str)


def test_the_checkpoint_holds_bf16_only(made: tuple[TinyUalm, Path, Path]) -> None:
    module = torch.load(made[1] / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert {tensor.dtype for tensor in module.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert not any(name.startswith("probe") for name in module)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_runtime_computes_what_was_trained(
    made: tuple[TinyUalm, Path, Path], studio: Studio, guidance: float
) -> None:
    """The rows that the runtime draws are the likeliest by the network's own logits, null branch included."""
    network, _, bundle = made
    v = studio.vocabulary
    clip = Clip("trumpet", (79,))
    heard = Sound(studio.bank.samples(clip), 16000)
    with Model.open(bundle, threads=1) as model:
        options = AudioSampling(temperature=0.0, guidance=guidance, max_steps=12)
        segment = model.run([("user", heard), ("user", "the same")], modality="audio", max_segments=1, audio=options)[0]
    prompt = [[1], [ROLES["user"]], [8], *[[0]] * (clip.frames // 2), [3], [ROLES["user"]], [7]]
    prompt += [[v.text_base + i] for i in studio.encode("the same")] + [[2], [ROLES["assistant"]], [8]]
    rows = np.concatenate([np.array([[*row, *[0] * 7] for row in prompt]), segment.rows]).astype(np.int64)
    first = len(prompt) - 1
    with torch.no_grad():
        embedded = network.embed(torch.from_numpy(rows))
        from ualm.export.tiny.corpus.writer import FEATURES
        from ualm.runtime.audio.features import log_mel, normalized

        mel = log_mel(normalized(np.asarray(heard.samples).reshape(-1)), FEATURES, mel_filters())
        embedded[3 : 3 + clip.frames // 2] = network.hear([torch.from_numpy(mel)])
        null = embedded.clone()
        null[:first] = 0
        c, u = (network.audio_logits(network.body(x[None])[0, first:-1]) for x in (embedded, null))
    mixed = (u + guidance * (c - u)).numpy()
    for row, logits in zip(segment.rows[:5], mixed, strict=False):
        for stream in range(8):
            cells = logits[stream * 1025 : (stream + 1) * 1025]
            drawn = row[stream] - v.pads[stream]
            if drawn > 0:
                assert cells[drawn] >= cells[1:].max() - 1e-3
