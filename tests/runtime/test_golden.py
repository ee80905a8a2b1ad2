"""The golden vector recorded at export, recomputed by the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ualm.runtime import AudioSampling, Sound, TextSampling
from ualm.runtime.bundle import Bundle
from ualm.runtime.engines.onnxruntime import OnnxRuntimeEngine
from ualm.runtime.hearing import FeatureSpec, Hearing


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle(tiny_bundle, verify="never")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(bundle, threads=1, max_context=64)


def assert_close(bundle: Bundle, found: np.ndarray, name: str) -> None:
    expected = bundle.golden_vector()[name]
    tolerance = bundle.manifest.golden[name.split(".")[0]]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_the_engine_gives_the_golden_logits(bundle: Bundle, engine: OnnxRuntimeEngine, modality: str) -> None:
    """The null branch of the golden vector was prefilled densely, the engine's is the constant vector."""
    sequence = engine.open_sequence()
    sequence.prefill([bundle.golden_vector()["rows"]])
    assert_close(bundle, sequence.modality_logits()[None], "logits.modality")
    options = AudioSampling(guidance=2.0) if modality == "audio" else TextSampling(guidance=2.0)
    sequence.begin_segment(modality, options, mode="fixed", segment=0)  # type: ignore[arg-type]
    sequence.run_frames(1)
    assert_close(bundle, sequence.logits, f"logits.{modality}")


def test_the_engine_gives_the_golden_sound_and_features(bundle: Bundle, engine: OnnxRuntimeEngine) -> None:
    golden = bundle.golden_vector()
    assert_close(bundle, engine.decode_latents(engine.codes_to_latents(golden["codes"])), "pcm")
    spec = FeatureSpec.from_json(bundle.manifest.features)
    heard = Hearing(spec, bundle.table("encoder.mel_filters")).prepare(Sound(golden["sound"], spec.sample_rate))
    assert_close(bundle, engine.encode(heard.inputs)[: heard.rows], "features")
