"""Reading files from elsewhere, within named limits.

A file can be a named pipe that never ends, larger than memory, nested deeper than a parser goes, or small but gigabytes
long once it is printed. What the functions here refuse is a ``ValueError`` with a one-line reason; what the system
refuses is an ``OSError``. Callers add the file's name and the fix, in an error class of their own.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from itertools import islice
from typing import Any

#: Bytes of a configuration in JSON: a manifest, a ``config.json``, templates, what a model knows.
MOST_JSON = 4 << 20
#: Values of a configuration in JSON, counted by their commas and brackets before they are parsed.
MOST_VALUES = 200_000
#: Bytes and values of a ``tokenizer.json``; the largest in use have 34 MB and a million.
MOST_TOKENIZER = 64 << 20
MOST_TOKENIZER_VALUES = 4_000_000
#: Bytes of the header of a safetensors file, and its values.
MOST_HEADER = 16 << 20
MOST_HEADER_VALUES = 1_000_000
#: Levels of lists and objects within each other.
MOST_DEPTH = 64
#: A size in a configuration: of a table, a sound, a frame.
MOST_SIZE = 2**31 - 1
#: Characters of a value in a message.
MOST_SHOWN = 120

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Refuse what exists but is not a file, before it is opened: opening a named pipe waits for its other end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a file")
    return status


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a file of at most ``most`` bytes."""
    size = check_file(path).st_size
    if size > most:
        raise ValueError(f"it has {size} bytes, and at most {most} are read")
    # a pipe that has taken the file's place since must not block either
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes, the most that are read")
    return content


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """A text in UTF-8 of at most ``most`` bytes."""
    return read_bytes(path, most).decode("utf-8")


def parse_json(content: bytes, most_values: int = MOST_VALUES) -> Any:
    """JSON in UTF-8, of at most ``most_values`` values and :data:`MOST_DEPTH` levels."""
    check_values(content, most_values)
    try:
        values = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(_too_deep()) from None
    level, depth = [values], 0
    while level := [node for node in level if isinstance(node, (dict, list))]:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(_too_deep())
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return values


def check_values(content: bytes, most: int = MOST_VALUES) -> None:
    """ValueError for JSON of more than ``most`` values, counted by the commas and brackets outside strings."""
    if _marks(content) <= most:
        return
    import numpy as np  # only what looks too large is looked at twice

    # no quotation marks but those around strings; malformed text is left for the parser to refuse
    bare = np.frombuffer(content.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    inside = np.cumsum(bare == ord('"'), dtype=np.uint8) & 1
    if (values := _marks(bare[inside == 0].tobytes())) > most:
        raise ValueError(f"it has some {values} values, and at most {most} are read")


def _marks(content: bytes) -> int:
    return sum(content.count(mark) for mark in (b",", b"[", b"{"))


def read_json(path: str | os.PathLike[str], most: int = MOST_JSON, most_values: int = MOST_VALUES) -> Any:
    """The content of a JSON file, as :func:`parse_json` gives it."""
    return parse_json(read_bytes(path, most), most_values)


def _too_deep() -> str:
    return f"its values are nested deeper than {MOST_DEPTH} levels"


def shown(value: object) -> str:
    """``repr`` of a value for a message: on one line, and never longer than :data:`MOST_SHOWN` characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 4]} ..."


def first_line(error: BaseException) -> str:
    """The text of another library's exception for a message: on one line, shortened."""
    words = " ".join(str(error)[: 8 * MOST_SHOWN].split()) or type(error).__name__
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    return words if len(words) <= 2 * MOST_SHOWN else f"{words[: 2 * MOST_SHOWN - 4]} ..."


class _Short(reprlib.Repr):
    """Visits only a few values of each level, whatever they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxset = 4, 8, 12, 12, 8
        self.maxstring = self.maxother = MOST_SHOWN - 8

    def repr_int(self, x: int, level: int) -> str:
        # the decimal digits of a number of a million bits take seconds, or are refused
        return repr(x) if x.bit_length() < 256 else f"a whole number of {x.bit_length()} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """In the order of the file; ``reprlib`` sorts."""
        if level <= 0 and x:
            return "{...}"
        pieces = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return "{" + ", ".join(pieces + ["..."] * (len(x) > self.maxdict)) + "}"


_SHORT = _Short()
