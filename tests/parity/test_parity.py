"""The product against the slow reference: every row, every logit, every sample, on tiny random runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.parity_cases import CASES, Case
from support.reference import Reference, RefSegment, UnsupportedModality
from support.runs import make_run
from ualm.export.bundle import export_run
from ualm.runtime import AudioSampling, ModalityError, Model, Segment, Sound, Speech, TextSampling, _native
from ualm.runtime.engines.onnxruntime import cpu as engine

#: fp32 on both sides, with sums in another order: observed errors are about 1e-6 of the spread of a row's logits.
LOGITS = 1e-4
#: Share of the peak; 2e-6 was seen.
SAMPLES = 1e-4
#: A greedy path is compared only where the closest choice was wider than this, in standard deviations of the logits.
MARGIN = 1e-3


@dataclass
class Pair:
    """A case's run, opened on both sides."""

    case: Case
    reference: Reference
    model: Model

    def reference_turn(self, mode: str) -> list[RefSegment]:
        return self.reference.run(self.case.messages, mode=mode, **self.case.options)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    torch.set_num_threads(1)
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("parity")
    run = make_run(folder / "run", **case.run)
    export_run(run.folder, folder / "bundle")
    with Model.open(folder / "bundle", threads=1, verify="never") as model:
        yield Pair(case, Reference(run.folder), model)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Logits of every step, as the engine passes them to the sampler."""
    seen: list[np.ndarray] = []

    class Recorder:
        def __init__(self, **options: Any) -> None:
            self._sampler = _native.FrameSampler(**options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sampler, name)

        def step(self, logits: np.ndarray, *outputs: np.ndarray) -> int:
            seen.append(logits.copy())
            return self._sampler.step(logits, *outputs)

    namespace = type("Native", (), {**vars(_native), "FrameSampler": Recorder})
    monkeypatch.setattr(engine, "_native", namespace)
    return seen


@pytest.mark.parametrize("mode", ["fixed", "reference"])
def test_every_row_logit_and_sample_equals_the_reference(pair: Pair, mode: str, steps: list[np.ndarray]) -> None:
    options = pair.case.options
    expected = pair.reference_turn(mode)
    found = pair.model.run(
        [(role, our_content(content)) for role, content in pair.case.messages],
        modality=options["modality"],
        mode=mode,
        max_segments=options["max_segments"],
        audio=AudioSampling(**options["audio"]),
        text=TextSampling(**options["text"]),
    )
    assert [segment.modality for segment in found] == [segment.modality for segment in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.margin > MARGIN
        np.testing.assert_array_equal(ours.rows, theirs.rows)
        assert ours.rows.dtype == np.int32
        guidance = options[ours.modality]["guidance"]
        logits, steps[:] = steps[: len(theirs.logits)], steps[len(theirs.logits) :]
        assert_same_logits(pair.model, ours.modality, guidance, logits, theirs)
        assert_same_content(ours, theirs)
    assert not steps


def assert_same_logits(
    model: Model, modality: str, guidance: float, ours: list[np.ndarray], theirs: RefSegment
) -> None:
    vocabulary = model.bundle.manifest.vocabulary
    for found, row in zip(ours, theirs.logits, strict=True):
        mixed = found[0] if len(found) == 1 else found[0] * guidance + found[1] * (1 - guidance)
        if modality == "text":
            first = vocabulary.text_base
            expected = np.r_[row[0, 2:4], row[0, first : first + vocabulary.text_size]]
        else:
            width = vocabulary.codebook_size + 1
            streams = [row[n, pad : pad + width] for n, pad in enumerate(vocabulary.pads)]
            expected = np.r_[row[0, 2:4], np.concatenate(streams)]
        allowed = np.isfinite(expected)
        assert allowed.sum() >= 2
        np.testing.assert_allclose(mixed[allowed], expected[allowed], atol=LOGITS * np.abs(expected[allowed]).max())


def assert_same_content(ours: Segment, theirs: RefSegment) -> None:
    assert ours.finish == (theirs.stop or "max_steps")
    assert ours.text == theirs.text
    if theirs.codes is None or theirs.codes.shape[1] == 0:
        assert ours.sound is None
    else:
        assert ours.sound is not None and theirs.pcm is not None
        np.testing.assert_array_equal(ours.sound.codes, theirs.codes.T)
        np.testing.assert_allclose(ours.sound.samples, theirs.pcm, atol=SAMPLES * np.abs(theirs.pcm).max())


def test_the_case_does_what_it_was_chosen_for(pair: Pair) -> None:
    for mode in ("fixed", "reference"):
        found = [(segment.modality, segment.ended_by) for segment in pair.reference_turn(mode)]
        assert found == getattr(pair.case, mode)


def test_heard_features_equal_the_reference(pair: Pair) -> None:
    for _, content in pair.case.messages:
        if not isinstance(content, str):
            expected = pair.reference.features(content)
            sound = our_content(content)
            sound = sound.content if isinstance(sound, Speech) else sound
            found = pair.model.resources.features.features(
                sound if isinstance(sound, Sound) else Sound.from_file(sound)
            )
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=SAMPLES * np.abs(expected).max())


def our_content(content: Any) -> Any:
    """A message of the reference (text, path, (samples [channels, n], rate[, "speech"])) as the product takes it."""
    if isinstance(content, (str, Path)):
        return content
    speech = content[-1] == "speech"
    sound = content[0] if isinstance(content[0], Path) else Sound(np.atleast_2d(content[0]).T.squeeze(), content[1])
    return Speech(sound) if speech else sound


def test_an_unsupported_choice_of_modality_is_named_and_keeps_what_was_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lean={"video": 12.0, "eot": 12.0})
    export_run(run.folder, tmp_path / "bundle")
    with pytest.raises(UnsupportedModality):
        Reference(run.folder).run([("user", "hello")], max_segments=1)
    with Model.open(tmp_path / "bundle", verify="never") as model, pytest.raises(ModalityError, match="video") as error:
        model.run([("user", "hello")], modality="text")
    assert [(segment.modality, segment.finish) for segment in error.value.segments] == [("text", "eot")]
