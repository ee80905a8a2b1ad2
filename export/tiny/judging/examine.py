"""The gates of a tiny bundle as one JSON value: the bundle, the settings, and every tally."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....runtime import AudioSampling, Model
from ....runtime.errors import InputError
from ..corpus.domain import FrameIndex
from .gates import ALLOWED_LOSS, WORSE, Examiner, losses, lost_too_much

#: Codes int16 [frames of the domain, 8], in the order of ``domain.FrameIndex``, of a run's codec; the file is beside
#: its weights.
FRAMES = "frames.npy"
#: The same for the codec of the model that comes with ualm.
CODES = Path(__file__).with_name("codes.npz")


def codes_of(run: Path | None) -> np.ndarray:
    """Codes int64 [frames of the domain, 8] of a training run's codec, or of the shipped model's if no run is given."""
    if run is None:
        with np.load(CODES) as stored:
            return stored["codes"].astype(np.int64)
    path = run / FRAMES
    try:
        codes = np.load(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give a folder that `python -m ualm.export.tiny write`, in a checkout, made"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error}); write the run again") from error
    expected = (len(FrameIndex().labels), 8)
    if codes.shape != expected:
        raise InputError(f"{path}: codes of shape {codes.shape}, not {expected}; the run is of another domain")
    return codes.astype(np.int64)


def examine(
    bundle: Path | None,
    codes: np.ndarray,
    *,
    share: float = 1.0,
    seed: int = 0,
    threads: int | None = 1,
    engine: str | None = None,
    progress: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """Give ``bundle`` (None: the one that comes with ualm) ``share`` of the prompts; judge its sounds and texts."""
    if not 0 < share <= 1:
        raise InputError(f"--share {share:g}: give a number above 0, at most 1")
    started = time.perf_counter()
    with Model.open(bundle, threads=threads, engine=engine) as model:
        gates = Examiner(model, codes, seed=seed, share=share).run(progress)
        sampling = AudioSampling()
        return {
            "bundle": model.identity,
            "source": dict(model.bundle.manifest.source),
            "precisions": {role: part.precision for role, part in model.bundle.manifest.parts.items()},
            "seed": seed,
            "share": share,
            "sampling": {"temperature": sampling.temperature, "top_k": sampling.top_k, "guidance": sampling.guidance},
            "worse_sampling": WORSE,
            "seconds": round(time.perf_counter() - started, 1),
            "gates": gates,
        }


def against(result: Mapping[str, Any], wide: Mapping[str, Any]) -> dict[str, Any]:
    """What ``result`` loses against ``wide``, both from :func:`examine`; see ``gates.losses``.

    Raises :class:`InputError` if their settings differ. The caller guarantees that both belong to one run.
    """
    for name in ("seed", "share"):
        if wide[name] != result[name]:
            raise InputError(f"--against: was asked with {name} {wide[name]}, not {result[name]}; both must match")
    lost = losses(wide["gates"], result["gates"])
    return {"bundle": wide["bundle"], "allowed": ALLOWED_LOSS, "lost": lost, "too_much": lost_too_much(lost)}


def read_gates(path: Path) -> dict[str, Any]:
    """Read a file that ``ualm bench gates --output`` wrote; raises :class:`InputError` for any other file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; write it with: ualm bench gates BUNDLE --output {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write it again with ualm bench gates") from error
    known = {"bundle", "seed", "share", "gates"}
    if not isinstance(values, dict) or not known <= set(values):
        raise InputError(f"{path}: not the gates of a bundle; write it with: ualm bench gates BUNDLE --output {path}")
    return values


def table(gates: dict[str, Any]) -> str:
    """The tallies, one line each."""
    lines = []
    for name, gate in gates.items():
        share = "-" if gate["share"] is None else f"{100 * gate['share']:.1f} %"
        mark = {True: "met", False: "MISSED", None: ""}[gate["met"]]
        lines.append(f"{name:<45}{gate['right']:>5} of {gate['total']:<5}{share:>8}  {mark}".rstrip())
    return "\n".join(lines)
