"""``ualm bench gates``: whether a bundle of ualm-tiny generates what it is asked for, judged by detectors.

The judges are beside the model's recipe, in ``export/tiny``, because what is correct depends on its domain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..export.tiny.judging.examine import against, codes_of, examine, read_gates, table
from ..runtime.files.writing import replacing_file
from ..runtime.process.cores import BY_OPTION, check_threads
from .harness.blocks import Progress


def judge_bundle(
    bundle: Path | None,
    run: Path | None,
    *,
    share: float,
    seed: int,
    threads: int | None,
    engine: str | None,
    wide: Path | None = None,
    progress: Progress,
) -> Mapping[str, Any]:
    """The gates of a bundle (None: the one that comes with ualm) of the training run ``run`` (None: that bundle's).

    ``wide``: the saved gates in fp32, to compute the loss against them. Raises :class:`InputError` if the run has no
    codes of the domain, ``share`` is out of range, or ``wide`` was measured with other settings.
    """
    check_threads(threads, *BY_OPTION)
    codes = codes_of(run)
    reference = None if wide is None else read_gates(wide)
    result = examine(
        bundle,
        codes,
        share=share,
        seed=seed,
        threads=threads,
        engine=engine,
        progress=lambda part: progress(f"gates: {part}"),
    )
    return result if reference is None else result | {"against": against(result, reference)}


def write_gates(result: Mapping[str, Any], output: Path) -> None:
    """Write one JSON object, to a temporary file that is renamed."""
    with replacing_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def gates_table(result: Mapping[str, Any]) -> str:
    lines = [table(result["gates"])]
    if "against" in result:
        lost = result["against"]
        losses = [f"{name} ({100 * lost['lost'][name]:.1f})" for name in lost["too_much"]]
        allowed = f"points more than {100 * lost['allowed']:g} lost to the wider format"
        lines.append(f"{allowed}: {', '.join(losses) or 'none'}")
    return "\n".join(lines)
