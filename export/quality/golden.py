"""The golden vector: inputs and outputs of every part, recorded at export, to check any engine on any machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ...runtime.audio.features import LogMelFrontend
from ...runtime.bundle.bundle import GOLDEN
from ...runtime.bundle.manifest import Manifest
from ...runtime.engines.arithmetic import Arithmetic, logits_tolerance, part_tolerance
from ...runtime.errors import ExportError
from ...runtime.files.safetensors_reader import widen
from ...runtime.process.cores import library_threads
from ...runtime.sound.sound import Sound
from ...runtime.vocabulary import MODALITIES, ROLES, STREAMS, Vocabulary
from ..formats.precision import Precision

#: Stored format -> arithmetic of the CPU engine for such a part; float32 for formats not listed.
_ON_CPU: Mapping[str, Arithmetic] = {"fp8": "float8", "int8": "int8", "int4": "int8"}


def tolerances(precision: Precision, layers: int, hidden: int) -> dict[str, float]:
    """Tolerance of each output on the CPU engine, for versions of ualm that read it from the manifest.

    This version takes it from the engine under check (``runtime.diagnostics.golden``) and only shows the manifest's.
    """
    body, heads, encoder, codec = (
        _ON_CPU.get(stored, "float32")
        for stored in (precision.backbone, precision.heads, precision.encoder, precision.codec)
    )
    few = logits_tolerance(body, heads, layers, hidden, few=True)
    return {
        "logits": max(few, logits_tolerance(body, heads, layers, hidden)),
        "features": part_tolerance(encoder),
        "pcm": part_tolerance(codec),
    }


#: The first ONNX Runtime with TensorScatter, which the standard dialect of the body needs.
OLDEST_ONNXRUNTIME = (1, 25)


def check_onnxruntime() -> None:
    """Refuse an ONNX Runtime that cannot run the parts, before gigabytes are written."""
    from ...runtime.engines.onnxruntime.library import ort

    if tuple(int(number) for number in ort.__version__.split(".")[:2]) < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise ExportError(
            f"onnxruntime {ort.__version__}: export needs {oldest} or newer, which requires Python 3.11 or later; a "
            "bundle made there also runs here"
        )


#: Seed of the inputs.
SEED = 20251012
#: The segments whose first logits are recorded.
SEGMENTS = ("audio", "text")

#: Input embeddings float32 [n, H] of sequences -> their final-norm hidden states.
Body = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def golden_inputs(manifest: Manifest) -> dict[str, np.ndarray]:
    """A short prompt of text and audio rows, codes, and a third of a second of sound; identical for every export."""
    random = np.random.default_rng(SEED)
    rows, codes = golden_rows(manifest.vocabulary, random)
    spec = manifest.features
    time = np.arange(spec.sample_rate // 3) / spec.sample_rate
    sound = 0.4 * np.sin(2 * np.pi * (220 + 400 * time) * time) + 0.05 * random.standard_normal(len(time))
    return {"rows": rows, "codes": codes, "sound": sound.astype(np.float32)}


def golden_rows(vocabulary: Vocabulary, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The prompt's rows int32 [n, 8], the last of which is ``assistant``, and the codes int16 [9, 8] that it
    contains."""
    text = vocabulary.text_rows(random.integers(1, vocabulary.text_size, 5).tolist())
    codes = random.integers(0, vocabulary.codebook_size, (9, STREAMS)).astype(np.int16)
    rows = np.concatenate([text, vocabulary.delayed_rows(codes), vocabulary.special_row(ROLES["assistant"])[None]])
    return rows.astype(np.int32), codes


def golden_sequences(vocabulary: Vocabulary, embedding: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Input embeddings float32 [n, H] behind the recorded logits: the prompt, then the prompt with the first row of a
    sound and of a text, each as the conditional branch and as the null branch reads it."""
    prompt = _embed(embedding, rows)
    markers = [_embed(embedding, vocabulary.special_row(MODALITIES[modality])[None]) for modality in SEGMENTS]
    firsts = [np.concatenate([prefix, marker]) for marker in markers for prefix in (prompt, np.zeros_like(prompt))]
    return [prompt, *firsts]


def write_golden(folder: Path, manifest: Manifest, weights: Mapping[str, np.ndarray], body: Body) -> None:
    """Run every part once and write ``golden.safetensors``.

    Outputs: ``logits.modality`` [1, 5] after the prompt's last row (``assistant``); ``logits.audio`` and
    ``logits.text`` [2, n] of a segment's first step, conditional and null branch, the null branch computed with a dense
    prefill; ``features``; ``pcm``.

    ``body`` is the reference of ``reference_body`` on the weights as stored: it holds one matrix at a time, where ONNX
    Runtime would widen all of them before the first product. The other parts run without graph optimisation and weight
    packing, so that ONNX Runtime reads the mapped weights in place and computes the graphs exactly as written.
    ``weights`` are the mapped tables.
    """
    inputs = golden_inputs(manifest)
    run = functools.partial(_run_part, folder, manifest)
    sequences = golden_sequences(manifest.vocabulary, weights["embedding"], inputs["rows"])
    hidden = np.stack([states[-1] for states in body(sequences)])
    outputs = {"logits.modality": run("head.modality", {"hidden": hidden[:1]})}
    for index, modality in enumerate(SEGMENTS):
        outputs[f"logits.{modality}"] = run(f"head.{modality}", {"hidden": hidden[1 + 2 * index : 3 + 2 * index]})
    table, bias = widen(weights["codec.rvq_table"]), weights["codec.rvq_bias"]
    latents = table[np.arange(STREAMS), inputs["codes"]].sum(axis=1, dtype=np.float32) + bias
    outputs["pcm"] = run("codec", {"latents": np.ascontiguousarray(latents.T[None])})[0]
    spec = manifest.features
    heard = LogMelFrontend(spec, weights["encoder.mel_filters"]).prepare(Sound(inputs["sound"], spec.sample_rate))
    outputs["features"] = run("encoder", heard.inputs)[: heard.rows]
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ExportError(f"golden vector: {name} holds NaN or infinity; the weights are damaged")
    tensors = inputs | {name: np.ascontiguousarray(values) for name, values in outputs.items()}
    (folder / GOLDEN).write_bytes(save(tensors))


def _embed(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return widen(table[rows]).sum(axis=1, dtype=np.float32)


def _run_part(folder: Path, manifest: Manifest, role: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    return run_as_written(folder / manifest.parts[role].file, feeds)


def run_as_written(path: Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """First output of a graph, with ONNX Runtime neither rewriting its operators nor copying its weights."""
    from ...runtime.engines.onnxruntime.library import ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = library_threads()
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run([session.get_outputs()[0].name], dict(feeds))[0]
