"""Sounds: what they are, and how files, bytes and pipes become them and back.

Names are loaded on first use: what needs only this room's limits, such as a bundle, does without audio libraries.
"""

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    from .sound import Sound, Speech

__all__ = ["Sound", "Speech"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import sound

    return getattr(sound, name)
