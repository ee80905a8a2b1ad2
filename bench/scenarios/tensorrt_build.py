"""Compiles parts with TensorRT-RTX, each in a separate process: time, memory, and size.

By hand: ``ualm bench tensorrt-build RUN --precision int4 -o FILE``, for the body of a training run of any size (the
rest of it is not exported), or with a bundle in place of RUN for any of its parts. No engine is run: that needs a GPU.
"""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.bench.scenarios.tensorrt_build")

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ...runtime.bundle.bundle import MANIFEST, WEIGHTS, Bundle
from ...runtime.bundle.compiled import CacheKind
from ...runtime.errors import ExportError
from ...runtime.files.writing import check_place, replacing_file, resolved
from ...runtime.process.cores import cores
from ..harness.blocks import Samples
from ..harness.measure import measure_subjects
from ..harness.protocol import Case, Derived
from ..meters.environment import current_load
from ..meters.memory import Watcher
from ..report.formats import write_json
from ..report.schema import Report, Setting, Subject
from ..report.statistics import Summary
from ..report.tables import to_table

#: Largest share of the time for sampling private memory, see ``export``.
_LOOKING = 0.05
_BODY = "backbone"
#: Rows of the embedding table, for text ids, that set the scales of an fp8 body exported only for a build.
SCALING_ROWS = slice(256, 320)


