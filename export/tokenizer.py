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
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"{folder}: no readable tokenizer ({reason}); copy the model's folder again") from error
    if not tokenizer.is_fast:
        raise ExportError(f"{folder}: {type(tokenizer).__name__} has no fast form; put its tokenizer.json there")
    size = max(tokenizer.get_vocab().values(), default=-1) + 1  # more than the count of tokens where ids have gaps
    if size > recipe.text_size:
        raise ExportError(
            f"{folder}: wrong vocabulary size: the tokenizer has {size} tokens, "
            f"config.json says vocab_size = {recipe.text_size}; both must be the same model's"
        )
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")  # save() hides why a disk refused
