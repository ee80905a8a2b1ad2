"""ualm.runtime: run exported unified audio language models, streaming, on the machine at hand.

from ualm.runtime import Model

with Model.open("bundle") as model:
    model.generate("rain on a tin roof").save("rain.wav")

The names are loaded when the first of them is used: the command must be ready for signals before that.
"""

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
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

    __version__: str

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

#: Where the names are, those first that load least.
_HOMES = (
    "errors",
    "answer",
    "events",
    "chunks",
    "sampling",
    "segment",
    "sound",
    "sound_decoder",
    "stages",
    "turn",
    "sound_stream",
    "session",
    "reasoning",
    "model",
)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return version("ualm")
    from importlib import import_module

    homes = (vars(import_module(f".{home}", __name__)) for home in _HOMES)
    return next(home[name] for home in homes if name in home)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
