"""Small random changes: of bytes, and of JSON values. Equal generators make equal changes."""

from __future__ import annotations

import random
from typing import Any

#: Numbers with a special meaning, or at the limits of a type.
ODD_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64, 10**18),
)


def changed_bytes(rng: random.Random, content: bytes, head: int = 256) -> bytes:
    """One to eight changes; half of them among the first ``head`` bytes, where headers are."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        end = len(made) if rng.random() < 0.5 else min(len(made), head)
        at = rng.randrange(end) if end else 0
        what = rng.randrange(8)
        if what == 0 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif what == 1 and made:
            made[at] = rng.choice([0, 0xFF, 0x7F, 0x80, rng.randrange(256)])
        elif what == 2:  # a size or a count, in either byte order
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(ODD_NUMBERS) % (1 << 8 * size)
            made[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        elif what == 3:
            del made[at:]
        elif what == 4:
            del made[at : at + rng.randrange(1, 64)]
        elif what == 5:
            made[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif what == 6:
            made += rng.choice([bytes(64), rng.randbytes(64), made[at : at + 256]])
        else:
            other = rng.randrange(end) if end else 0
            made[at : at + 16] = made[other : other + 16]
    return bytes(made)


def leaves(document: Any) -> list[tuple[Any, Any]]:
    """Every place of a JSON document that can be assigned to: its container and its key."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    found = []
    for key, value in items:
        found.append((document, key))
        found += leaves(value)
    return found


def change_value(rng: random.Random, document: Any) -> None:
    """Change, remove, copy or move one value of a JSON document in place."""
    places = leaves(document)
    if not places:
        return
    container, key = rng.choice(places)
    value = container[key]
    what = rng.randrange(10)
    numbers = [c[k] for c, k in places if isinstance(c[k], int) and not isinstance(c[k], bool)]
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[rng.choice(["more", "", "files", f"{key}2"])] = value
    elif what == 2:
        other, name = rng.choice(places)
        container[key] = other[name] if not isinstance(other[name], (dict, list)) else None
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and what < 8:
        container[key] = rng.choice(
            [value + 1, value - 1, value * 2, value // 2, -value, float(value), rng.choice(ODD_NUMBERS)]
            + ([rng.choice(numbers)] * 6 if numbers else [])
        )
    elif isinstance(value, str) and what < 6:
        container[key] = rng.choice([value[:-1], value + "x", value.upper(), "", "../x", "a\nb", "x" * 5000, "\x00"])
    else:
        container[key] = rng.choice(
            [None, True, 0, -1, 1.5, float("nan"), float("inf"), "", "1", [], {}, [value], {"a": value}, 10**40]
        )
