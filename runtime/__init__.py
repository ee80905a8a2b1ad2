"""Run exported unified audio language models, streaming, on the local machine.

Everything public is a name of this package; ``ualm`` has the same names.

Examples
--------
Open a model; without arguments, it is the one that comes with ualm. One thread is enough for that one.

>>> import numpy as np
>>> from ualm.runtime import *
>>> model = Model.open(threads=1)

Make a sound, and save it:

>>> sound = model.generate("a trumpet plays C5 and E5", seed=7)
>>> sound.samples.dtype, sound.sample_rate, sound.finish  # samples float32 [n]; Hz; how it ended
(dtype('float32'), 16000, 'stop')
>>> gain = sound.save("trumpet.wav")

Ask about a sound:

>>> print(model.ask("trumpet.wav", "what is played?"))
a trumpet plays C5 and E5

Take a sound while it is made; ``async for`` does the same:

>>> chunks = [chunk.samples for chunk in model.stream("a trumpet plays C5 and E5", seed=7)]
>>> sum(map(len, chunks)) == len(sound.samples)
True

Talk in turns; only what is new is computed:

>>> session = model.session()
>>> for event in session.turn([("user", sound), ("user", "what is played?")], modality="text"):
...     if isinstance(event, TextDelta):
...         print(event.text, end="")
...     elif isinstance(event, TurnEnded):
...         print(f" ({event.reason})")
a trumpet plays C5 and E5 (eos)

The examples of all names go on from here: they use ``np``, ``model`` and ``sound``, and write into the current folder.
Close a model that is no longer needed (``model.close()``), or open it in a ``with`` block.

Notes
-----
The fields of a dataclass, listed as its attributes, are the parameters that it is made with. Errors have the base
:class:`UalmError`.

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
