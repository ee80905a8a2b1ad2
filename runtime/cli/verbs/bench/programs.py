"""Verbs of ``ualm bench`` that are programs with options of their own."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from ....process.extras import Extra
from .measuring import bench_module
from .verbs import app


class _Program(TyperCommand):
    """A verb whose program, loaded when the verb runs, parses the arguments itself, including ``--help``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []


#: Verb -> its program in the bench, what it does, and the extras that it needs. Each also runs without the command:
#: ``python -m ualm.bench.MODULE``.
PROGRAMS: dict[str, tuple[str, str, tuple[Extra, ...]]] = {
    "random-run": ("random_run.run", "Write a training run with random weights, to try an export with.", ("export",)),
    "damage": (
        "evidence.damage",
        "How far sound and damaged exports agree with the weights of a trained model.",
        ("export",),
    ),
    "arithmetic": ("evidence.arithmetic", "How far the arithmetic of engines moves the golden logits.", ("export",)),
    "tensorrt-build": (
        "scenarios.tensorrt_build",
        "Time, memory and size of parts that TensorRT-RTX compiles.",
        ("export", "tensorrt-rtx"),
    ),
    "acceptance": ("acceptance.__main__", "Answer in one run what only a GPU can.", ("export",)),
}


def _add_program(verb: str) -> None:
    module, does, extras = PROGRAMS[verb]

    @app.command(verb, cls=_Program, help=does)
    def run(context: typer.Context) -> None:
        bench_module(module, *extras).main(context.args, f"ualm bench {verb}")


for _verb in PROGRAMS:
    _add_program(_verb)
