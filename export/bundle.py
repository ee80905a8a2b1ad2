"""A training run in, a bundle out."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.bundle.bundle import MANIFEST, TOKENIZER, WEIGHTS, Bundle, describe_file
from ..runtime.bundle.entries import Calibration, PartEntry, SamplingDefaults
from ..runtime.bundle.knowledge import Knowledge, content_words
from ..runtime.bundle.manifest import BundleFile, CodecIdentity, Manifest, ModelIdentity, PostCodecIdentity
from ..runtime.bundle.quality import Verdict, verdicts
from ..runtime.bundle.templates import Templates
from ..runtime.errors import ExportError, InputError
from ..runtime.files.safetensors_reader import MappedTensors
from ..runtime.files.writing import replacing_folder
from ..runtime.vocabulary import Vocabulary
from .formats.precision import BACKBONE, CODEC, ENCODER, PREFILL, Precision
from .formats.store import WeightStore
from .parts.backbone import BackbonePlan, null_branch_vectors
from .parts.codec.codec import CodecPart, plan_codec
from .parts.encoders.af_whisper import plan_encoder as plan_afwhisper
from .parts.encoders.omni import plan_encoder as plan_omni
from .parts.encoders.whisper import EncoderPart
from .parts.graph import Graph
from .parts.heads import HeadsPlan
from .parts.integer import integer_products
from .quality.calibration_set import CalibrationSet, check_calibrated
from .quality.golden import check_onnxruntime, tolerances, write_golden
from .quality.gptq import calibrate, rows_generated, rows_read
from .quality.input_scales import InputScales, built_in_conversations
from .quality.measure import measure_quality
from .quality.reference_body import hidden_states
from .run.checkpoint import Checkpoint
from .run.config import read_json
from .run.recipe import Recipe, RunFiles, find_run, read_recipe
from .run.tokenizer import write_tokenizer

#: Un-rotated keys and values of the guidance null branch.
NULL_TABLES = ("null.keys", "null.values")

#: File beside train.yaml, for runs that have their own wording for the modes of reasoning.
TEMPLATES_FILE = "templates.json"
#: File beside train.yaml in which a run says what its model knows.
KNOWS_FILE = "knows.json"

#: Called with a stage's name, the bytes done and the total bytes (0: unknown).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportReport:
    """The result of an export: the bundle's folder, bytes of each file, seconds of each stage, agreement with fp32,
    each of its figures beside its gate, and the gates that were missed."""

    bundle: Path
    run: RunFiles
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]
    quality: Mapping[str, Any]
    verdicts: Sequence[Verdict]
    missed: Sequence[str]


def export_run(
    run: Path | None,
    bundle: Path,
    *,
    config: Path | None = None,
    weights: Path | None = None,
    step: int | None = None,
    precision: str = "fp32",
    encoder_precision: str | None = None,
    codec_precision: str | None = None,
    prefill_precision: str | None = None,
    calibration: Path | None = None,
    accept_quality: bool = False,
    post_codec: Callable[[CodecIdentity], PostCodecIdentity] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ExportReport:
    """Export a training run to the folder ``bundle``, which appears complete or not at all.

    Arguments as :func:`run.recipe.find_run` and :meth:`Precision.of`; ``calibration`` as :meth:`CalibrationSet.read`;
    ``post_codec`` describes a stage after the codec, see ``runtime.audio.post_codec``. A bundle that falls below a
    gate of :mod:`quality.agreement` is refused unless ``accept_quality``. Raises :class:`ExportError`, naming the field
    or tensor, and :class:`OutputError` when the bundle cannot be written.
    """
    formats = Precision.of(precision, encoder_precision, codec_precision, prefill_precision)
    if calibration is not None:
        check_calibrated(precision)
    examples = CalibrationSet.read(calibration) if calibration is not None else None
    check_onnxruntime()
    clock = _Clock()
    files = find_run(run, config=config, weights=weights, step=step)
    recipe = read_recipe(files.config)
    templates = read_templates(files.config.with_name(TEMPLATES_FILE))
    knows = read_knows(files.config.with_name(KNOWS_FILE))
    checkpoint = Checkpoint(files.weights)
    plan = _Plan(checkpoint, recipe, formats)
    stage = None if post_codec is None else post_codec(plan.codec_identity)
    clock.lap("read")
    with replacing_folder(bundle) as folder:
        write_tokenizer(recipe, folder / TOKENIZER)  # first, because it may be refused and the weights take minutes
        plan.write(folder, progress)
        clock.lap("write")
        manifest = dataclasses.replace(plan.manifest(files), templates=templates, knows=knows, post_codec=stage)
        if examples is not None or precision == "fp8":
            manifest = dataclasses.replace(manifest, files=_sizes(folder))
            _write_manifest(manifest, folder)
            manifest = dataclasses.replace(manifest, calibration=plan.calibrate(folder, examples, progress))
            clock.lap("calibrate")
        progress("golden vector", 0, 0)
        write_golden(folder, manifest, MappedTensors(folder / WEIGHTS), plan.body)
        clock.lap("golden vector")
        manifest = _with_files(manifest, folder, progress)
        clock.lap("hashes")
        progress("agreement", 0, 0)
        _write_manifest(manifest, folder)
        manifest = dataclasses.replace(manifest, quality=plan.quality(folder))
        _write_manifest(manifest, folder)
        clock.lap("agreement")
        judged = verdicts(manifest.quality, formats.to_json(), plan.shape.layers)
        missed = [verdict.clause for verdict in judged if not verdict.met]
        if missed and not accept_quality:
            raise ExportError(
                f"precision {precision} does not agree with fp32: {'; '.join(missed)}; choose another precision, or "
                "accept it as it is with --accept-quality"
            )
    sizes = {name: file.size for name, file in manifest.files.items()}
    sizes[MANIFEST] = (bundle / MANIFEST).stat().st_size
    return ExportReport(bundle, files, sizes, clock.seconds, manifest.quality, judged, missed)


def read_templates(path: Path) -> Templates:
    """The templates of a run; the defaults if there is no such file."""
    if not os.path.lexists(path):
        return Templates()
    try:
        return Templates.from_json(read_json(path))
    except ValueError as error:
        raise ExportError(f"{path}: {error}; fix it, or remove it to use the defaults") from error


def read_knows(path: Path) -> Knowledge | None:
    """What a run's model knows; None if there is no such file."""
    if not os.path.lexists(path):
        return None
    try:
        knows = Knowledge.from_json(read_json(path))
    except ValueError as error:
        raise ExportError(f"{path}: {error}; fix it, or remove it") from error
    if idle := [word for word in knows.words if not any(content_words(word))]:
        raise ExportError(f"{path}: words: {idle[0]!r} is a stop word, which never counts; leave it out")
    return knows


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now


