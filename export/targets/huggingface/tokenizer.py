"""A run's tokenizer in the model's own ids, with UALM's special tokens and its chat layout, for transformers.

A bundle keeps the tokenizer unchanged and shifts ids into the table's numbering where rows are made. Other engines have
only one id space, so here every id is shifted by ``text_base`` and the special tokens get names. Two of UALM's rules
need care:

- Tokenizer id 0 goes in as pad (id 0 of the table) and comes out as ``text_base``: see ``Vocabulary.text_rows``. The
  token with id 0 therefore keeps id 0, and ``text_base`` gets a name that no text can produce and that decodes to that
  token.
- Id 0 is thus a real token in prompts, so padding has an id that training never uses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ....runtime.errors import ExportError
from ....runtime.text.tokenizer import TextCodec
from ....runtime.vocabulary import BOS, EOS, EOT, MODALITIES, ROLES, SPECIALS, Vocabulary
from ...run.recipe import Recipe
from ...run.tokenizer import write_tokenizer

#: Padding of batches, masked in attention. The last special id, which UALM leaves unused.
PADDING = SPECIALS - 1
#: Names of the special tokens in chat templates and decoded prompts.
SPECIAL_TOKENS: Mapping[str, int] = {
    f"<|ualm_{name}|>": index
    for name, index in {
        "bos": BOS,
        "eos": EOS,
        "eot": EOT,
        **ROLES,
        **MODALITIES,
        "pad": PADDING,
    }.items()
}
#: Name of the id ``text_base``. No text can produce it, because byte-level tokens use other letters; a reader that
#: takes its decoder from elsewhere than this file shows it unchanged: a wide exclamation mark for Qwen's first token,
#: "!".
_FIRST_TEXT = "\uff01"

#: The layout of ``runtime.conversation.prompt`` for texts. The answer is a text: its modality is part of the prompt,
# not chosen.
CHAT_TEMPLATE = """\
{{- '<|ualm_bos|>' -}}
{%- for message in messages -%}
  {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
    {{- raise_exception('role ' ~ message['role'] ~ ' is unknown; choose system, user, assistant') -}}
  {%- endif -%}
  {%- set text = namespace(value='') -%}
  {%- if message['content'] is string -%}
    {%- set text.value = message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'text' -%}
        {%- set text.value = text.value ~ part['text'] -%}
      {%- else -%}
        {{- raise_exception('content of type ' ~ part['type'] ~ ': only text can be given here') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if not text.value -%}
    {{- raise_exception('text is empty; write what the model should do') -}}
  {%- endif -%}
  {{- '<|ualm_' ~ message['role'] ~ '|><|ualm_text|>' ~ text.value -}}
  {%- if not loop.last and loop.nextitem['role'] == message['role'] -%}
    {{- '<|ualm_eot|>' -}}
  {%- else -%}
    {{- '<|ualm_eos|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|ualm_assistant|><|ualm_text|>' -}}
{%- endif -%}
"""

#: Texts that the bundle's tokenizer and this one must encode alike; checked before the folder is put in place.
_PROBES = (
    "A dog barks twice, then a door slams!",
    "!", " ! !!", "\n\n!?  two  spaces\t",
    "<|im_start|>user\nhello<|im_end|><|endoftext|>",
    "e\u0301 \u4e2d\u6587 \U0001f3ba 3.14 it's we'll",
)  # fmt: skip


def write_hf_tokenizer(recipe: Recipe, vocabulary: Vocabulary, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, with the chat template in the latter, into ``folder``.

    AutoTokenizer of transformers 5 reads vocabulary and merges from there and takes everything else from its
    Qwen2Tokenizer (see :func:`rebuilt_otherwise`); PreTrainedTokenizerFast uses the file unchanged.

    Raises :class:`ExportError` for a tokenizer whose ids cannot be shifted exactly.
    """
    file = folder / "tokenizer.json"
    write_tokenizer(recipe, file)
    plain = TextCodec(file)
    moved = _moved(json.loads(file.read_text(encoding="utf-8")), vocabulary, recipe.tokenizer_folder)
    file.write_text(json.dumps(moved, ensure_ascii=False), encoding="utf-8")
    _check(plain, Tokenizer.from_file(str(file)), vocabulary, recipe.tokenizer_folder)
    names = {index: name for name, index in SPECIAL_TOKENS.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[BOS],
        "eos_token": names[EOS],
        "pad_token": names[PADDING],
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token types, which Qwen2 lacks
        "model_max_length": recipe.backbone.max_positions,
        "clean_up_tokenization_spaces": True,  # as in the published code
        # transformers 5 would ignore the previous line for this kind of tokenizer
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def rebuilt_otherwise(folder: Path) -> list[str]:
    """Steps of ``tokenizer.json`` that AutoTokenizer of the installed transformers replaces with Qwen's own.

    ``folder`` also holds the model's ``config.json``. Nothing is replaced for a run with Qwen's tokenizer.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    found, wanted = (
        json.loads(text) for text in (loaded.backend_tokenizer.to_str(), (folder / "tokenizer.json").read_text("utf-8"))
    )
    return [step for step in ("normalizer", "pre_tokenizer") if found[step] != wanted[step]]


def _moved(tokenizer: dict[str, Any], vocabulary: Vocabulary, where: Path) -> dict[str, Any]:
    model, base = tokenizer["model"], vocabulary.text_base
    if model.get("type") != "BPE":
        raise ExportError(f"{where}: a {model.get('type')} tokenizer; only BPE (Qwen's) can take UALM's ids")
    added: list[dict[str, Any]] = tokenizer.get("added_tokens") or []
    words: dict[str, int] = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    taken = next((name for name in (*SPECIAL_TOKENS, _FIRST_TEXT) if name in words), None)
    if taken is not None:
        raise ExportError(f"{where}: the tokenizer has a token {taken!r}, which is a name of UALM's; rename it")
    first = next((token for token, index in words.items() if index == 0), None)
    if any(token["id"] == 0 for token in added) or first is None:
        raise ExportError(f"{where}: id 0 is {first!r}, not a token of the vocabulary's own; it cannot become padding")
    # a token found in the vocabulary keeps its id there
    ids = {token: index + base for token, index in words.items()} | {first: 0, _FIRST_TEXT: base}
    model["vocab"] = dict(sorted((dict(SPECIAL_TOKENS) | ids).items(), key=lambda item: item[1]))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    specials = [{"id": index, "content": name, **plain} for name, index in SPECIAL_TOKENS.items()]
    tokenizer["added_tokens"] = sorted(
        [*specials, *({**token, "id": token["id"] + base} for token in added)], key=lambda token: token["id"]
    )
    named = {"type": "Replace", "pattern": {"String": _FIRST_TEXT}, "content": first}
    decoder = tokenizer.get("decoder")
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder] if decoder else []
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [named, *steps]}
    return tokenizer


def _check(plain: TextCodec, moved: Tokenizer, vocabulary: Vocabulary, where: Path) -> None:
    """Check that encoding gives the runtime's rows, also next to special tokens, and that all ids decode alike."""
    for probe in _PROBES:
        expected = plain.encode(probe)
        rows = vocabulary.text_rows(expected)[:, 0].tolist()
        found = moved.encode(f"<|ualm_text|>{probe}<|ualm_eos|>", add_special_tokens=False).ids
        if found != [MODALITIES["text"], *rows, EOS]:
            raise ExportError(f"{where}: cannot be joined with UALM's tokens: {probe!r} becomes {found}, not {rows}")
        drawn = [index + vocabulary.text_base for index in expected]
        if moved.decode(drawn, skip_special_tokens=True) != plain.decode_raw(expected):
            raise ExportError(f"{where}: cannot take UALM's ids: {probe!r} is decoded differently from {drawn}")
