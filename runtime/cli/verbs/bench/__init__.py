"""``ualm bench``. Its verbs: those that measure a bundle, and programs with options of their own."""

from .programs import PROGRAMS
from .verbs import app

__all__ = ["PROGRAMS", "app"]
