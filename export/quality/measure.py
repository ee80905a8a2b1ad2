"""An export's measure of its own quality: the finished bundle is run and compared with fp32, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.audio.features import LogMelFrontend
from ...runtime.bundle.bundle import Bundle
from ...runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ...runtime.vocabulary import STREAMS
from ..formats.store import WeightStore
from ..parts.codec.codec import CodecPart
from ..parts.encoders.whisper import EncoderPart
from ..run.qwen2 import BackboneShape
from .agreement import compare, cosine, held_codes, hold_rows, probe_sound, signal_to_noise
from .golden import run_as_written

#: Most rows of a held conversation.
MAX_CONTEXT = 1024

#: Plans a part in fp32 in a separate store.
PlanPart = Callable[[WeightStore], CodecPart | EncoderPart]


def measure_quality(
    folder: Path, shape: BackboneShape, store: WeightStore, plan_encoder: PlanPart, plan_codec: PlanPart
) -> Mapping[str, Any]:
    """Agreement of the bundle in ``folder`` with fp32, as the manifest keeps it.

    ``store`` still knows the exact weights. Parts in fp32 are written beside the bundle for as long as they run.
    """
    bundle = Bundle(folder, verify="never")
    vocabulary = bundle.manifest.vocabulary
    context = min(MAX_CONTEXT, shape.max_positions)
    engine = OnnxRuntimeEngine(bundle, max_context=context)
    try:
        held = hold_rows(engine, bundle)
        engine.unload("backbone", "head")  # so that an export holds one part in memory at a time
        codes = held_codes(held, vocabulary)
        pcm = engine.decode_latents(engine.codes_to_latents(codes))
        spec = bundle.manifest.features
        heard = LogMelFrontend(spec, bundle.table("encoder.mel_filters")).prepare(probe_sound(spec))
        features = engine.encode(heard.inputs)[: heard.rows]
    finally:
        engine.close()
    latents = store.exact("codec.rvq_table")[np.arange(STREAMS), codes].sum(axis=1) + store.exact("codec.rvq_bias")
    with _in_float32(folder, plan_codec) as path:
        exact_pcm = run_as_written(path, {"latents": np.ascontiguousarray(latents.T[None])})[0]
    with _in_float32(folder, plan_encoder) as path:
        exact_features = run_as_written(path, heard.inputs)[: heard.rows]
    found = compare(held, store.exact, shape, vocabulary, bundle.table("embedding"))
    return {
        **{modality: agreement.to_json() for modality, agreement in found.items()},
        "features": cosine(exact_features, features),
        "pcm": {"snr_db": signal_to_noise(exact_pcm, pcm)},
    }


@contextmanager
def _in_float32(folder: Path, plan: PlanPart) -> Iterator[Path]:
    store = WeightStore("in_float32.safetensors")
    graph = plan(store).graph
    path = folder / "in_float32.onnx"
    try:
        store.lay_out()
        graph.save(folder, path.name)
        for _ in store.write(folder):
            pass
        yield path
    finally:
        path.unlink(missing_ok=True)
        (folder / store.filename).unlink(missing_ok=True)
