"""Record in an existing bundle what its model knows: ``python -m ualm.export.knows BUNDLE KNOWS.json``.

A bundle takes that from the ``knows.json`` of its training run when it is exported. This is for a bundle whose run
had no such file then, or another one: its manifest is written again, with a new digest, and no other file is touched.
"""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.export.knows")

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from ..runtime.bundle.bundle import MANIFEST, Bundle
from ..runtime.bundle.knowledge import Knowledge
from ..runtime.errors import UalmError
from ..runtime.files.writing import replacing_file
from .bundle import read_knows


def write_knows(folder: Path, knows: Knowledge | None) -> bool:
    """Write ``knows`` into the manifest of the bundle in ``folder`` (None: remove it); returns whether it changed."""
    bundle = Bundle(folder, verify="never")
    if bundle.manifest.knows == knows:
        return False
    manifest = dataclasses.replace(bundle.manifest, knows=knows)
    with replacing_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="ualm.export.knows", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("knows", type=Path, help="JSON file: about, and words")
    arguments = parser.parse_args()
    try:
        knows = read_knows(arguments.knows)
        if knows is None:
            sys.exit(f"knows: {arguments.knows}: no such file")
        changed = write_knows(arguments.bundle, knows)
    except UalmError as error:
        sys.exit(f"knows: {error}")
    print(f"{arguments.bundle}: {'written' if changed else 'unchanged'}")
