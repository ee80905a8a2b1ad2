"""Stream a sound to a player while the model makes it.

Writes raw samples (32-bit floats, little-endian) to standard output, for any player that reads a pipe:

    python examples/stream_to_player.py "a trumpet plays C5 and E5" | aplay -f FLOAT_LE -r 16000 -c 1
    python examples/stream_to_player.py "a trumpet plays C5 and E5" | ffplay -f f32le -ar 16000 -i -
"""

from __future__ import annotations

import argparse
import os
import sys

from ualm import Model, Sound


def stream(bundle: str | None, caption: str, seed: int) -> Sound | None:
    """Write each chunk as it arrives; returns the whole sound at the end."""
    # Leaving the block stops the thread that computes ahead, also if the player has exited and a write fails.
    with Model.open(bundle) as model, model.stream(caption, seed=seed) as chunks:
        for chunk in chunks:
            if chunk.start == 0:
                print(f"{chunk.sample_rate} Hz, {chunk.preroll:.2f} s to buffer before playing", file=sys.stderr)
            sys.stdout.buffer.write(chunk.samples.astype("<f4").tobytes())
            sys.stdout.buffer.flush()
        return chunks.sound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("caption", help="description of the sound")
    parser.add_argument(
        "-b", "--bundle", help="folder made by `ualm export`; by default the model that comes with ualm"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same sound")
    arguments = parser.parse_args()
    if sys.stdout.isatty():
        parser.error("standard output is a terminal; pipe it into a player")
    try:
        sound = stream(arguments.bundle, arguments.caption, arguments.seed)
    except BrokenPipeError:  # the player was closed: Python must not flush data that will never be read
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        print(sound, file=sys.stderr)


if __name__ == "__main__":
    main()
