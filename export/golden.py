"""The golden vector: inputs and outputs of every part, recorded at export, to check any engine on any machine with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..runtime.bundle import GOLDEN, Manifest
from ..runtime.errors import ExportError
from ..runtime.hearing import FeatureSpec, Hearing
from ..runtime.sound import Sound
from ..runtime.vocabulary import MODALITIES, ROLES, STREAMS

#: Largest error of an fp32 engine, relative to the largest value of the output.
TOLERANCES = {"logits": 1e-4, "features": 1e-4, "pcm": 1e-4}


#: The first ONNX Runtime with TensorScatter, which the standard dialect of the body needs.
OLDEST_ONNXRUNTIME = (1, 25)


def check_onnxruntime() -> None:
    """Refuse an ONNX Runtime that cannot run the parts, before gigabytes are written."""
    import onnxruntime as ort

    if tuple(int(number) for number in ort.__version__.split(".")[:2]) < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise ExportError(
            f"onnxruntime {ort.__version__}: export needs {oldest} or newer, which there is for Python 3.11 and up; a "
            "bundle made there runs here too"
        )


def golden_inputs(manifest: Manifest) -> dict[str, np.ndarray]:
    """A short prompt of text and audio rows, codes, and a third of a second of sound; the same for every export."""
    random = np.random.default_rng(20251012)
    vocabulary = manifest.vocabulary
    text = vocabulary.text_rows(random.integers(1, vocabulary.text_size, 5).tolist())
    codes = random.integers(0, vocabulary.codebook_size, (9, STREAMS)).astype(np.int16)
    rows = np.concatenate([text, vocabulary.delayed_rows(codes), vocabulary.special_row(ROLES["assistant"])[None]])
    spec = FeatureSpec.from_json(manifest.features)
    time = np.arange(spec.sample_rate // 3) / spec.sample_rate
    sound = 0.4 * np.sin(2 * np.pi * (220 + 400 * time) * time) + 0.05 * random.standard_normal(len(time))
    return {"rows": rows.astype(np.int32), "codes": codes, "sound": sound.astype(np.float32)}


def write_golden(folder: Path, manifest: Manifest, weights: Mapping[str, np.ndarray]) -> None:
    """Run every part once and write ``golden.safetensors``.

    Outputs: ``logits.modality`` [1, 5] after the prompt's last row (``assistant``); ``logits.audio`` and
    ``logits.text`` [2, n] of a segment's first step, conditional and null branch, the null branch computed densely;
    ``features``; ``pcm``.

    The parts run unoptimised and unpacked: ONNX Runtime then reads the mapped weights in place, so that the export's
    own memory stays small, and nothing but the graphs as written is computed. ``weights`` are the mapped tables.
    """
    inputs = golden_inputs(manifest)
    body = functools.partial(_prefill, folder, manifest, weights["rope.inverse_frequencies"])
    prompt = _embed(weights["embedding"], inputs["rows"])
    outputs = {"logits.modality": _run(folder, manifest, "head.modality", {"hidden": body(prompt)})}
    for modality in ("audio", "text"):
        marker = _embed(weights["embedding"], manifest.vocabulary.special_row(MODALITIES[modality])[None])
        hidden = [body(np.concatenate([prefix, marker])) for prefix in (prompt, np.zeros_like(prompt))]
        outputs[f"logits.{modality}"] = _run(folder, manifest, f"head.{modality}", {"hidden": np.concatenate(hidden)})
    table, bias = weights["codec.rvq_table"], weights["codec.rvq_bias"]
    latents = table[np.arange(STREAMS), inputs["codes"]].sum(axis=1, dtype=np.float32) + bias
    outputs["pcm"] = _run(folder, manifest, "codec", {"latents": np.ascontiguousarray(latents.T[None])})[0]
    spec = FeatureSpec.from_json(manifest.features)
    heard = Hearing(spec, weights["encoder.mel_filters"]).prepare(Sound(inputs["sound"], spec.sample_rate))
    outputs["features"] = _run(folder, manifest, "encoder", heard.inputs)[: heard.rows]
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ExportError(f"golden vector: {name} holds NaN or infinity; the weights are damaged")
    tensors = inputs | {name: np.ascontiguousarray(values) for name, values in outputs.items()}
    (folder / GOLDEN).write_bytes(save(tensors))


def _embed(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return table[rows].sum(axis=1, dtype=np.float32)


def _prefill(folder: Path, manifest: Manifest, frequencies: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    model, rows = manifest.model, len(embeddings)
    angles = (np.arange(rows, dtype=np.float32)[:, None] * frequencies[None]).astype(np.float64)
    feeds = {
        "embeddings": embeddings[None],
        "write_index": np.zeros(1, np.int64),
        "mask": np.triu(np.full((rows, rows), -np.inf, np.float32), 1)[None, None],
        "cos": np.cos(angles).astype(np.float32)[None],
        "sin": np.sin(angles).astype(np.float32)[None],
    }
    cache = np.zeros((1, model.kv_heads, rows, model.head_dim), np.float32)
    for layer in range(model.layers):
        feeds |= {f"past_key.{layer}": cache, f"past_value.{layer}": cache}
    return _run(folder, manifest, "backbone", feeds)


def _run(folder: Path, manifest: Manifest, role: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    path = folder / manifest.parts[role]["file"]
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run([session.get_outputs()[0].name], dict(feeds))[0]
