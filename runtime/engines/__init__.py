"""Engines: what runs the parts of a bundle. Only this folder imports an inference library."""

from .protocol import Engine, Frames, Sequence
from .registry import open_engine

__all__ = ["Engine", "Frames", "Sequence", "open_engine"]
