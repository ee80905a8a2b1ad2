"""Long use: memory that does not grow, and threads that do not disturb each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support.runs import make_run
from ualm.bench.meters.memory import memory_of
from ualm.export.bundle import export_run
from ualm.runtime import Model

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its sounds, unguided, end only by max_steps: 5,000 samples each."""
    folder = tmp_path_factory.mktemp("endless")
    run = make_run(folder / "run", seed=1, lean={"eos": -40.0, "eot": -40.0, "pad": -40.0})
    return export_run(run.folder, folder / "bundle").bundle


@pytest.fixture
def model(bundle: Path) -> Iterator[Model]:
    with Model.open(bundle, threads=1) as opened:
        yield opened


#: A separate process: memory that earlier tests returned to the allocator would hide growth.
_GENERATE = """
import json, sys
from ualm.bench.meters.memory import memory_of
from ualm.runtime import Model
held = []
with Model.open(sys.argv[1], threads=1) as model:
    for number in range(300):
        sound = model.generate("rain on a tin roof", seed=number, guidance=1.0, max_steps=507)
        held.append(memory_of().anonymous)
print(json.dumps([len(sound.samples), held]))
"""


@pytest.mark.skipif(memory_of() is None, reason="the system does not report a process's memory")
def test_memory_is_flat_over_300_generations(bundle: Path) -> None:
    """From the first 60 to the last 60, 1 MiB is allowed, for arenas of the allocator that settle late (0.03 seen). A
    sound kept by each generation, 20,000 bytes, would add 4.6 MiB."""
    done = subprocess.run([sys.executable, "-c", _GENERATE, bundle], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    samples, held = json.loads(done.stdout)
    assert samples == 5000 and len(held) == 300
    assert max(held[240:]) - max(held[:60]) < 1 << 20, held[::20]


def test_eight_threads_that_draw_the_same_prompts_give_equal_bits(model: Model) -> None:
    prompts = [(f"sound number {number}", number) for number in range(12)]

    def draw(_: int) -> list[tuple[np.ndarray, np.ndarray]]:
        sounds = [model.generate(text, seed=seed, max_steps=60) for text, seed in prompts]
        return [(np.asarray(sound.codes), sound.samples) for sound in sounds]

    expected = draw(0)
    assert len({codes.tobytes() for codes, _ in expected}) == len(prompts)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(draw, range(8)):
            for (codes, samples), (mine, heard) in zip(expected, found, strict=True):
                np.testing.assert_array_equal(codes, mine)
                np.testing.assert_array_equal(samples.view(np.int32), heard.view(np.int32))
