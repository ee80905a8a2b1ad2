"""A training run in, a bundle out."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..runtime.bundle import (
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    CodecIdentity,
    Manifest,
    ModelIdentity,
    describe_file,
)
from ..runtime.errors import ExportError
from ..runtime.files import replacing_folder
from ..runtime.sampling import AudioSampling, TextSampling
from ..runtime.tensors import MappedTensors
from ..runtime.vocabulary import Vocabulary
from .backbone import BackbonePlan, null_branch_vectors
from .checkpoint import Checkpoint
from .codec import CodecPart, plan_codec
from .encoder_afwhisper import plan_encoder as plan_afwhisper
from .encoder_common import EncoderPart
from .encoder_omni import plan_encoder as plan_omni
from .golden import TOLERANCES, check_onnxruntime, write_golden
from .graph import Graph
from .heads import HeadsPlan
from .run import Recipe, RunFiles, find_run, read_recipe
from .tokenizer import write_tokenizer
from .weights import WeightStore

PRECISIONS = ("fp32",)

#: Called with a stage's name, the bytes done and the bytes in all (0: not known).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportReport:
    """What an export made: the bundle's folder, bytes of each file, seconds of each stage."""

    bundle: Path
    run: RunFiles
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]


def export_run(
    run: Path | None,
    bundle: Path,
    *,
    config: Path | None = None,
    weights: Path | None = None,
    step: int | None = None,
    precision: str = "fp32",
    progress: Progress = lambda stage, done, total: None,
) -> ExportReport:
    """Export a training run to the folder ``bundle``, which appears whole or not at all.

    Arguments as :func:`run.find_run`. Raises :class:`ExportError`, naming the field or tensor, and
    :class:`OutputError` when the bundle cannot be written.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision = {precision!r}: choose {', '.join(PRECISIONS)}")
    check_onnxruntime()
    clock = _Clock()
    files = find_run(run, config=config, weights=weights, step=step)
    recipe = read_recipe(files.config)
    checkpoint = Checkpoint(files.weights)
    plan = _Plan(checkpoint, recipe)
    clock.lap("read")
    with replacing_folder(bundle) as folder:
        write_tokenizer(recipe, folder / TOKENIZER)  # first: it may be refused, and the weights take minutes
        plan.write(folder, progress)
        clock.lap("write")
        manifest = plan.manifest(files, precision)
        progress("golden vector", 0, 0)
        write_golden(folder, manifest, MappedTensors(folder / WEIGHTS))
        clock.lap("golden vector")
        manifest = _with_files(manifest, folder, progress)
        _write_manifest(manifest, folder)
        clock.lap("hashes")
    sizes = {name: file.size for name, file in manifest.files.items()}
    sizes[MANIFEST] = (bundle / MANIFEST).stat().st_size
    return ExportReport(bundle, files, sizes, clock.seconds)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now


class _Plan:
    """All parts of a bundle, planned and checked against the checkpoint before anything is written."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self.recipe = recipe
        self.shape = recipe.backbone
        self.store = WeightStore(WEIGHTS)
        self.backbone = BackbonePlan(checkpoint, self.shape, self.store)
        self.codec: CodecPart = plan_codec(checkpoint, dict(recipe.codec), self.store)
        self.vocabulary = Vocabulary.in_order(recipe.vocabulary_order, recipe.text_size, self.codec.codebook_size)
        self.heads = HeadsPlan(checkpoint, self.vocabulary, self.shape.hidden_size, self.store)
        plan_encoder = plan_omni if recipe.encoder_kind == "qwen2.5-omni" else plan_afwhisper
        self.encoder: EncoderPart = plan_encoder(
            checkpoint, dict(recipe.encoder), dict(recipe.features), self.store, self.shape.hidden_size
        )
        self._plan_null_branch(checkpoint)
        self._refuse_extra(checkpoint)

    def _plan_null_branch(self, checkpoint: Checkpoint) -> None:
        s = self.shape
        vectors = functools.cache(lambda: null_branch_vectors(checkpoint, s))  # keys and values come from one pass
        shape = (s.layers, s.kv_heads, s.head_dim)
        self.store.add("null.keys", shape, lambda: vectors()[0])
        self.store.add("null.values", shape, lambda: vectors()[1])

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
        """Role -> graph. The standard dialect is always there; ONNX Runtime's own where the head size allows."""
        graphs = {"backbone": self.backbone.graph("standard")}
        if self.shape.grouped_attention:
            graphs["backbone.grouped"] = self.backbone.graph("grouped")
        graphs |= {f"head.{head}": self.heads.graph(head) for head in self.heads.sizes}
        return graphs | {"encoder": self.encoder.graph, "codec": self.codec.graph}

    def write(self, folder: Path, progress: Progress) -> None:
        self.store.lay_out()
        for role, graph in self.graphs().items():
            graph.save(folder, _onnx_name(role))
        done, total = 0, self.store.nbytes
        progress("weights", 0, total)
        for written in self.store.write(folder):
            done += written
            progress("weights", done, total)

    def manifest(self, files: RunFiles, precision: str) -> Manifest:
        s, c, names = self.shape, self.codec, self.recipe.names
        return Manifest(
            model=ModelIdentity(s.hidden_size, s.layers, s.heads, s.kv_heads, s.head_dim, s.max_positions),
            vocabulary=self.vocabulary,
            codec=CodecIdentity(c.sample_rate, c.hop_length, c.latent_size, *c.context),
            features=MappingProxyType(self.encoder.features.to_json()),
            sampling={"audio": vars(AudioSampling()), "text": vars(TextSampling())},
            parts={role: {"file": _onnx_name(role), "precision": precision} for role in self.graphs()},
            golden=TOLERANCES,
            source={
                "weights": files.weights.name,
                "step": files.step,
                # of an absolute path only the name: a bundle travels, its maker's folders do not
                "names": {part: Path(name).name if Path(name).is_absolute() else name for part, name in names.items()},
                "rope_theta": s.rope_theta,
                "rms_norm_eps": s.rms_norm_eps,
            },
            files={},
            created_by=f"ualm {importlib.metadata.version('ualm')}",
        )


def _onnx_name(role: str) -> str:
    return f"{role.replace('.', '_')}.onnx"


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
