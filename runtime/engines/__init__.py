"""Engines: what runs the parts of a bundle. Only this folder imports an inference library."""

from .protocol import Engine, EngineSequence, Frames
from .registry import open_engine

__all__ = ["Engine", "EngineSequence", "Frames", "open_engine"]
