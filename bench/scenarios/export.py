"""An export as a user runs it, in a separate process: time, memory, size, and agreement with fp32."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...runtime.bundle.bundle import WEIGHTS, Bundle
from ...runtime.errors import ExportError, InputError, OutputError, UalmError
from ...runtime.files.writing import replacing_folder, resolved
from ...runtime.process.cores import cores
from ...runtime.process.extras import install_hint
from ...runtime.process.stopping import raise_interrupt
from ..harness.blocks import Progress, Samples
from ..harness.measure import measure_subjects
from ..harness.protocol import Case, Derived
from ..harness.subjects import check_count, precisions_of
from ..meters.environment import current_load
from ..meters.memory import Watcher, cached_fraction
from ..report.schema import Report, Setting, Subject
from ..report.statistics import Summary

if TYPE_CHECKING:
    from ...export.run.recipe import RunFiles

#: Largest share of the time for sampling private memory: a sample walks through gigabytes of mapped pages.
_LOOKING = 0.05
#: Name of the bundle in the export's process, in the folder of :func:`_place`.
_BUNDLE = "bundle"
#: Figure, its source (a part of the export's "quality", and a value), and factor.
_AGREEMENT = (
    ("audio_top1", "audio", "top1", 100),
    ("audio_kl", "audio", "kl", 1),
    ("text_top1", "text", "top1", 100),
    ("text_kl", "text", "kl", 1),
    ("feature_cosine", "features", "cosine", 1),
    ("feature_cosine_least", "features", "cosine_least", 1),
    ("sample_snr", "pcm", "snr_db", 1),
)


class _Units(dict[str, str]):
    """Units by figure. Stages and parts have names that only the export knows: for these, the prefix before the dot."""

    def __missing__(self, figure: str) -> str:
        kind, dot, _ = figure.partition(".")
        if not dot:
            raise KeyError(figure)
        return self[kind]


@dataclass(frozen=True)
class Formats:
    """The options of ``ualm export`` that determine a bundle's formats; None: its default."""

    precision: str = "fp32"
    encoder_precision: str | None = None
    codec_precision: str | None = None
    prefill: str | None = None
    calibrate: Path | None = None

    def given(self) -> dict[str, str]:
        """Value of each given option, by its name without dashes."""
        return {name: str(value) for name, value in vars(self).items() if value is not None}

    @property
    def setting(self) -> dict[str, Setting]:
        """As shown in the report; a path is reduced to its last component."""
        return {name: Path(value).name if name == "calibrate" else value for name, value in self.given().items()}

    @property
    def arguments(self) -> list[str]:
        return [part for name, value in self.given().items() for part in (f"--{name.replace('_', '-')}", value)]


