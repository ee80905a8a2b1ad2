"""The tokenizer as one ``tokenizer.json``, whatever files the run names."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import ExportError
from .run import Recipe


def write_tokenizer(recipe: Recipe, path: Path) -> None:
    """Load the run's tokenizer as training does (``AutoTokenizer``) and save its fast form."""
    from transformers import AutoTokenizer

    folder = recipe.tokenizer_folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ExportError(f"{folder}: no readable tokenizer ({str(error).splitlines()[0]})") from error
    if not tokenizer.is_fast:
        raise ExportError(f"{folder}: {type(tokenizer).__name__} has no fast form (tokenizer.json)")
    if len(tokenizer) > recipe.text_size:
        raise ExportError(
            f"{folder}: wrong vocabulary size: the tokenizer has {len(tokenizer)} tokens, "
            f"config.json says vocab_size = {recipe.text_size}"
        )
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(path))
