"""One load in a separate process, for ``load``: ``python -m ualm.bench.scenarios.load_child BUNDLE ENGINE THREADS``.

Prints a line "ready" after the first row, and one JSON object after the last. "-" for engine or threads: the
default.
"""

from __future__ import annotations

import time

_started = time.perf_counter()  # before the imports, which are part of what is measured

import json  # noqa: E402
import sys  # noqa: E402
from dataclasses import asdict  # noqa: E402
from typing import Any  # noqa: E402

from ...runtime.bundle.bundle import Bundle  # noqa: E402
from ...runtime.conversation.resources import DEFAULT_CONTEXT  # noqa: E402
from ...runtime.engines.registry import open_engine  # noqa: E402
from ...runtime.errors import UalmError  # noqa: E402
from ..meters.memory import memory_of, peak_rss  # noqa: E402
from .common import random_prompt  # noqa: E402

#: Rows drawn before memory counts as steady.
STEADY_ROWS = 50
_PROMPT_ROWS = 16


def main() -> None:
    folder, engine_name, threads = sys.argv[1:]
    imported = time.perf_counter()
    bundle = Bundle(folder, verify="never")  # only the very first load hashes
    context = min(DEFAULT_CONTEXT, bundle.manifest.model.max_positions)
    engine = open_engine(
        None if engine_name == "-" else engine_name,
        bundle,
        threads=None if threads == "-" else int(threads),
        max_context=context,
    )
    opened = time.perf_counter()
    loaded = memory_of()
    asked = time.perf_counter()
    sequence = engine.open_sequence()
    sequence.prefill([random_prompt(bundle.manifest.vocabulary, _PROMPT_ROWS, seed=0)])
    sampling = bundle.manifest.sampling.audio
    sequence.begin_segment("audio", sampling, mode="fixed", segment=0)
    ended = sequence.run_frames(1).end is not None
    drawn = time.perf_counter()
    print("ready", flush=True)
    for segment in range(1, STEADY_ROWS):
        if ended:
            sequence.truncate(_PROMPT_ROWS)
            sequence.begin_segment("audio", sampling, mode="fixed", segment=segment)
        ended = sequence.run_frames(1).end is not None
    steady = memory_of()
    result: dict[str, Any] = {
        "import": imported - _started,
        "open": opened - imported,
        "first_row": drawn - asked,
        "looking": asked - opened,
        "loaded": asdict(loaded) if loaded else None,
        "steady": asdict(steady) if steady else None,
        "peak_rss": peak_rss(),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UalmError as error:
        sys.exit(str(error))
