"""Keep a conversation: fork it, save it, and go on from either.

    python examples/save_and_fork.py talk.npz

A fork copies what the session has computed, and a file holds it: nothing is computed a second time. Asked the same with
the same seed, both go on exactly as the session itself does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ualm import AudioSampling, Model, Segment, Session


def played(session: Session, request: str) -> Segment:
    """What a session answers with sound: ``rows``, the ids as drawn, and ``sound``."""
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
        fork = session.fork()  # a session of its own, with the same turns
        session.save(arguments.file)
        restored = model.restore(arguments.file)  # in another process, too, where it has the same bundle
        print(f"{arguments.file}: {restored.turns} turn, {restored.rows} rows")

        slower = played(session, "slower")
        for name, other in (("fork", fork), ("restored", restored)):
            equal = np.array_equal(played(other, "slower").rows, slower.rows)
            print(f"{name}: {'goes on equally' if equal else 'differs'}")

        fork.truncate(1)  # forget the last turn, and take another way from there
        print(f"session: {slower.sound}")
        print(f"fork, asked otherwise: {played(fork, 'higher').sound}")


if __name__ == "__main__":
    main()
