"""The stage ``published``: the published algorithm in torch on this device, with weights made there from the seed."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.engines.arithmetic import Arithmetic, logits_tolerance
from ...runtime.process.stopping import raise_interrupt
from ...runtime.vocabulary import EOS, EOT
from ..meters.traffic import StepBytes, held_against
from ..random_run.shapes import SHAPES
from ..report.schema import BandwidthPair, Measurement, Setting, Subject
from ..report.statistics import summarize
from ..scenarios.common import WARM_UP
from ..scenarios.published import TorchDecode
from .findings import Findings, Skip

if TYPE_CHECKING:
    from ..peers.random_reference import RandomReference
    from .context import Ground

#: Guidance of the published sampling, which doubles the branches.
_GUIDANCE = 3.0
#: Rows of the prompt that is given at once and one by one.
_PROMPT = 24


def measure_published(ground: Ground, found: Findings) -> None:
    """Milliseconds of a frame with rows held, in bfloat16 at the 1.5B shape; in a rehearsal a small one in float32."""
    kind, number = ("tiny", "float32") if ground.dry_run else ("1.5b", "bfloat16")
    made: list[RandomReference] = []
    with found.checking(f"weights of the {kind} shape, made on the device") as details:
        made.append(_make(ground, kind, number))
        details.append(f"{(made[0].body_bytes + made[0].head_bytes) / 1e9:.2f} GB of {number}; {made[0].engine}")
    if not made:
        return
    with found.checking("a prompt at once, and row by row") as details:
        details.append(_same_logits(made[0], number, SHAPES[kind].layers, ground.seed))  # type: ignore[arg-type]
    for context in (64,) if ground.dry_run else (256, 1024):
        with found.checking(f"a frame with {context} rows held") as details:
            details.append(_frames(ground, found, made[0], kind, number, context))


def _make(ground: Ground, kind: str, number: str) -> RandomReference:
    try:
        from ..peers.random_reference import RandomReference, cuda_problem
    except (ImportError, OSError) as error:  # OSError: a shared library of torch cannot be loaded
        raise_interrupt(error)
        why = f"torch cannot be loaded ({error}); for CUDA's libraries see LD_LIBRARY_PATH in docs/gpu.md"
        raise Skip(why) from error
    if ground.torch_device != "cpu" and (problem := cuda_problem()) is not None:
        raise Skip(problem)
    return RandomReference(SHAPES[kind], number, seed=ground.seed, device=ground.torch_device)


def _same_logits(reference: RandomReference, number: Arithmetic, layers: int, seed: int) -> str:
    ids = np.random.default_rng(seed).integers(1, reference.vocabulary.text_size, _PROMPT)
    embeddings = reference.embed(reference.vocabulary.text_rows(ids.tolist()))
    at_once, stepwise = (
        reference.logits_after(embeddings, stepwise=each).float().cpu().numpy() for each in (False, True)
    )
    worst = float(np.abs(at_once - stepwise).max() / np.abs(at_once).max())
    allowed = logits_tolerance(number, number, layers, reference.hidden)
    assert worst <= allowed, f"logits differ by {worst:.1e} of the largest, {allowed:.1e} is what {number} explains"
    return f"logits differ by {worst:.1e} of the largest, at most {allowed:.1e}"


def _frames(ground: Ground, found: Findings, reference: RandomReference, kind: str, number: str, context: int) -> str:
    blocks, count = (2, 3) if ground.dry_run else (5, 60)
    case = TorchDecode(reference, context, "audio", _GUIDANCE, ground.seed)
    beside, times = [ground.meter.read()], list[list[float]]()
    for _ in range(blocks):
        times.append(list(case.block(count)["frame"]))
        beside.append(ground.meter.read())
    summary = summarize([each for block in times for each in block])
    assert 0 < summary.p50 < math.inf, f"{summary.p50:g} ms is no time"
    _check_row(reference, case.row)
    case.close()
    held = context + WARM_UP + (count + 1) / 2
    step = StepBytes(reference.body_bytes, reference.head_bytes, held * reference.row_bytes(2))
    pairs = [
        BandwidthPair(before, after, statistics.median(block))
        for before, after, block in zip(beside[:-1], beside[1:], times, strict=True)
    ]
    traffic = held_against(step, summary.p50, pairs, ground.meter.result)
    subject = Subject(f"published algorithm, {kind} shape, random weights", reference.engine, None, {"all": number})
    settings: dict[str, Setting] = {"context": context, "modality": "audio", "guidance": _GUIDANCE}
    found.measurements.append(Measurement("decode", subject, settings, "frame", "ms", summary, traffic))
    share = f"{100 * traffic.fraction:.0f} % of the bandwidth"
    return f"p50 {summary.p50:.3g} p99 {summary.p99:.3g} ms over {summary.n} frames, {share}"


def _check_row(reference: RandomReference, row: np.ndarray) -> None:
    """The row that was drawn last is one of sound: each stream's id is its pad, one of its codes, or an end."""
    vocabulary = reference.vocabulary
    codes = row - vocabulary.pads
    inside = (codes >= 0) & (codes <= vocabulary.codebook_size)
    inside[0] |= row[0] in (EOS, EOT)
    assert inside.all(), f"it drew {row.tolist()}, which is no row of sound"
