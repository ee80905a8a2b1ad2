"""``ualm bench gates``: whether a bundle of ualm-tiny makes and says what it is asked for, judged by detectors.

The judgement lives beside the model's recipe, in ``export/tiny``: what is right is a matter of its domain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..export.tiny.examine import codes_of, examine, table
from ..runtime.files import replacing_file
from .blocks import Progress


def judge_bundle(
    bundle: Path | None,
    run: Path | None,
    *,
    share: float,
    seed: int,
    threads: int | None,
    engine: str | None,
    progress: Progress,
) -> Mapping[str, Any]:
    """The gates of a bundle (None: of the one that comes with ualm) of the training run ``run`` (None: that one's).

    Raises :class:`InputError` where the run has no codes of the domain, or ``share`` is none.
    """
    codes = codes_of(run)
    return examine(
        bundle,
        codes,
        share=share,
        seed=seed,
        threads=threads,
        engine=engine,
        progress=lambda part: progress(f"gates: {part}"),
    )


def write_gates(result: Mapping[str, Any], output: Path) -> None:
    """One JSON object, written beside and renamed."""
    with replacing_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def gates_table(result: Mapping[str, Any]) -> str:
    return table(result["gates"])
