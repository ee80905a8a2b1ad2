"""Chat with a model, line by line; it answers with text or with sound, as it chooses.

    python examples/chat_loop.py --folder sounds

A line is a message; `/sound FILE` is the sound in that file. Text appears while it is generated, sounds are saved in
the folder. Ctrl-C stops an answer, which is then taken back; the end of the input (Ctrl-D) ends the conversation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ualm import Model, SegmentEnded, Session, TextDelta, TurnEnded, UalmError


def answer(session: Session, message: str | Path, folder: Path) -> None:
    """One turn: print what the model writes, save what it plays."""
    number = session.turns + 1
    for event in session.turn(message):
        match event:
            case TextDelta(text=text):
                print(text, end="", flush=True)
            case SegmentEnded(segment=part, result=segment) if segment.sound is not None:
                file = folder / f"turn{number}_{part}.wav"
                segment.sound.save(file)
                print(f"[{file}: {segment.sound.duration:.2f} s]", end="")
            case TurnEnded(seconds=seconds):
                print(f"   ({seconds['total']:.1f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("."), help="where sounds are saved")
    parser.add_argument(
        "-b", "--bundle", help="folder made by `ualm export`; by default the model that comes with ualm"
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    with Model.open(arguments.bundle) as model, model.session() as session:
        for line in map(str.strip, sys.stdin):
            message = Path(line.removeprefix("/sound ")) if line.startswith("/sound ") else line
            try:
                if line:
                    answer(session, message, arguments.folder)
            except KeyboardInterrupt:  # leaving the loop over its events cancels the turn
                print("   (stopped)")
            except UalmError as error:  # the turn is taken back, and the session goes on
                print(f"   ({error})")


if __name__ == "__main__":
    main()
