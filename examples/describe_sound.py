"""Ask a model about a sound file.

    python examples/describe_sound.py trumpet.wav
    python examples/describe_sound.py trumpet.wav "which instrument is it?"

``ualm generate "a trumpet plays C5 and E5" -o trumpet.wav`` makes a sound known to the model that comes with ualm.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ualm import Model, UalmError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sound", type=Path, help="WAV, FLAC, OGG, MP3, ...")
    parser.add_argument("question", nargs="?", default="what is played?")
    parser.add_argument(
        "-b", "--bundle", help="folder made by `ualm export`; by default the model that comes with ualm"
    )
    arguments = parser.parse_args()

    try:
        with Model.open(arguments.bundle) as model:
            answer = model.ask(arguments.sound, arguments.question, max_tokens=200)
    except UalmError as error:  # the file is missing, not a sound, too long, ...: the message says what to do
        sys.exit(str(error))
    print(answer)  # an Answer is a str that also knows how it ended
    if answer.finish != "stop":
        print(f"(cut: {answer.finish})", file=sys.stderr)


if __name__ == "__main__":
    main()
