"""What can be measured: a bundle in an engine, or the published algorithm in torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.conversation.resources import DEFAULT_CONTEXT
from ...runtime.engines.protocol import Engine
from ...runtime.engines.registry import choose
from ...runtime.errors import InputError, UalmError
from ...runtime.files.safetensors_reader import widen
from ...runtime.files.writing import resolved
from ...runtime.process.cores import BY_OPTION, check_threads
from ...runtime.process.extras import install_hint
from ...runtime.process.stopping import raise_interrupt
from ...runtime.terminal.report import tell_engine
from ..report.schema import Subject

if TYPE_CHECKING:
    from ..peers.torch_reference import TorchReference

#: Baselines that ``--versus`` accepts besides bundles, with the torch type of each.
PEERS = {"reference-fp32": "float32", "reference-bf16": "bfloat16"}


@dataclass(frozen=True)
class Request:
    """What to measure. ``threads`` None: all cores. ``versus``: a bundle or one of :data:`PEERS`; ``run``: the training
    run whose weights such a baseline takes. ``quiet``: print nothing about engines on standard error."""

    bundle: Path
    engine: str | None = None
    threads: int | None = None
    repeat: int | None = None
    seed: int = 0
    versus: str | None = None
    run: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        check_threads(self.threads, *BY_OPTION)
        check_count("--repeat", self.repeat)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: give a whole number from 0 to {2**32 - 1}")
        if self.versus in PEERS and self.run is None:
            raise InputError(
                f"--versus {self.versus}: takes its weights from a training run; name the one that the bundle was "
                "exported from with --run"
            )
        if self.run is not None and self.versus not in PEERS:
            raise InputError(f"--run {self.run}: only --versus {' or '.join(PEERS)} reads a training run")


def check_count(option: str, value: int | None) -> None:
    """Raise :class:`InputError` for a count below 1; None stands for a default."""
    if value is not None and value < 1:
        raise InputError(f"{option} {value}: give a whole number of at least 1")


def precisions_of(bundle: Bundle) -> dict[str, str]:
    """Precision of each part of a bundle, by its role."""
    return {role: part.precision for role, part in bundle.manifest.parts.items()}


class BundleSubject:
    """A bundle, and the engine that it is loaded into on first use."""

    #: Least number of rows that an engine holds: what a model reserves by default.
    least_context = DEFAULT_CONTEXT

    def __init__(self, folder: Path, request: Request, name: str) -> None:
        self.bundle = Bundle(folder)
        self._request, self._name = request, name
        self._engine: tuple[Engine, int] | None = None
        #: Which engine runs and why no faster one does, if there is a GPU and an engine was opened.
        self.notice: str | None = None

    def engine(self, rows: int = 0) -> Engine:
        """An engine whose sequences hold at least ``rows`` rows, and at least :attr:`least_context`."""
        limit = self.bundle.manifest.model.max_positions
        if rows > limit:
            raise InputError(
                f"{self.bundle.folder}: the measurement needs {rows} rows of context, but this model holds {limit}; "
                "give a smaller --context"
            )
        wanted = max(rows, min(self.least_context, limit))
        if self._engine is None or self._engine[1] < wanted:
            self.close()
            self._engine = self.open(wanted), wanted
        return self._engine[0]

    def open(self, max_context: int) -> Engine:
        """The engine that the request names, loaded; the first time, prints which one runs and why."""
        choice = choose(self._request.engine, self.bundle, threads=self._request.threads, max_context=max_context)
        if choice.notice() != self.notice and not self._request.quiet:
            tell_engine(choice)
        self.notice = choice.notice()
        return choice.engine

    @property
    def command_options(self) -> tuple[str, str]:
        """Engine and threads as arguments of a child process, "-" for the default."""
        return self._request.engine or "-", str(self._request.threads or "-")

    @cached_property
    def about(self) -> Subject:
        engine = self._engine[0].name if self._engine else self._request.engine or "onnxruntime"
        return Subject(self._name, engine, self.bundle.digest, precisions_of(self.bundle))

    def close(self) -> None:
        if self._engine is not None:
            self._engine[0].close()
            self._engine = None


class PeerSubject:
    """The published algorithm in torch, with the weights of a training run."""

    def __init__(self, name: str, run: Path, threads: int, device: str = "cpu") -> None:
        """``device``: torch's name of the device that computes."""
        try:
            from ..peers.torch_reference import TorchReference
        except ImportError as error:
            raise_interrupt(error)
            raise UalmError(
                f"--versus {name} cannot be loaded ({error}); install it with: {install_hint('export')}"
            ) from error
        self.reference: TorchReference = TorchReference(run, PEERS[name], threads=threads, device=device)
        self.about = Subject(name, self.reference.engine, None, {"all": name.removeprefix("reference-")})

    def close(self) -> None:
        """Nothing to do: it holds only memory."""


AnySubject = BundleSubject | PeerSubject


def _check_same_weights(bundle: Bundle, reference: TorchReference, run: Path) -> None:
    """Raise :class:`InputError` if a bundle was not made from its baseline's run, judged by their embedding tables."""
    ours = bundle.table("embedding")
    rows = np.linspace(0, len(ours) - 1, 256).astype(np.int64)
    theirs = reference.embedding_rows(rows) if len(ours) == reference.vocabulary.size else np.zeros((0, 0))
    # the baseline may hold them in bfloat16, which has 8 significant bits
    if theirs.shape != (len(rows), ours.shape[1]) or not np.allclose(widen(ours[rows]), theirs, rtol=2**-7, atol=1e-6):
        raise InputError(f"--run {run}: {bundle.folder} was not made from it; name the run that it was made from")


def open_subjects(request: Request, threads: int) -> tuple[BundleSubject, AnySubject | None]:
    """The bundle, and its baseline, if any."""
    mine = request.bundle
    name = resolved(mine).name
    if request.versus is None:
        return BundleSubject(mine, request, name), None
    if request.versus in PEERS:
        assert request.run is not None  # checked by Request
        subject, peer = BundleSubject(mine, request, name), PeerSubject(request.versus, request.run, threads)
        _check_same_weights(subject.bundle, peer.reference, request.run)
        return subject, peer
    other = Path(request.versus)
    names = (name, resolved(other).name)
    if names[0] == names[1]:
        names = (str(mine), str(other)) if str(mine) != str(other) else (name, f"{name} (again)")
    return BundleSubject(mine, request, names[0]), BundleSubject(other, request, names[1])
