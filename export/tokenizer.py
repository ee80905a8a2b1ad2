"""The tokenizer as one ``tokenizer.json``, whatever files the run names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

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
    backend = _backend(folder, tokenizer)
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")  # save() hides why a disk refused


def _backend(folder: Path, tokenizer: Any) -> Tokenizer:
    """The folder's own ``tokenizer.json`` where there is one, with the tokens that the configuration adds to it.

    transformers 5 builds a Qwen2 tokenizer anew from its vocabulary and merges and drops a normalizer or pre-tokenizer
    of the file; transformers 4, which the published code was trained with, takes the file as it is.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return tokenizer.backend_tokenizer
    backend = Tokenizer.from_file(str(file))
    for index, token in sorted(tokenizer.added_tokens_decoder.items()):
        if backend.token_to_id(token.content) is None:
            backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            raise ExportError(
                f"{file}: token {token.content!r} is {backend.token_to_id(token.content)}, tokenizer_config.json says "
                f"{index}; copy the model's folder again"
            )
    return backend
