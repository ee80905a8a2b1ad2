"""``ualm doctor``: what this machine has, and whether a bundle computes the right results here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...bundle.bundle import Bundle
from ...bundle.packaged import packaged_bundle
from ...diagnostics.golden import GOLDEN_CONTEXT, Check, check_golden
from ...diagnostics.machine import cuda_build, engines, gpus, machine, native_module, versions
from ...engines.registry import choose
from ...errors import UalmError
from ...process.stopping import raise_interrupt
from ...shown import in_bytes
from ...terminal.live import LiveLine
from ...terminal.report import report
from ...terminal.tables import table
from ..options import EngineOption, JsonOption, QuietOption, tell_packaged


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            envvar="UALM_BUNDLE", help="A bundle to verify and to compute with; by default ualm's own model."
        ),
    ] = None,
    engine: EngineOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show versions, the CPU, and which engines can run here; check a bundle's hashes and golden vector.

    The golden vector is computed by the engine that is named, else by the best that can run. The exit status is 1 if
    anything required fails.
    """
    native = native_module()
    about: dict[str, Any] = {
        "versions": versions(),
        "machine": machine() | {"gpus": gpus()},
        "native_module": {"loads": native is None, "problem": native, "cuda_architectures": cuda_build()},
        "engines": {each.name: {"runs": each.runs, "reasons": list(each.reasons)} for each in engines()},
    }
    problems = [] if native is None else [f"the native module cannot be loaded: {native}"]
    if not any(engine["runs"] for engine in about["engines"].values()):
        problems.append("no engine can run here")
    if bundle is None and (bundle := packaged_bundle()) is not None:
        tell_packaged(quiet=quiet)
    if bundle is not None:
        about["bundle"] = _examine(bundle, engine)
        problems += about["bundle"]["problems"]
    about["ok"] = not problems
    report(as_json, about, _plain(about))
    if problems:
        raise UalmError("; ".join(problems))


def _examine(folder: Path, name: str | None) -> dict[str, Any]:
    """Hashes, then the golden vector; failures are reported, not raised."""
    about: dict[str, Any] = {"folder": str(folder), "hashes": "failed", "engine": None, "checks": [], "problems": []}
    about["passed_over"] = {}
    line = LiveLine()
    try:
        line.show(f"{folder}: checking the hashes")
        opened = Bundle(folder, verify="always")
        about["hashes"] = "verified"
        line.show(f"{folder}: computing the golden vector")
        chosen = choose(name, opened, threads=None, max_context=GOLDEN_CONTEXT)
        engine = chosen.engine
        about["engine"], about["passed_over"] = engine.name, dict(chosen.passed_over)
        try:
            checks = check_golden(opened, engine)
        finally:
            engine.close()
    except (UalmError, ImportError) as error:  # ImportError: no native module
        raise_interrupt(error)
        about["problems"] = [str(error)]
        return about
    finally:
        line.hide()
    about["checks"] = [vars(check) | {"passed": check.passed} for check in checks]
    wrong = [check for check in checks if not check.passed]
    if wrong:
        failures = ", ".join(map(_failure, wrong))
        about["problems"] = [
            f"{folder}: the golden vector fails: {failures}; export the run again, or, if that does not help, report it"
        ]
    return about


def _failure(check: Check) -> str:
    if check.error is None:
        return f"{check.name}: {check.problem}"
    return f"{check.name} is off by {check.error:.1e} (tolerance {check.tolerance:g})"


def _plain(about: dict[str, Any]) -> str:
    machine, native = about["machine"], about["native_module"]
    features, memory = machine["cpu_features"], machine["memory_bytes"]
    hardware = [
        ("cpu", f"{machine['cpu']} ({machine['architecture']})"),
        ("cpu features", features if isinstance(features, str) else " ".join(features) or "none relevant"),
        ("cores", machine["cores"]),
        *(("gpu", gpu) for gpu in machine["gpus"]),
        ("memory", "unknown" if memory is None else in_bytes(memory).strip()),
    ]
    runs = [("native module", "yes" if native["loads"] else f"no: {native['problem']}")]
    runs.append(("cuda kernels", native["cuda_architectures"] or "not in this build (it found no nvcc)"))
    for name, engine in about["engines"].items():
        runs.append((name, "yes" if engine["runs"] else f"no: {'; '.join(engine['reasons'])}"))
    sections = [
        table("versions", list(about["versions"].items())),
        table("machine", hardware),
        table("what can run here", runs),
    ]
    if "bundle" in about:
        bundle = about["bundle"]
        rows: list[tuple[str, ...]] = [("hashes", bundle["hashes"])]
        rows += [] if bundle["engine"] is None else [("engine", bundle["engine"])]
        for check in bundle["checks"]:
            error = "" if check["error"] is None else f"{check['error']:.1e}"
            rows.append(
                (check["name"], "pass" if check["passed"] else "FAIL", error, f"tolerance {check['tolerance']:g}")
            )
        # an engine that cannot run at all has said so above
        others = [each for each in bundle["passed_over"].items() if about["engines"][each[0]]["runs"]]
        sections += [table("passed over for this bundle", others)] if others else []
        sections.append(table(bundle["folder"], rows))
    return "\n\n".join(sections)