class _Plan:
    """All parts of a bundle, planned and checked against the checkpoint before anything is written."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, formats: Precision) -> None:
        self.checkpoint, self.recipe, self.formats = checkpoint, recipe, formats
        self.shape = recipe.backbone
        self.store = WeightStore(WEIGHTS)
        self._folder: Path | None = None
        self.backbone = BackbonePlan(
            checkpoint, self.shape, self.store, BACKBONE[formats.backbone], PREFILL[formats.prefill]
        )
        if formats.prefill != "none" and not self.shape.grouped_attention:
            raise ExportError(
                f"--prefill {formats.prefill}: needs heads of a multiple of 16, this model's have "
                f"{self.shape.head_dim}; leave it out"
            )
        self.codec = self._codec(self.store, formats.codec)
        self.vocabulary = Vocabulary.in_order(recipe.vocabulary_order, recipe.text_size, self.codec.codebook_size)
        self.heads = HeadsPlan(checkpoint, self.vocabulary, self.shape.hidden_size, self.store, BACKBONE[formats.heads])
        self.encoder = self._encoder(self.store, formats.encoder)
        self._plan_null_branch()
        self._refuse_extra(checkpoint)

    def _codec(self, store: WeightStore, precision: str) -> CodecPart:
        return plan_codec(self.checkpoint, dict(self.recipe.codec), store, CODEC[precision])

    def _encoder(self, store: WeightStore, precision: str) -> EncoderPart:
        recipe = self.recipe
        plan_encoder = plan_omni if recipe.encoder_kind == "qwen2.5-omni" else plan_afwhisper
        config, features = dict(recipe.encoder), dict(recipe.features)
        return plan_encoder(self.checkpoint, config, features, store, self.shape.hidden_size, ENCODER[precision])

    def _plan_null_branch(self) -> None:
        s = self.shape

        # keys and values come from one pass over what has been written so far
        vectors = functools.cache(lambda: null_branch_vectors(self._stored, s, self._round_input))
        shape = (s.layers, s.kv_heads, s.head_dim)
        for index, name in enumerate(NULL_TABLES):
            self.store.add(name, shape, functools.partial(lambda index: vectors()[index], index))

    def _refuse_extra(self, checkpoint: Checkpoint) -> None:
        known = set(self.backbone.tensors) | set(self.heads.tensors) | self.encoder.tensors | self.codec.tensors
        extra = sorted(name for name in checkpoint if name not in known)
        if extra:
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            raise ExportError(
                f"{checkpoint.path}: unexpected tensors {', '.join(extra[:3])}{more}: the configurations that "
                "train.yaml names do not describe this checkpoint"
            )

    def graphs(self) -> dict[str, Graph]:
        """Role -> graph. The standard dialect, in the arithmetic of GPUs, is always included; so is ONNX Runtime's own
        where the head size allows it, and the standard one in float32 where it does not."""
        compute = self.formats.compute
        graphs = {"backbone": self.backbone.graph("standard", compute)}
        if self.shape.grouped_attention:
            graphs["backbone.grouped"] = self.backbone.graph("grouped")
        elif compute != "float32":
            graphs["backbone.float32"] = self.backbone.graph("standard")
        graphs |= {f"head.{head}": self.heads.graph(head) for head in self.heads.sizes}
        return graphs | {"encoder": self.encoder.graph, "codec": self.codec.graph, "codec.stream": self.codec.stream}

    def integer_graphs(self) -> dict[str, Graph]:
        """Role -> graph whose products are computed in integers (see ``export.parts.integer``)."""
        graphs = {"encoder.integer": self.encoder.graph} if self.formats.encoder == "int8" else {}
        if self.formats.prefill != "none":
            graphs["backbone.prefill"] = self.backbone.graph("grouped", matrices="prefill")
        return graphs

    def write(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self.store.lay_out()
        for role, graph in self.graphs().items():
            graph.save(folder, _onnx_name(role))
        for role, graph in self.integer_graphs().items():
            whole = integer_products(graph.model())
            (folder / _onnx_name(role)).write_bytes(whole.SerializeToString(deterministic=True))
        done, total = 0, self.store.nbytes
        progress("weights", 0, total)
        for written in self.store.write(folder):
            done += written
            progress("weights", done, total)

    def body(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Hidden states of the body with its weights as stored, computed in float32."""
        return hidden_states(self._stored, self.shape, sequences, round_input=self._round_input)

    def calibrate(self, folder: Path, examples: CalibrationSet | None, progress: Progress) -> Calibration:
        """Fit the body to what the bundle in ``folder`` reads and says: integer weights are rounded again, and the
        inputs of fp8 matrices get their scales. Returns what the manifest says about it."""
        bundle = Bundle(folder, verify="never")
        conversations = [] if examples is None else list(examples.conversations)
        source = None if examples is None else examples.source

        def on_progress(done: int, total: int) -> None:
            progress("calibrate", done, total)

        try:
            if self.formats.backbone == "fp8":
                conversations += built_in_conversations(self.encoder.features)
                scales = InputScales(folder, self.store, self.shape, on_progress)
                scales.see(rows_read(bundle, conversations))  # enough to generate answers
                self._rewrite_null_branch(folder)
                scales.see(rows_generated(bundle, conversations))
            else:
                generated = rows_generated(bundle, conversations)
                calibrate(folder, self.store, self.shape, BACKBONE[self.formats.backbone], generated, on_progress)
        except InputError as error:
            what = "the scales of fp8" if examples is None else "--calibrate"
            raise ExportError(f"{what}: {error}") from error
        self._rewrite_null_branch(folder)
        return CalibrationSet(conversations, source).entry()

    def _rewrite_null_branch(self, folder: Path) -> None:
        vectors = null_branch_vectors(self._stored, self.shape, self._round_input)
        for name, values in zip(NULL_TABLES, vectors, strict=True):
            self.store.rewrite(folder, name, values)

    def _round_input(self, name: str, x: np.ndarray) -> np.ndarray:
        assert self._folder is not None
        return self.store.round_input(self._folder, name, x)

    def _stored(self, name: str) -> np.ndarray:
        """A tensor as stored in the blob."""
        assert self._folder is not None
        return self.store.read_back(self._folder, name)

    def quality(self, folder: Path) -> Mapping[str, Any]:
        """Agreement with fp32 of the bundle in ``folder``."""
        exact = (lambda store: self._encoder(store, "fp32")), (lambda store: self._codec(store, "fp32"))
        return measure_quality(folder, self.shape, self.store, *exact)

    @property
    def codec_identity(self) -> CodecIdentity:
        c = self.codec
        return CodecIdentity(c.sample_rate, c.hop_length, c.latent_size, *c.context, c.lookahead)

    def manifest(self, files: RunFiles) -> Manifest:
        s, names = self.shape, self.recipe.names
        formats = self.formats.to_json()
        whole = self.integer_graphs()
        parts = {
            role: PartEntry(
                _onnx_name(role),
                self.formats.of_part(role),
                "int8" if role in whole else graph.compute,
                graph.weight_bytes,
            )
            for role, graph in (self.graphs() | whole).items()
        }
        return Manifest(
            model=ModelIdentity(s.hidden_size, s.layers, s.heads, s.kv_heads, s.head_dim, s.max_positions),
            vocabulary=self.vocabulary,
            codec=self.codec_identity,
            features=self.encoder.features,
            sampling=SamplingDefaults(),
            parts=parts,
            precision=formats,
            quality={},
            golden=tolerances(self.formats, s.layers, s.hidden_size),
            source={
                "weights": files.weights.name,
                "step": files.step,
                # only the name of an absolute path: a bundle is copied elsewhere, its author's folders are not
                "names": {part: Path(name).name if Path(name).is_absolute() else name for part, name in names.items()},
                "rope_theta": s.rope_theta,
                "rms_norm_eps": s.rms_norm_eps,
            },
            files={},
            created_by=f"ualm {importlib.metadata.version('ualm')}",
        )


def _onnx_name(role: str) -> str:
    return f"{role.replace('.', '_')}.onnx"


def _sizes(folder: Path) -> Mapping[str, BundleFile]:
    """The files that an unfinished bundle needs to be opened, without hashes."""
    return {path.name: BundleFile(path.stat().st_size, "") for path in folder.iterdir() if path.name != MANIFEST}


def _with_files(manifest: Manifest, folder: Path, progress: Progress) -> Manifest:
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    done, total = 0, sum(path.stat().st_size for path in paths)

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress("hashes", done, total)

    return dataclasses.replace(manifest, files={path.name: describe_file(path, on_bytes) for path in paths})


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
