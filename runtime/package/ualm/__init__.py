"""ualm: hear, think and speak with an exported unified audio language model, streaming, on the machine at hand.

from ualm import Model

with Model.open() as model:
    model.generate("a trumpet plays C5 and E5").save("trumpet.wav")

The names are those of ``ualm.runtime``, which is loaded when the first of them is used. This folder is installed as the
package ``ualm`` itself: a folder that merely has that name, such as a checkout, never takes its place.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ualm.runtime import *  # noqa: F403
    from ualm.runtime import __all__ as __all__
    from ualm.runtime import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ualm")
    if name == "__all__" or not name.startswith("_"):
        from importlib import import_module

        runtime = import_module("ualm.runtime")
        if name == "__all__" or name in runtime.__all__:
            return getattr(runtime, name)
    raise AttributeError(f"module 'ualm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
