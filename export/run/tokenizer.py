"""Writes the tokenizer as one ``tokenizer.json``, from any files that the run names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...runtime.errors import ExportError
from ...runtime.files.reading import MOST_TOKENIZER_VALUES, check_file, first_line, read_json, shown
from ...runtime.text.tokenizer_file import of_the_library, read_tokenizer
from .recipe import Recipe

#: Files beside tokenizer.json in which ``AutoTokenizer`` may look for tokens and ids, and others that it reads.
_WITH_IDS = ("tokenizer_config.json", "added_tokens.json", "vocab.json")
_OTHERS = ("special_tokens_map.json", "merges.txt", "vocab.txt", "chat_template.jinja", "tokenizer.model")
#: Most bytes of each of them.
MOST_TABLE = 32 << 20


def write_tokenizer(recipe: Recipe, path: Path) -> None:
    """Load the run's tokenizer as training does (``AutoTokenizer``) and save its fast form."""
    from transformers import AutoTokenizer

    folder = recipe.tokenizer_folder
    _look_at(recipe)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        size = max(tokenizer.get_vocab().values(), default=-1) + 1  # more than the count if ids have gaps
    except BaseException as error:
        if not of_the_library(error):
            raise
        reason = first_line(error)
        raise ExportError(f"{folder}: no readable tokenizer ({reason}); copy the model's folder again") from error
    if not tokenizer.is_fast:
        raise ExportError(f"{folder}: {type(tokenizer).__name__} has no fast form; put its tokenizer.json there")
    _check_size(recipe, size)
    backend = _backend(folder, tokenizer)
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")  # save() hides why writing failed


def _look_at(recipe: Recipe) -> None:
    """Refuse files that would cost ``AutoTokenizer``, which has no limits of its own, excessive time or memory."""
    folder = recipe.tokenizer_folder
    for name in ("tokenizer.json", *_WITH_IDS, *_OTHERS):
        file = folder / name
        if not os.path.lexists(file):
            continue
        highest = -1
        try:
            if name == "tokenizer.json":
                highest = max(read_tokenizer(file).get_vocab().values(), default=-1)
            elif name in _WITH_IDS:
                highest = _highest(name, read_json(file, MOST_TABLE, MOST_TOKENIZER_VALUES))
            elif (size := check_file(file).st_size) > MOST_TABLE:
                raise ValueError(f"it has {size} bytes, and at most {MOST_TABLE} are read")
        except (OSError, ValueError) as error:
            raise ExportError(
                f"{file}: no readable tokenizer ({first_line(error)}); copy the model's folder again"
            ) from error
        _check_size(recipe, highest + 1)


def _highest(name: str, values: Any) -> int:
    """The highest id in a file of tokens: a table keyed by token, or one keyed by id among the settings."""
    if not isinstance(values, dict):
        raise ValueError("it holds no fields")
    if name != "tokenizer_config.json":
        return max((index for index in values.values() if type(index) is int), default=-1)
    added = values.get("added_tokens_decoder")
    return max((int(index) for index in added if index.isdecimal()), default=-1) if isinstance(added, dict) else -1


def _check_size(recipe: Recipe, size: int) -> None:
    if size > recipe.text_size:
        raise ExportError(
            f"{recipe.tokenizer_folder}: wrong vocabulary size: the tokenizer has {size} tokens, "
            f"config.json says vocab_size = {recipe.text_size}; both must be the same model's"
        )


def _backend(folder: Path, tokenizer: Any) -> Tokenizer:
    """The folder's own ``tokenizer.json`` if there is one, with the tokens that the configuration adds to it.

    transformers 5 rebuilds a Qwen2 tokenizer from its vocabulary and merges, and drops the file's normalizer and
    pre-tokenizer; transformers 4, which the published code was trained with, uses the file unchanged.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return tokenizer.backend_tokenizer
    backend = read_tokenizer(file)
    for index, token in sorted(tokenizer.added_tokens_decoder.items()):
        if backend.token_to_id(token.content) is None:
            backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            found = backend.token_to_id(token.content)
            raise ExportError(
                f"{file}: token {shown(token.content)} is {found}, tokenizer_config.json says {index}; "
                "copy the model's folder again"
            )
    return backend
