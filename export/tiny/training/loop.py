"""The training loop: seeded by step, resumable at any checkpoint, safe to interrupt."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from ....runtime.errors import InputError
from ....runtime.files.writing import replacing_file
from ..corpus.attempts import REFLECTION_HELD_OUT_PERCENT
from ..corpus.conversations import CHANGES_HELD_OUT_PERCENT, TASKS, make_example
from ..corpus.domain import HELD_OUT_PERCENT as SEQUENCES_HELD_OUT_PERCENT
from ..corpus.language import WORDS_HELD_OUT_PERCENT
from ..corpus.writer import Example, Studio
from .losses import LossFunction, mel_filters
from .network import TinyUalm

#: What training never draws, in percent of each kind of item.
HELD_OUT_PERCENT: Mapping[str, int] = {
    "sequences": SEQUENCES_HELD_OUT_PERCENT,
    "words": WORDS_HELD_OUT_PERCENT,
    "changes": CHANGES_HELD_OUT_PERCENT,
    "reflection": REFLECTION_HELD_OUT_PERCENT,
}
STATE = "training.pt"
CURVES = "curves.jsonl"


@dataclass(frozen=True)
class Recipe:
    """``steps`` in total, about ``rows`` rows each; a share ``tuning`` at the end has its own mix and learning rate.

    Of the others, the first ``plain`` train without guidance, with the null branch on the share ``null`` of the sounds;
    after that the share ``guided`` of the sounds is trained with both branches. The learning rate warms up, stays
    constant, and falls from ``flat`` on; for the tuning it starts again at ``tuning_rate`` and falls.
    """

    steps: int = 5000
    tuning: float = 0.4404
    tuning_rate: float = 8e-4
    rows: int = 2200
    learning_rate: float = 2e-3
    warmup: int = 100
    flat: float = 0.45
    floor: float = 0.02
    plain: float = 0.36
    null: float = 0.08
    guided: float = 0.5
    weight_decay: float = 0.05
    seed: int = 0

    @property
    def main(self) -> int:
        """Steps before the tuning."""
        return self.steps - round(self.steps * self.tuning)

    def rate(self, step: int) -> float:
        if step >= self.main:
            done = step - self.main
            return self.tuning_rate * min(1.0, (done + 1) / 20) * max(self.floor, 1 - done / (self.steps - self.main))
        part = step / self.main
        falling = 1.0 if part < self.flat else max(self.floor, (1 - part) / (1 - self.flat))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * falling


#: Shares of the rows of a step.
MIX: Mapping[str, float] = {
    "direct": 0.19,
    "enriched": 0.08,
    "hearing": 0.42,
    "text": 0.02,
    "dialogue": 0.14,
    "reflection": 0.15,
}


#: The same for the tuning: judging what was heard is learnt last, and is hardest.
TUNING_MIX: Mapping[str, float] = {
    "direct": 0.06,
    "enriched": 0.05,
    "hearing": 0.34,
    "text": 0.03,
    "dialogue": 0.22,
    "reflection": 0.30,
}


def step_examples(studio: Studio, recipe: Recipe, step: int) -> list[Example]:
    """The examples of one step: the same for the same seed and step."""
    mix = MIX if step < recipe.main else TUNING_MIX
    rng = random.Random(f"{recipe.seed}:{step}")
    examples: list[Example] = []
    for task in TASKS:
        # the excess is turned into a probability, so that the shares hold on average
        budget = mix[task] * recipe.rows
        while budget > 0:
            example = make_example(studio, task, rng)
            if rng.random() < budget / len(example.rows):
                examples.append(example)
            budget -= len(example.rows)
    return examples


class _Stop:
    """Set by SIGTERM or SIGINT: the current step is finished, and saved."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Stop:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _optimizer(network: TinyUalm, recipe: Recipe) -> torch.optim.AdamW:
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        matrix = parameter.ndim >= 2 and not any(word in name for word in ("embed", "stream", "lm_head"))
        (decayed if matrix else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def train(
    network: TinyUalm,
    studio: Studio,
    recipe: Recipe,
    folder: Path,
    *,
    save_seconds: float = 180.0,
    log_every: int = 25,
    until: int | None = None,
) -> bool:
    """Train in ``folder``, from the state found there; returns True when all steps are done, False if interrupted.

    ``until``: stop after that step, for a trial. Writes ``training.pt`` and appends to ``curves.jsonl``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(network, recipe)
    step, active, rows_done = _resume(network, optimizer, folder)
    loss_of = LossFunction(network, mel_filters())
    network.train()
    sums: dict[str, list[float]] = {}
    rows_logged, logged, saved = 0, time.thread_time(), time.monotonic()
    last = recipe.steps if until is None else min(until, recipe.steps)
    with _Stop() as stop, open(folder / CURVES, "a", encoding="utf-8") as curves:
        while step < last and not stop.asked:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            examples = step_examples(studio, recipe, step)
            plain = step < recipe.plain * recipe.main
            losses = loss_of(
                examples,
                random.Random(f"loss:{recipe.seed}:{step}"),
                guided=0.0 if plain else recipe.guided,
                null=recipe.null if plain else 0.0,
            )
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                if network.stream_emb.weight.grad is not None:
                    network.stream_emb.weight.grad[0] = 0
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
            count = sum(len(e.rows) for e in examples)
            rows_done, rows_logged = rows_done + count, rows_logged + count
            for name, (value, weight) in losses.curves.items():
                held = sums.setdefault(name, [0.0, 0.0])
                held[0], held[1] = held[0] + value, held[1] + weight
            total = sums.setdefault("total", [0.0, 0.0])
            total[0], total[1] = total[0] + float(losses.total.detach()), total[1] + 1
            if step % log_every == 0 or step == last:
                spent = time.thread_time() - logged
                active, logged = active + spent, time.thread_time()
                entry: dict[str, Any] = {"step": step, "cpu_seconds": round(active, 1), "rows": rows_done}
                entry |= {"rows_a_second": round(rows_logged / max(spent, 1e-9)), "rate": recipe.rate(step - 1)}
                entry |= {"norm": round(float(norm), 3)}
                entry |= {name: round(value / weight, 4) for name, (value, weight) in sorted(sums.items())}
                curves.write(json.dumps(entry) + "\n")
                curves.flush()
                sums, rows_logged = {}, 0
            if time.monotonic() - saved > save_seconds:
                _save(network, optimizer, folder, step, active, rows_done, recipe)
                saved = time.monotonic()
        _save(network, optimizer, folder, step, active, rows_done, recipe)
    return step >= recipe.steps


def _save(
    network: TinyUalm,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    step: int,
    active: float,
    rows: int,
    recipe: Recipe,
) -> None:
    state: dict[str, Any] = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"step": step, "cpu_seconds": active, "rows": rows, "recipe": asdict(recipe)}
    with replacing_file(folder / STATE) as temporary:
        torch.save(state, temporary)


def _resume(network: TinyUalm, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[int, float, int]:
    path = folder / STATE
    if not path.is_file():
        return 0, 0.0, 0
    state = load_state(path)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["cpu_seconds"]), int(state["rows"])


def load_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the train stage first") from None
    return state


def curves(path: Path) -> Sequence[Mapping[str, Any]]:
    """The logged curves, one entry per step; the last one for a step that was repeated after an interruption."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    by_step = {entry["step"]: entry for entry in lines}
    return [by_step[step] for step in sorted(by_step)]


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
