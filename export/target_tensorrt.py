"""The target ``tensorrt``, see ``tensorrt_target``."""

from __future__ import annotations

from .tensorrt_target import tensorrt as target

__all__ = ["target"]