class _Source:
    """The input of a build: a bundle, or only the body of a training run, in one format."""

    def __init__(self, folder: Path, name: str, precisions: Mapping[str, str], digest: str | None) -> None:
        self.folder = folder
        self.about = Subject(name, "tensorrt-rtx", digest, precisions)

    def close(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class TensorRtBuild:
    """Parsing, comparing and building one part for ``sms``.

    Figures: "process", from reading the graph to the end; "build", the part of it for parsing, comparing and building;
    "engine", bytes of the file; "stored", bytes of the weights that the part reads, as stored; "peak_*" as in
    ``export``, of the process.
    """

    name: ClassVar[str] = "tensorrt-build"
    units: ClassVar[Mapping[str, str]] = {
        "process": "s",
        "build": "s",
        **dict.fromkeys(("engine", "stored", "peak_rss", "peak_private", "peak_anonymous"), "MiB"),
    }
    compared: ClassVar[Sequence[str]] = ()
    default_repeat: ClassVar[int] = 1

    def open(self, subject: _Source, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        return _Builds(subject.folder, setting)


class _Builds:
    def __init__(self, folder: Path, setting: Mapping[str, Setting]) -> None:
        self._folder, self._setting = folder, setting

    def block(self, count: int) -> Samples:
        figures: dict[str, list[float]] = {}
        for _ in range(count):
            for figure, value in self._build().items():
                figures.setdefault(figure, []).append(value)
        return figures

    def derive(self, figure: str, summary: Summary) -> Derived:
        return Derived()

    def close(self) -> None:
        """Nothing to do: each process has ended."""

    def _build(self) -> dict[str, float]:
        command = [sys.executable, "-m", "ualm.bench.scenarios.tensorrt_build_child", str(self._folder)]
        command += [str(self._setting[name]) for name in ("part", "targets", "max_context", "cache")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            watcher = Watcher(process.pid, share=_LOOKING)
            try:
                out, errors = process.communicate()
            except BaseException:
                process.terminate()
                raise
            finally:
                watcher.stop()
        if process.returncode:
            lines = errors.strip().splitlines() or [f"its process ended with status {process.returncode}"]
            raise ExportError(f"{self._folder}: {self._setting['part']} was not built: {lines[-1]}")
        reported: dict[str, float] = json.loads(out.splitlines()[-1])
        sizes = {f"peak_{kind}": size for kind, size in watcher.peak.items()}
        sizes |= {"engine": int(reported["engine"]), "stored": int(reported["stored"])}
        return {name: reported[name] for name in ("process", "build")} | {n: size / 2**20 for n, size in sizes.items()}


def measure_builds(
    source: Path,
    *,
    precision: str = "fp16",
    parts: Sequence[str] = (_BODY,),
    targets: Sequence[str] = ("sm89",),
    max_context: int = 16384,
    cache: CacheKind = "in_place",
    repeat: int | None = None,
) -> Report:
    """Build ``parts`` of a bundle, or the body of a training run stored in ``precision``, for each of ``targets``
    ("sm89", or several GPUs at once: "sm86,sm89").

    ``cache``: "appended" for the graphs for TensorRT before 10.15.
    """
    load_average = current_load()
    settings: list[dict[str, Setting]] = [
        {"part": part, "targets": each, "max_context": max_context, "cache": cache}
        for each in targets
        for part in parts
    ]
    with _opened(source, precision, parts) as subject:
        return measure_subjects(
            TensorRtBuild(),
            [subject],
            settings,
            threads=cores(),
            repeat=repeat,
            seed=0,
            load_average=load_average,
            libraries=("tensorrt-rtx", "onnx"),
            progress=lambda text: None,
        )


@contextmanager
def _opened(source: Path, precision: str, parts: Sequence[str]) -> Iterator[_Source]:
    if (source / MANIFEST).is_file():
        bundle = Bundle(source, verify="never")
        formats = {part: bundle.manifest.parts[part].precision for part in parts}
        yield _Source(source, resolved(source).name, formats, bundle.digest)
        return
    if tuple(parts) != (_BODY,):
        raise ExportError(f"{source}: of a training run only the {_BODY} is built; export it, and give the bundle")
    with tempfile.TemporaryDirectory(prefix="ualm-tensorrt-") as folder:
        _write_body(source, precision, Path(folder))
        yield _Source(Path(folder), resolved(source).name, {_BODY: precision}, None)


def _write_body(run: Path, precision: str, folder: Path) -> None:
    """The standard body of a run and its weights, in ``precision``; fp8 is scaled by rows of the embedding table."""
    from ...export.formats.precision import BACKBONE, Precision
    from ...export.formats.store import WeightStore
    from ...export.parts.backbone import BackbonePlan
    from ...export.parts.heads import EMBEDDING
    from ...export.quality.input_scales import InputScales
    from ...export.run.checkpoint import Checkpoint
    from ...export.run.recipe import find_run, read_recipe

    formats = Precision.of(precision)
    files = find_run(run)
    shape = read_recipe(files.config).backbone
    store = WeightStore(WEIGHTS)
    checkpoint = Checkpoint(files.weights)
    plan = BackbonePlan(checkpoint, shape, store, BACKBONE[formats.backbone])
    store.lay_out()
    plan.graph("standard", formats.compute).save(folder, f"{_BODY}.onnx")
    for _ in store.write(folder):
        pass
    if precision == "fp8":
        InputScales(folder, store, shape).see([checkpoint.read(EMBEDDING, SCALING_ROWS)])


def _main(
    source: Annotated[Path, typer.Argument(help="A training run, or a bundle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the results, JSON.")],
    precision: Annotated[str, typer.Option(help="Format of a training run's body.")] = "fp16",
    part: Annotated[list[str] | None, typer.Option(help="Part of a bundle; repeat for more.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="GPUs, as for ualm export; repeat for more builds.")] = None,
    max_context: Annotated[int, typer.Option(help="Rows of the cache.")] = 16384,
    appended: Annotated[bool, typer.Option("--appended", help="Use the graphs for TensorRT before 10.15.")] = False,
    repeat: Annotated[int | None, typer.Option(help="Repetitions; one by default.")] = None,
) -> None:
    """Measure building with TensorRT-RTX; no GPU is needed, and no engine is run."""
    check_place(output)
    report = measure_builds(
        source,
        precision=precision,
        parts=part or [_BODY],
        targets=target or ["sm89"],
        max_context=max_context,
        cache="appended" if appended else "in_place",
        repeat=repeat,
    )
    with replacing_file(output) as temporary:
        temporary.write_text(write_json(report), encoding="utf-8")
    print(to_table(report))


def main(
    arguments: Sequence[str] | None = None, program: str = "python -m ualm.bench.scenarios.tensorrt_build"
) -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(_main)
    app(arguments, prog_name=program)
