"""ualm.runtime: run exported unified audio language models, streaming, on the local machine.

from ualm.runtime import Model

with Model.open("bundle") as model:
    model.generate("rain on a tin roof").save("rain.wav")

Names are loaded lazily, on first use: the command must be ready for signals before that.
"""

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    from .audio.pacing import ChunkProfile
    from .audio.stream_decoder import SoundDecoder
    from .conversation.answer import Answer
    from .conversation.events import SegmentEnded, SegmentStarted, SoundChunk, TextDelta, TurnEnded
    from .conversation.segment import Segment
    from .conversation.session import Session
    from .conversation.sound_stream import SoundStream
    from .conversation.turn import Turn
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
    from .model import Model
    from .reasoning.modes import Reasoning
    from .reasoning.results import (
        ReasoningEnded,
        ReasoningResult,
        Stage,
        StageEnded,
        StageSound,
        StageStarted,
        StageText,
        Verdict,
    )
    from .sampling import AudioSampling, TextSampling
    from .sound.sound import Sound, Speech

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

#: Modules that define the names, those that load least first.
_HOMES = (
    "errors",
    "conversation.answer",
    "conversation.events",
    "audio.pacing",
    "sampling",
    "conversation.segment",
    "sound.sound",
    "audio.stream_decoder",
    "reasoning.results",
    "conversation.turn",
    "conversation.sound_stream",
    "conversation.session",
    "reasoning.modes",
    "model",
)


def __getattr__(name: str) -> object:
    if not name.isidentifier():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        found: object = version("ualm")
    elif name in __all__:
        homes = map(_loaded, _HOMES)
        found = next(home[name] for home in homes if name in home)
    elif name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        return _submodule(name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _submodule(name: str) -> object:
    """A submodule such as ``ualm.runtime.errors``, even if nothing has loaded it before."""
    import sys

    module = f"{__name__}.{name}"
    try:
        _loaded(name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return sys.modules[module]


def _loaded(name: str) -> dict[str, object]:
    """The names that a submodule defines."""
    from importlib import import_module

    try:
        return vars(import_module(f".{name}", __name__))
    except AttributeError as error:  # Python would report it as a missing name
        raise ImportError(f"{__name__}.{name} cannot be loaded (AttributeError: {error})") from error
