"""Make the tiny UALM: ``python -m ualm.export.tiny all WORK -o RUN``.

Stages: ``data`` renders sounds and builds the codec and the tokenizer; ``train`` trains, resuming where it stopped;
``write`` writes the training run; ``all`` runs all three. ``ualm export RUN -o BUNDLE`` makes the bundle, and
``ualm bench gates BUNDLE --run RUN -o gates.json`` judges its gates. ``knows BUNDLE`` records in an existing bundle
what the recipe says that the model knows.
"""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.export.tiny.__main__")

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import torch

from ...runtime.errors import UalmError
from ...runtime.process.cores import check_threads, cores
from ..knows import write_knows
from .corpus.soundfont import SOUNDFONT
from .training.loop import Recipe
from .training.run_folder import knowledge
from .training.stages import Workshop


def main() -> None:
    parser = argparse.ArgumentParser(prog="ualm.export.tiny", description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("data", "train", "write", "all", "knows"))
    parser.add_argument("work", type=Path, help="folder for renders, codec and training state; for knows: the bundle")
    parser.add_argument("-o", "--output", type=Path, help="folder of the training run to write")
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT)
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: where to train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--rows", type=int, default=Recipe.rows, help="approximate rows per step")
    parser.add_argument("--until", type=int, help="stop after this step, for a trial")
    parser.add_argument("--save-seconds", type=float, default=180.0, help="seconds between two saved states")
    arguments = parser.parse_args()
    if arguments.stage in ("write", "all") and arguments.output is None:
        parser.error("--output: name the folder of the training run to write")
    try:
        if arguments.stage == "knows":
            changed = write_knows(arguments.work, knowledge())
            print(f"{arguments.work}: {'written' if changed else 'unchanged'}")
            return
        check_threads(arguments.threads, "--threads", "leave it out")
        torch.set_num_threads(arguments.threads)
        _run(arguments)
    except UalmError as error:
        sys.exit(f"tiny: {error}")


def _run(arguments: argparse.Namespace) -> None:
    shop = Workshop(arguments.work, arguments.seed)
    if arguments.stage in ("data", "all"):
        shop.data(arguments.soundfont)
        print(f"{arguments.work}: sounds, codec and tokenizer are ready")
    if arguments.stage in ("train", "all"):
        pid = arguments.work / "train.pid"
        pid.write_text(f"{os.getpid()}\n")
        recipe = dataclasses.replace(Recipe(), seed=arguments.seed, steps=arguments.steps, rows=arguments.rows)
        try:
            done = shop.train(recipe, arguments.until, arguments.save_seconds, arguments.device)
        finally:
            pid.unlink(missing_ok=True)
        print(f"{arguments.work}: {'trained' if done else 'stopped; run again to go on'}", flush=True)
        if not done and arguments.stage == "all":
            sys.exit(1)
    if arguments.stage in ("write", "all"):
        step = shop.write(arguments.output)
        print(f"{arguments.output}: training run of step {step}")