class ExportedRun:
    """A training run, and the last bundle made from it."""

    def __init__(self, run: Path, formats: Formats) -> None:
        try:
            from ...export.formats.precision import Precision
            from ...export.run.recipe import find_run
            from ...export.run.shards import weight_files
        except ImportError as error:
            raise_interrupt(error)
            raise UalmError(f"export cannot be loaded ({error}); install it with: {install_hint('export')}") from error
        # refuse now, not after the machine was measured
        Precision.of(formats.precision, formats.encoder_precision, formats.codec_precision, formats.prefill)
        if formats.calibrate is not None and not formats.calibrate.exists():
            raise InputError(f"--calibrate {formats.calibrate}: no such file or folder")
        self.files: RunFiles = find_run(run)
        self.weights = weight_files(self.files.weights)
        self.folder, self.formats = run, formats
        self.made: Bundle | None = None

    @property
    def about(self) -> Subject:
        assert self.made is not None
        return Subject(resolved(self.folder).name, "export", self.made.digest, precisions_of(self.made))

    def close(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Export:
    """``ualm export`` of a run, at any loss of quality; ``folder`` is the place, ``keep`` its name for the user.

    Figures: "export", from the start of the process to its end; "stage.NAME", the time that it reports for each stage;
    "rest", time outside all stages: starting, importing, and waiting for the disk in the end. "peak_anonymous" was
    sampled every 20 ms, "peak_private" as often as possible within a twentieth of the time; "peak_rss" is the kernel's
    count (VmHWM), mapped files included. "bundle", "weights": bytes of all files, and of the weights; "weights.PART":
    bytes that a step of that part reads. The agreement with fp32 is taken from the bundle's manifest. "cached": how
    much of the run's weights was in memory when the process started. Figures that the system does not report are left
    out.
    """

    folder: Path
    keep: Path | None = None

    name: ClassVar[str] = "export"
    units: ClassVar[Mapping[str, str]] = _Units(
        **dict.fromkeys(("export", "stage", "rest"), "s"),
        **dict.fromkeys(("peak_rss", "peak_private", "peak_anonymous", "bundle", "weights"), "MiB"),
        **dict.fromkeys(("cached", "audio_top1", "text_top1"), "%"),
        **dict.fromkeys(("audio_kl", "text_kl"), "nat"),
        **dict.fromkeys(("feature_cosine", "feature_cosine_least"), "1"),
        sample_snr="dB",
    )
    compared: ClassVar[Sequence[str]] = ()
    default_repeat: ClassVar[int] = 1

    def open(self, subject: ExportedRun, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        return _Exports(subject, self.folder / _BUNDLE, self.keep)


def measure_export(
    run: Path,
    formats: Formats | None = None,
    *,
    keep: Path | None = None,
    repeat: int | None = None,
    progress: Progress = lambda text: None,
) -> Report:
    """Export ``run`` in fp32 or ``formats``, ``repeat`` times, once by default.

    The last bundle becomes the folder ``keep``, or is deleted.

    Raises :class:`ExportError` with the export's message if it fails, and :class:`OutputError` for a ``keep`` that
    exists already or cannot be written; nothing is left behind then.
    """
    load_average = current_load()
    check_count("--repeat", repeat)
    formats = formats or Formats()
    subject = ExportedRun(run, formats)
    with _place(keep) as folder:
        return measure_subjects(
            Export(folder, keep),
            [subject],
            [formats.setting],
            threads=cores(),
            repeat=repeat,
            seed=0,  # an export has its own seeds
            load_average=load_average,
            libraries=("torch", "transformers", "onnx"),
            progress=progress,
        )


class _Exports:
    def __init__(self, subject: ExportedRun, bundle: Path, keep: Path | None) -> None:
        self._subject, self._bundle, self._keep = subject, bundle, keep
        self._digests: set[str] = set()
        self._missed: list[str] = []

    def block(self, count: int) -> Samples:
        figures: dict[str, list[float]] = {}
        for _ in range(count):
            for figure, value in self._export().items():
                figures.setdefault(figure, []).append(value)
        return figures

    def derive(self, figure: str, summary: Summary) -> Derived:
        if figure == "export" and self._missed:
            return Derived(
                note=f"this bundle is below its gates ({'; '.join(self._missed)}): ualm export makes it with "
                "--accept-quality only"
            )
        if figure == "bundle" and len(self._digests) > 1:
            return Derived(note=f"{summary.n} exports made {len(self._digests)} different bundles; the last is named")
        return Derived()

    def close(self) -> None:
        """Nothing to do: each process has ended."""

    def _export(self) -> dict[str, float]:
        """The figures of one export."""
        shutil.rmtree(self._bundle, ignore_errors=True)  # from the last repetition: the disk need not hold two
        cached = cached_fraction(self._subject.weights)
        command = [sys.executable, "-m", "ualm.export", str(self._subject.folder), "--output", str(self._bundle)]
        command += [*self._subject.formats.arguments, "--accept-quality", "--json"]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            watcher = Watcher(process.pid, share=_LOOKING)
            try:
                out, errors = process.communicate()
                took = time.perf_counter() - started
            except BaseException:
                process.terminate()  # it cleans up; otherwise it would run on for minutes while we wait
                raise
            finally:
                watcher.stop()
        if process.returncode:
            raise ExportError(f"{self._subject.folder}: the export failed: {self._why(process.returncode, errors)}")
        reported: dict[str, Any] = json.loads(out)
        made = self._subject.made = Bundle(self._bundle, verify="never")
        self._digests.add(made.digest)
        self._missed += [clause for clause in reported["missed"] if clause not in self._missed]
        figures = {"export": took} | {_stage(name): seconds for name, seconds in reported["seconds"].items()}
        figures["rest"] = took - sum(reported["seconds"].values())
        sizes = {f"peak_{kind}": size for kind, size in watcher.peak.items()}
        sizes |= {"bundle": sum(reported["bytes"].values()), "weights": reported["bytes"][WEIGHTS]}
        sizes |= {f"weights.{role}": part.weight_bytes or 0 for role, part in made.manifest.parts.items()}
        figures |= {figure: size / 2**20 for figure, size in sizes.items()}
        figures |= {figure: factor * reported["quality"][part][value] for figure, part, value, factor in _AGREEMENT}
        return figures if cached is None else figures | {"cached": 100 * cached}

    def _why(self, status: int, errors: str) -> str:
        if status < 0:
            killed = ", as if the system had no memory left" if -status == signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-status).name}{killed}"
        lines = errors.strip().splitlines() or [f"its process ended with status {status}"]
        why = lines[-1].removeprefix("ualm: ")
        if self._keep is not None:
            return why.replace(str(self._bundle), str(self._keep))
        hint = "; --keep names another disk, or TMPDIR" if str(self._bundle) in why else ""
        return why + hint


def _stage(name: str) -> str:
    return f"stage.{name.replace(' ', '_')}"


@contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    """A folder to make bundles in; on success, the one that is left there becomes ``keep``."""
    if keep is not None:
        with replacing_folder(keep) as beside:
            yield beside
            for file in (beside / _BUNDLE).iterdir():
                file.rename(beside / file.name)
            (beside / _BUNDLE).rmdir()
        return
    try:
        temporary = tempfile.TemporaryDirectory(prefix="ualm-bench-")
    except OSError as error:
        raise OutputError(
            f"no folder for temporary files ({error.strerror or error}); name one with TMPDIR, or --keep"
        ) from error
    with temporary as name:
        yield Path(name)
