"""UALM-Reason: thinking before, between and after sounds, over a session."""

from .modes import Reasoning

__all__ = ["Reasoning"]
