"""The outputs on which the golden vector of a bundle is compared."""

CHECKS = [
    "logits.modality",
    "logits.audio (conditional)",
    "logits.audio (null)",
    "logits.text (conditional)",
    "logits.text (null)",
    "pcm",
    "pcm (streamed)",
    "features",
]
