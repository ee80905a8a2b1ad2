"""Judge the gates of a tiny bundle: ``python -m ualm.export.tiny.examine RUN BUNDLE -o gates.json``.

RUN is the training run that the bundle was made from: the codes of the sounds to be heard lie there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from ...runtime import AudioSampling, Model
from ...runtime.errors import InputError, UalmError
from ...runtime.files import replacing_file
from .card import model_card
from .gates import WORSE, Examiner
from .run_folder import FRAMES


def main() -> None:
    parser = argparse.ArgumentParser(prog="ualm.export.tiny.examine", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the training run")
    parser.add_argument("bundle", type=Path, help="folder of its bundle")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--card", type=Path, help="write the model card, with these gates")
    parser.add_argument("--note", default="Trained in one go.", help="what the card says about this very run")
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        _examine(arguments)
    except UalmError as error:
        sys.exit(f"examine: {error}")


def _examine(arguments: argparse.Namespace) -> None:
    frames = arguments.run / FRAMES
    if not frames.is_file():
        raise InputError(f"{frames}: no such file; give the folder that the write stage made")
    if not 0 < arguments.share <= 1:
        raise InputError(f"--share {arguments.share:g}: give a number above 0, at most 1")
    started = time.perf_counter()
    with Model.open(arguments.bundle, threads=arguments.threads) as model:
        examiner = Examiner(model, np.load(frames).astype(np.int64), seed=arguments.seed, share=arguments.share)
        gates = examiner.run(lambda name: print(f"{time.perf_counter() - started:6.1f} s  {name}", file=sys.stderr))
        sampling = AudioSampling()
        result = {
            "bundle": model.identity,
            "source": dict(model.bundle.manifest.source),
            "precisions": {role: part["precision"] for role, part in model.bundle.manifest.parts.items()},
            "seed": arguments.seed,
            "share": arguments.share,
            "sampling": {"temperature": sampling.temperature, "top_k": sampling.top_k, "guidance": sampling.guidance},
            "worse_sampling": WORSE,
            "seconds": round(time.perf_counter() - started, 1),
            "gates": gates,
        }
    with replacing_file(arguments.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.card is not None:
        training = json.loads((arguments.run / "training.json").read_text(encoding="utf-8"))
        precision = result["precisions"].get("backbone", "")
        with replacing_file(arguments.card) as temporary:
            temporary.write_text(model_card(training, [(precision, result)], arguments.note), encoding="utf-8")
    for name, gate in gates.items():
        share = "-" if gate["share"] is None else f"{100 * gate['share']:.1f} %"
        mark = {True: "met", False: "MISSED", None: ""}[gate["met"]]
        print(f"{name:<45}{gate['right']:>5} of {gate['total']:<5}{share:>8}  {mark}")


if __name__ == "__main__":
    main()
