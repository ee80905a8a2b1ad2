"""Writes the model card of the tiny model, with figures only from the JSON of its training and its gates.

``python -m ualm.export.tiny.judging.card RUN GATES.json ... -o MODEL_CARD.md``, the gates as ``ualm bench gates`` wrote
them.
"""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.export.tiny.judging.card")

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....runtime.files.writing import replacing_file
from ..corpus.domain import DRUMS, INSTRUMENTS, MAX_EVENTS, NOTES, SLOTS
from .gates import ALLOWED_LOSS, losses, lost_too_much

_HEAD = """# ualm-tiny

A small UALM that makes and hears short instrument sounds. It has UALM's structure (its vocabulary and rows, a Qwen2
body, X-Codec codes with delay, a Qwen2.5-Omni-style encoder) and none of NVIDIA's weights or data. It exists so
that the runtime can be heard and its output judged by a program; it is not a general sound model.

## Domain

{instruments}: notes {notes}. {drums}. One to {most} events, one at a time, {tempos} from onset to onset. Anything
else is outside what it knows: it will answer with some sound of the domain.

It was trained to make a sound from a text, directly or through a rich caption; to answer questions about a sound it
hears; to answer questions about its own small music theory; to ask back and to change what it played; and to listen to
what it played, say what it heard, and play again if that is not what was asked for.

## Training

{steps} steps, {rows} rows, {hours:.1f} h of processor time (of the main thread) from scratch. {held}
The sounds of single notes and drums cannot be held out, and are all trained. The codec is built in closed form: no
training, sounds of the domain come back at more than 50 dB with the weights rounded to bf16 (the tests hold it).
`training.json` beside the run has the recipe and the curves. The recipe is one command:
`python -m ualm.export.tiny all WORK -o RUN`; with `--device cuda` it trains on a GPU, which has not been run yet.

## Gates

Judged from decoded samples by pitch, onset and timbre detectors; answers compared word for word. Temperature
{temperature}, top-k {top_k}, guidance {guidance}; fixed seeds. The prompts, questions, changes and clips
asked for are those that the recipe holds out. A narrower format may lose {loss:g} points to fp32 in a gate.
"""

_TAIL = """
## Limits

- {missed}
- {note}
- It reads English in the phrases of `export/tiny/corpus/phrases.json` and little else.

## Licences

The weights are Apache-2.0, as the project. They were trained on renders of the FluidR3 mono soundfont by Frank Wen
and Michael Cowgill, which is under the MIT licence (Debian: `fluidr3mono-gm-soundfont`); fluidsynth (LGPL-2.1)
rendered them and is no part of the model.
"""


def model_card(training: Mapping[str, Any], examined: Sequence[tuple[str, Mapping[str, Any]]], note: str) -> str:
    """Markdown. ``training``: training.json; ``examined``: (name of a bundle, its gates' JSON), the main one first.

    ``note``: anything else to know about this particular run.
    """
    main = examined[0][1]
    head = _HEAD.format(
        instruments=", ".join(INSTRUMENTS).capitalize(),
        notes=f"{next(iter(NOTES.values()))} to {list(NOTES.values())[-1]} (white keys)",
        drums=", ".join(DRUMS).capitalize(),
        most=MAX_EVENTS,
        tempos=", ".join(f"{slot * 20} ms ({name})" for name, slot in SLOTS.items()),
        steps=training["step"],
        rows=f"{training['rows']:,}",
        hours=training["cpu_seconds"] / 3600,
        held=_held_out(training["held_out_percent"]),
        loss=100 * ALLOWED_LOSS,
        **main["sampling"],
    )
    names = [name for name, _ in examined]
    lines = [f"| gate | wanted | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for gate, values in main["gates"].items():
        cells = [_cell(result["gates"].get(gate)) for _, result in examined]
        lines.append(f"| {gate} | {_wanted(gate, values['wanted'])} | {' | '.join(cells)} |")
    return "\n".join([head, *lines, _TAIL.format(missed=_missed(examined), note=note)])


_THINGS = {
    "sequences": "of the sequences of two or three notes, from every task",
    "words": "of the prompts and questions that are put together from words",
    "changes": "of the changes in a dialogue",
    "reflection": "of the single notes and drums, from reflection",
}


def _held_out(percent: Mapping[str, int]) -> str:
    """What the training of this particular run held out, and which gates ask for things that it did not."""
    held = "; ".join(f"{percent[name]} % {what}" for name, what in _THINGS.items() if name in percent)
    met = [what for name, what in _THINGS.items() if name not in percent]
    text = f"Held out of training, by construction: {held}."
    return f"{text} Not held out, so that these gates may ask for what training met: {'; '.join(met)}." if met else text


def _missed(examined: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Every gate that any of the bundles misses, and every loss against fp32 beyond the allowance."""
    wide = next((result for name, result in examined if name == "fp32"), None)
    lines = []
    for name, result in examined:
        missed = [gate for gate, values in result["gates"].items() if values["met"] is False]
        lines += [f"{name} misses {gate}" for gate in missed]
        if wide is not None and result is not wide:
            lost = losses(wide["gates"], result["gates"])
            lines += [f"{name} loses {100 * lost[gate]:.1f} points to fp32 in {gate}" for gate in lost_too_much(lost)]
    return f"Gates missed: {'; '.join(lines)}." if lines else "Every gate is met."


def _wanted(gate: str, wanted: float | None) -> str:
    if wanted is None:
        return ""
    return f"{'at most' if gate.endswith('broken') else 'at least'} {100 * wanted:g} %"


def _cell(values: Mapping[str, Any] | None) -> str:
    if values is None or values["share"] is None:
        return ""
    mark = " (missed)" if values["met"] is False else ""
    return f"{100 * values['share']:.1f} % of {values['total']}{mark}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="ualm.export.tiny.judging.card", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the training run")
    parser.add_argument("gates", type=Path, nargs="+", help="files that ualm bench gates wrote, the main one first")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument("--note", default="Trained in one go.", help="anything else to know about this run")
    arguments = parser.parse_args()
    training = json.loads((arguments.run / "training.json").read_text(encoding="utf-8"))
    examined = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.gates]
    named = [(result["precisions"]["backbone"], result) for result in examined]
    with replacing_file(arguments.output) as temporary:
        temporary.write_text(model_card(training, named, arguments.note), encoding="utf-8")
