"""From a scenario and its subjects to a report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from ...runtime.bundle.bundle import Bundle
from ...runtime.process.cores import cores
from ..meters.bandwidth import BandwidthMeter, Meter
from ..meters.core_distance import DistanceMeter
from ..meters.environment import OtherProcesses, current_load, describe_run
from ..meters.gpu import CopyMeter, describe_gpu, gpu_of
from ..meters.traffic import held_against
from ..report.schema import Bandwidth, BandwidthPair, Comparison, Gpu, Measurement, Report, Setting, Subject
from ..report.statistics import TEST, compare, summarize
from .blocks import Block, Measured, Progress, Samples, block_sizes, measure, most_in_a_block, paced_sizes
from .protocol import Case, CountedCase, Measurable, Scenario
from .subjects import AnySubject, BundleSubject, PeerSubject, Request, open_subjects

#: A machine is quiet if other processes take no more than this percentage of its processors' time.
_QUIET = 3.0
#: The spread of bandwidth readings is reported if the best is this many times the worst.
_STEADY = 1.25
#: The spread of round trips between cores is reported if the worst is this many times the best.
_APART = 2.5
_CACHED = "a step that reads faster than memory reads from the processor's caches: its model is too small to judge by"


_Measurable = TypeVar("_Measurable", bound=Measurable)


class BundleScenario(Scenario[AnySubject], Protocol):
    """What to measure of a bundle and of its baseline, and with which settings."""

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        """The settings to measure, one by one; defaults come from the bundle. Refuses what cannot be measured."""
        ...


def run_scenario(scenario: BundleScenario, request: Request, progress: Progress = lambda text: None) -> Report:
    """Measure every setting of ``scenario`` for the request's bundle, interleaved with the baseline."""
    load_average = current_load()
    threads = request.threads or cores()
    mine, other = open_subjects(request, threads)
    device = gpu_of(request.engine, mine.bundle, 1)
    report = measure_subjects(
        scenario,
        [mine] if other is None else [mine, other],
        scenario.settings(mine.bundle),
        threads=threads,
        repeat=request.repeat,
        seed=request.seed,
        load_average=load_average,
        libraries=("torch", "transformers") if isinstance(other, PeerSubject) else (),
        progress=progress,
        meter=None if device is None else CopyMeter(device),
        gpu=None if device is None else describe_gpu(device),
    )
    notice = [
        f"{each.about.name}: {each.notice}" for each in (mine, other) if isinstance(each, BundleSubject) and each.notice
    ]
    return replace(report, notes=(*report.notes, *notice))


