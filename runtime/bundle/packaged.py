"""The model that comes with ualm, used where no bundle is named."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .bundle import MANIFEST

#: A bundle, shipped as package data; a build may leave it out.
PACKAGED = Path(__file__).parents[1] / "tiny"


def packaged_bundle() -> Path | None:
    """The folder of the packaged bundle; None where this build has none."""
    return PACKAGED if (PACKAGED / MANIFEST).is_file() else None


def default_bundle() -> Path:
    """The packaged bundle; :class:`InputError` where this build has none."""
    found = packaged_bundle()
    if found is None:
        raise InputError(
            "no bundle given; name one with --bundle or the variable UALM_BUNDLE (see: ualm export --help); "
            f"this build of ualm comes without a model ({PACKAGED} is missing)"
        )
    return found
