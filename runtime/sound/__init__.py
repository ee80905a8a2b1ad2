"""Sounds: what they are, and how files, bytes and pipes become them and back."""

from .sound import Sound, Speech

__all__ = ["Sound", "Speech"]
