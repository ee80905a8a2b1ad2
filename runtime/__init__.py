"""ualm.runtime: run exported unified audio language models, streaming, on the machine at hand.

from ualm.runtime import Model

with Model.open("bundle") as model:
    model.generate("rain on a tin roof").save("rain.wav")
"""

import importlib.metadata

from .answer import Answer
from .chunks import ChunkProfile
from .errors import (
    BundleError,
    ContextError,
    EngineError,
    ExportError,
    InputError,
    LimitError,
    MemoryLimitError,
    ModalityError,
    OutputError,
    SegmentLimitError,
    SessionError,
    TimeLimitError,
    UalmError,
)
from .events import SegmentEnded, SegmentStarted, SoundChunk, TextDelta, TurnEnded
from .model import Model
from .reasoning import Reasoning
from .sampling import AudioSampling, TextSampling
from .segment import Segment
from .session import Session
from .sound import Sound, Speech
from .sound_decoder import SoundDecoder
from .sound_stream import SoundStream
from .stages import (
    ReasoningEnded,
    ReasoningResult,
    Stage,
    StageEnded,
    StageSound,
    StageStarted,
    StageText,
    Verdict,
)
from .turn import Turn

__version__ = importlib.metadata.version("ualm")

__all__ = [
    "Answer",
    "AudioSampling",
    "BundleError",
    "ChunkProfile",
    "ContextError",
    "EngineError",
    "ExportError",
    "InputError",
    "LimitError",
    "MemoryLimitError",
    "ModalityError",
    "Model",
    "OutputError",
    "Reasoning",
    "ReasoningEnded",
    "ReasoningResult",
    "Segment",
    "SegmentEnded",
    "SegmentLimitError",
    "SegmentStarted",
    "Session",
    "SessionError",
    "Sound",
    "SoundChunk",
    "SoundDecoder",
    "SoundStream",
    "Speech",
    "Stage",
    "StageEnded",
    "StageSound",
    "StageStarted",
    "StageText",
    "TextDelta",
    "TextSampling",
    "TimeLimitError",
    "Turn",
    "TurnEnded",
    "UalmError",
    "Verdict",
    "__version__",
]
