"""A bundle: the folder that an export writes and an engine opens."""

from .bundle import GOLDEN, MANIFEST, TOKENIZER, WEIGHTS, Bundle, Verify
from .manifest import BundleFile, CodecIdentity, Manifest, ModelIdentity, PostCodecIdentity

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "TOKENIZER",
    "WEIGHTS",
    "Bundle",
    "BundleFile",
    "CodecIdentity",
    "Manifest",
    "ModelIdentity",
    "PostCodecIdentity",
    "Verify",
]
