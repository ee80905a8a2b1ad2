"""The target ``tensorrt-rtx``, see ``tensorrt_target``."""

from __future__ import annotations

from .tensorrt_target import tensorrt_rtx as target

__all__ = ["target"]