def measure_subjects(
    scenario: Scenario[_Measurable],
    subjects: Sequence[_Measurable],
    settings: Sequence[Mapping[str, Setting]],
    *,
    threads: int,
    repeat: int | None,
    seed: int,
    load_average: float | None,
    libraries: tuple[str, ...],
    progress: Progress,
    meter: Meter | None = None,
    gpu: Gpu | None = None,
    dry_run: bool = False,
) -> Report:
    """Measure every setting for one subject, or for two in turn, and close them.

    ``load_average``: the machine's load before anything was opened. ``libraries``: distributions besides the runtime's
    own whose versions are recorded. ``meter``: None for that of the host's memory; it takes readings beside each block
    of a :class:`CountedCase`, otherwise before and after everything. ``gpu``, ``dry_run``: see ``schema``.
    """
    others = OtherProcesses()
    meter = BandwidthMeter(threads) if meter is None else meter
    distance = DistanceMeter(threads)
    done: list[tuple[list[Case], list[Measured]]] = []
    try:
        progress("bandwidth")
        meter.measure()
        distance.measure()
        for setting in settings:
            text = f"{scenario.name}: {', '.join(f'{name} {value}' for name, value in setting.items())}"
            progress(text)
            most = most_in_a_block(repeat)
            cases = [scenario.open(subject, setting, block=most, seed=seed) for subject in subjects]
            blocks = [_then(case.block, distance.measure) for case in cases]
            paces = [case.pace for case in cases if isinstance(case, CountedCase)]
            if paces:
                sizes = paced_sizes(repeat, scenario.default_repeat, max(paces))
                done.append((cases, measure(blocks, sizes, text, progress, meter.read)))
                meter.release()
            else:
                sizes = block_sizes(repeat or scenario.default_repeat)
                done.append((cases, measure(blocks, sizes, text, progress)))
            for case in cases:
                case.close()
        progress("bandwidth")
        meter.measure()
    finally:
        for subject in subjects:
            subject.close()
    taken_by_others = others.percent
    about = [subject.about for subject in subjects]
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    notes: dict[str, None] = {}
    for setting, (cases, taken) in zip(settings, done, strict=True):
        for named, case, measured in zip(about, cases, taken, strict=True):
            for made, note in _measurements(scenario, setting, named, case, measured, meter.result):
                measurements.append(made)
                notes |= {} if note is None else {note: None}
        if len(about) == 2:
            comparisons += _comparisons(scenario, setting, about, taken)
    if taken_by_others is not None and taken_by_others > _QUIET:
        text = f"other processes took {taken_by_others:.0f} % of the processors' time meanwhile: these figures are not"
        notes[f"{text} those of a quiet machine"] = None
    bandwidth = meter.result
    if bandwidth.worst is not None and bandwidth.best > _STEADY * bandwidth.worst:
        rates = f"{bandwidth.worst:.3g} to {bandwidth.best:.3g} GB/s"
        shares = "; a share is of what was read beside its block" if any(each.traffic for each in measurements) else ""
        notes[f"memory was read at {rates} during the run: times are of a memory that changes{shares}"] = None
    apart = distance.result
    if apart is not None and apart.worst > _APART * apart.best:
        times = f"{apart.best:.0f} to {apart.worst:.0f} ns"
        notes[f"a line went between two cores and back in {times}: figures of several threads are of both"] = None
    run = describe_run(
        seed=seed,
        threads=threads,
        bandwidth=bandwidth,
        load_average=load_average,
        others_percent=taken_by_others,
        peers=libraries,
        gpu=gpu,
        dry_run=dry_run,
        core_round_trip=apart,
    )
    return Report(run, tuple(measurements), tuple(comparisons), tuple(notes))


def _then(block: Block, after: Callable[[], None]) -> Block:
    """The block, followed by an action that is not timed."""

    def both(count: int) -> Samples:
        samples = block(count)
        after()
        return samples

    return both


def _measurements(
    scenario: Scenario[_Measurable],
    setting: Mapping[str, Setting],
    subject: Subject,
    case: Case,
    measured: Measured,
    bandwidth: Bandwidth,
) -> Iterator[tuple[Measurement, str | None]]:
    """Each figure, and its notes for the reader."""
    for figure in measured.blocks:
        samples = measured.samples(figure)
        if not samples:  # gaps of sounds that arrived in one piece
            continue
        summary = summarize(samples)
        derived, traffic = case.derive(figure, summary), None
        if isinstance(case, CountedCase) and figure == case.counted:
            traffic = held_against(case.step_bytes(), summary.p50, _pairs(measured, figure), bandwidth)
        measurement = Measurement(
            scenario=scenario.name,
            subject=subject,
            settings=setting,
            figure=figure,
            unit=scenario.units[figure],
            summary=summary,
            traffic=traffic,
            real_time_factor=derived.real_time_factor,
            outside_percent=derived.outside_percent,
        )
        yield measurement, _CACHED if traffic is not None and traffic.fraction > 1 else derived.note


def _pairs(measured: Measured, figure: str) -> list[BandwidthPair]:
    """Each block of a figure and the readings beside it."""
    blocks = zip(measured.readings_around, measured.blocks[figure], strict=True)
    return [BandwidthPair(before, after, statistics.median(values)) for (before, after), values in blocks]


def _comparisons(
    scenario: Scenario[_Measurable], setting: Mapping[str, Setting], about: Sequence[Subject], taken: Sequence[Measured]
) -> list[Comparison]:
    made = []
    for figure in scenario.compared:
        if not all(figure in each.blocks for each in taken):
            continue
        found = compare(taken[0].blocks[figure], taken[1].blocks[figure])
        made.append(
            Comparison(
                scenario=scenario.name,
                subject=about[0],
                other=about[1],
                settings=setting,
                figure=figure,
                pairs=len(found.ratios),
                speedup=found.speedup,
                low=found.low,
                high=found.high,
                p=found.p,
                test=TEST,
                verdict=found.verdict,
                ratios=found.ratios,
            )
        )
    return made
