"""Keep a conversation: fork it, save it, and continue from either.

    python examples/save_and_fork.py talk.npz

A fork copies what the session has computed, and a file stores it: nothing is computed a second time. Asked the same
with the same seed, both continue exactly as the session itself does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ualm import AudioSampling, Model, Segment, Session


def played(session: Session, request: str) -> Segment:
    """A session's answer with sound: ``rows``, the ids as drawn, and ``sound``."""
    return session.ask(request, modality="audio", audio=AudioSampling(seed=7), max_seconds=2)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="where to save the session (.npz)")
    parser.add_argument(
        "-b", "--bundle", help="folder made by `ualm export`; by default the model that comes with ualm"
    )
    arguments = parser.parse_args()

    with Model.open(arguments.bundle) as model:
        session = model.session()
        played(session, "a trumpet plays C5")
        fork = session.fork()  # a separate session, with the same turns
        session.save(arguments.file)
        restored = model.restore(arguments.file)  # also in another process, with the same bundle
        print(f"{arguments.file}: {restored.turns} turn, {restored.rows} rows")

        slower = played(session, "slower")
        for name, other in (("fork", fork), ("restored", restored)):
            equal = np.array_equal(played(other, "slower").rows, slower.rows)
            print(f"{name}: {'continues identically' if equal else 'differs'}")

        fork.truncate(1)  # drop the last turn, and continue differently from there
        print(f"session: {slower.sound}")
        print(f"fork, asked differently: {played(fork, 'higher').sound}")


if __name__ == "__main__":
    main()
