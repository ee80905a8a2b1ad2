"""The targets ``tensorrt-rtx`` and ``tensorrt``: a bundle with compiled parts.

The input may be a training run, which is exported first, or a bundle, whose engines are added or rebuilt: a Jetson has
only the bundle, and neither torch nor the run.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ....runtime.bundle.bundle import MANIFEST, WEIGHTS, Bundle, describe_file
from ....runtime.bundle.compiled import EngineFile
from ....runtime.bundle.manifest import BundleFile, Manifest
from ....runtime.engines.build_commands import FP8_SM, sm_name
from ....runtime.engines.tensorrt.library import Library, local_sm
from ....runtime.errors import EngineError, ExportError, InputError
from ....runtime.files.cache import cache_folder
from ....runtime.files.writing import replacing_file, replacing_folder, resolved
from ....runtime.shown import in_bytes
from ..registry import ExportRequest, ExportResult, Progress, Target, refuse_built, refuse_others
from .build import BuildReport, build, find_library, known_sms
from .parts import PartPlan, plan_parts


def tensorrt_rtx(request: ExportRequest, progress: Progress) -> ExportResult:
    """Engines for the GPUs of ``--target``; this machine needs none."""
    refuse_others(request, "tensorrt-rtx")
    library = find_library("tensorrt-rtx")
    return _make(request, progress, library, _target_sms(request.target, library))


def tensorrt(request: ExportRequest, progress: Progress) -> ExportResult:
    """Engines for the GPU of this machine."""
    refuse_others(request, "tensorrt")
    try:
        sm = local_sm()
    except EngineError as error:
        raise ExportError(
            f"--engine tensorrt builds on the machine where the engine is to run, and here {error}"
        ) from (error)
    return _make(request, progress, find_library("tensorrt"), (sm,))


TARGETS: dict[str, Target] = {"tensorrt-rtx": tensorrt_rtx, "tensorrt": tensorrt}


def _target_sms(target: str | None, library: Library) -> tuple[int, ...]:
    """Compute capabilities of ``sm89,sm120``, ascending."""
    known = known_sms(library)
    able = ", ".join(map(sm_name, known))
    if not target:
        raise InputError(f"--target: name the GPUs, for example sm89,sm120; {library.title} builds for {able}")
    sms = set()
    for name in target.split(","):
        number = name.strip().lower().removeprefix("sm")
        if not number.isdecimal() or int(number) not in known:
            raise InputError(
                f"--target {name.strip()}: {library.title} builds for {able}; for others, use --engine tensorrt on the "
                "machine itself"
            )
        sms.add(int(number))
    return tuple(sorted(sms))


def _make(request: ExportRequest, progress: Progress, library: Library, sms: tuple[int, ...]) -> ExportResult:
    _refuse_fp8(request, sms)
    lines: list[str] = []
    with _bundle(request, progress, lines) as bundle:
        reports = add_engines(bundle, library, sms, max_context=request.max_context, progress=progress)
    size = sum(report.size_bytes for report in reports.values())
    seconds = sum(report.seconds for report in reports.values())
    following = f"ualm doctor {shlex.quote(str(request.output))} --engine {library.name}"
    result = {
        "bundle": str(request.output),
        "engine": library.name,
        "library": library.title,
        "sms": list(sms),
        "built_not_run": True,
        "cache": library.cache,
        "parts": {
            role: {"bytes": report.size_bytes, "seconds": round(report.seconds, 3)} for role, report in reports.items()
        },
        "total_bytes": size,
        "total_seconds": round(seconds, 3),
        "next": following,
    }
    lines += [f"{role:<26}{in_bytes(r.size_bytes):>16}{r.seconds:>12.1f} s" for role, r in reports.items()]
    if library.cache == "appended":
        lines.append(
            f"{library.title} cannot write a cache in place: a kernel of ualm's appends to it, and attention and int8 "
            "weights are written in primitives (docs/tensorrt.md)"
        )
    built = (
        f"{request.output}: engines of {library.title} for {', '.join(map(sm_name, sms))}; built, not run; "
        f"{in_bytes(size).strip()} in {seconds:.1f} s; next, where they are to run: {following}"
    )
    return ExportResult(result, (*lines, built))


def _refuse_fp8(request: ExportRequest, sms: tuple[int, ...]) -> None:
    """Raise :class:`InputError` for an fp8 body on GPUs that cannot multiply fp8, before anything is written."""
    older = ", ".join(sm_name(sm) for sm in sms if sm < FP8_SM)
    if not older:
        return
    what, fix = "--precision fp8", "choose"
    if request.run is not None and (request.run / MANIFEST).is_file():
        if Bundle(request.run, verify="never").manifest.precision["backbone"] != "fp8":
            return
        what, fix = f"{request.run} has an fp8 body", "give a bundle exported with --precision"
    elif request.precision != "fp8":
        return
    others = "" if request.target is None else "leave such out of --target, or "
    raise InputError(
        f"{what}: {older} cannot multiply fp8, which takes {sm_name(FP8_SM)} or newer; {others}{fix} int8, int4 or fp16"
    )


@contextmanager
def _bundle(request: ExportRequest, progress: Progress, lines: list[str]) -> Iterator[Bundle]:
    """The bundle to add engines to: the given one, a copy of it, or one that is exported now."""
    if request.run is None or not (request.run / MANIFEST).is_file():
        with replacing_folder(request.output) as folder:
            made = importlib.import_module("..bundle", __package__).export_bundle(
                dataclasses.replace(request, output=folder), progress
            )
            lines += made.lines[:-1]
            yield Bundle(folder, verify="never")
        return
    refuse_built(request)
    given = Bundle(request.run)
    if request.output.exists() and resolved(request.output) == resolved(request.run):
        yield given
        return
    with replacing_folder(request.output) as folder:
        for name in (*given.manifest.files, MANIFEST):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(request.run / name, folder / name)
        yield Bundle(folder, verify="never")


def add_engines(
    bundle: Bundle,
    library: Library,
    sms: tuple[int, ...],
    *,
    max_context: int | None = None,
    progress: Progress = lambda stage, done, total: None,
    builder: Callable[..., BuildReport] = build,
) -> dict[str, BuildReport]:
    """Compile the parts of ``bundle`` into its folder; engines of the same library that it had are replaced.

    The manifest is written last: a failure before that leaves the bundle unchanged. Returns reports by role.
    """
    plans = plan_parts(bundle, max_context, cache=library.cache)
    made: dict[str, BuildReport] = {}
    written: list[Path] = []
    entries: dict[str, BundleFile] = {}
    engines: list[EngineFile] = []
    before = [engine for engine in bundle.manifest.engines if engine.engine == library.name]
    cache = None if library.compiles_for_others else timing_cache(library, sms[0])
    try:
        for plan in plans:
            progress(f"engine {plan.role}", 0, 0)
            report = builder(library, plan.path, plan.model, plan.profiles, sms=sms, timing_cache=cache)
            name = _free_name(bundle, plan.role, library, sms)
            path = bundle.folder / name
            with replacing_file(path) as temporary:
                temporary.write_bytes(report.engine)
            written.append(path)
            entries[name] = describe_file(path)
            engines.append(_entry(bundle.manifest, plan, name, library, sms))
            made[plan.role] = dataclasses.replace(report, engine=b"")
        gone = {engine.file for engine in before}
        kept = tuple(engine for engine in bundle.manifest.engines if engine not in before)
        files = {name: file for name, file in bundle.manifest.files.items() if name not in gone} | entries
        manifest = dataclasses.replace(bundle.manifest, files=files, engines=(*kept, *engines))
        with replacing_file(bundle.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
        written.clear()
        for name in gone:
            (bundle.folder / name).unlink(missing_ok=True)
    finally:
        for path in written:
            path.unlink(missing_ok=True)
    return made


def _entry(manifest: Manifest, plan: PartPlan, name: str, library: Library, sms: tuple[int, ...]) -> EngineFile:
    return EngineFile(
        role=plan.role,
        engine=library.name,
        file=name,
        library_version=library.version,
        sms=sms,
        onnx_sha256=manifest.files[manifest.parts[plan.role].file].sha256,
        weights_sha256=manifest.files[WEIGHTS].sha256,
        capacity=plan.capacity,
        profiles=plan.profiles,
        cache=plan.cache,
    )


def _free_name(bundle: Bundle, role: str, library: Library, sms: tuple[int, ...]) -> str:
    """A file name that the bundle does not use yet: a file to be replaced stays until the manifest is rewritten."""
    stem = f"{role}.{library.name}.{'-'.join(map(sm_name, sms))}"
    names = (f"{stem}{'' if count == 1 else f'.{count}'}.engine" for count in range(1, 1000))
    return next(name for name in names if not (bundle.folder / name).exists())


def timing_cache(library: Library, sm: int) -> Path | None:
    """Where TensorRT keeps its measurements on a GPU for the next build; None without a home directory."""
    cache = cache_folder()
    return None if cache is None else cache / "tensorrt" / f"{library.version}.{sm_name(sm)}.timing"
