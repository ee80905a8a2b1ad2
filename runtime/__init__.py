"""ualm.runtime: run exported unified audio language models, streaming, on the machine at hand.

from ualm.runtime import Model

with Model.open("bundle") as model:
    model.generate("rain on a tin roof").save("rain.wav")
"""

import importlib.metadata

from .errors import (
    BundleError,
    ContextError,
    EngineError,
    ExportError,
    InputError,
    ModalityError,
    OutputError,
    UalmError,
)
from .model import Model, Segment
from .sampling import AudioSampling, TextSampling
from .sound import Sound, Speech

__version__ = importlib.metadata.version("ualm")

__all__ = [
    "AudioSampling",
    "BundleError",
    "ContextError",
    "EngineError",
    "ExportError",
    "InputError",
    "ModalityError",
    "Model",
    "OutputError",
    "Segment",
    "Sound",
    "Speech",
    "TextSampling",
    "UalmError",
    "__version__",
]
