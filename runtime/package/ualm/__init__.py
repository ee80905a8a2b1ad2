"""Hear, think and speak with an exported unified audio language model, streaming, on the local machine.

The names are those of ``ualm.runtime``, whose docstring has an example of each kind of call. It is loaded when the
first of them is used.

Examples
--------
>>> from ualm import Model
>>> with Model.open(threads=1) as model:
...     gain = model.generate("a trumpet plays C5 and E5").save("trumpet.wav")

Notes
-----
This folder is installed as the package ``ualm`` itself, so a folder that merely has that name, such as a checkout,
never takes its place.
"""

TYPE_CHECKING = False  # as in typing, without importing it: the command is not ready for signals yet
if TYPE_CHECKING:
    from types import ModuleType

    from ualm.runtime import *  # noqa: F403
    from ualm.runtime import __all__ as __all__
    from ualm.runtime import __version__ as __version__


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        found: object = version("ualm")
    elif name == "__all__":
        found = _room("runtime").__all__
    elif name.startswith("_"):
        raise AttributeError(f"module 'ualm' has no attribute {name!r}")
    elif name in ("runtime", "export", "bench"):
        return _room(name)
    else:
        runtime = _room("runtime")
        if name not in runtime.__all__:
            raise AttributeError(f"module 'ualm' has no attribute {name!r}")
        found = getattr(runtime, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_room("runtime").__all__})


def _room(name: str) -> "ModuleType":
    from importlib import import_module

    try:
        return import_module(f"ualm.{name}")
    except AttributeError as error:  # Python would report it as a missing name
        raise ImportError(f"ualm.{name} cannot be loaded (AttributeError: {error})") from error
