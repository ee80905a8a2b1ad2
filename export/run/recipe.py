"""Finds the files of a training run and reads its ``train.yaml``.

The recipe names the tokenizer, the backbone, the codec and the encoder. Only their configurations are read from there;
all weights come from the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ...runtime.errors import ExportError
from ...runtime.files.reading import first_line, shown
from ...runtime.files.writing import resolved
from ...runtime.vocabulary import STREAMS
from .config import Fields, read_json
from .qwen2 import BackboneShape, backbone_shape
from .weights import check_alone, find_weights, named_weights, step_of
from .yaml_file import read_yaml

CONFIG_FILE = "train.yaml"


@dataclass(frozen=True)
class RunFiles:
    """The files of a run: ``train.yaml`` and the weights, or the index of theirs; ``step`` is None if no folder name
    gives it."""

    config: Path
    weights: Path
    step: int | None


@dataclass(frozen=True)
class Recipe:
    """The contents of ``train.yaml`` and the configurations that it names: checked, with nothing loaded yet."""

    tokenizer_folder: Path
    backbone: BackboneShape
    codec: Mapping[str, Any]
    encoder_kind: str
    encoder: Mapping[str, Any]
    features: Mapping[str, Any]
    #: Names of the discrete modalities, "text" and "discrete_audio", in vocabulary order.
    vocabulary_order: tuple[str, ...]
    text_size: int
    names: Mapping[str, str]


def find_run(
    run: Path | None, *, config: Path | None = None, weights: Path | None = None, step: int | None = None
) -> RunFiles:
    """Locate ``train.yaml`` and the weights.

    ``run`` is a folder with both files, or the tree that training writes
    (``checkpoints/step_N/global_stepN/mp_rank_00_model_states.pt``); the newest step unless ``step`` is given.
    ``config`` and ``weights`` override either; ``weights`` may be a folder, too. Other names: see ``weights.py``.
    """
    if run is None and (config is None or weights is None):
        raise ExportError("no training run given; name its folder, or both --config and --weights")
    if run is not None and not run.is_dir():
        raise ExportError(f"{run}: no such folder; give the folder of a training run, or --config and --weights")
    found_step = None
    if weights is None:
        assert run is not None
        weights, found_step = find_weights(run, step)
    elif step is not None:
        raise ExportError(f"--step {step}: cannot be combined with --weights, which names one checkpoint already")
    else:
        weights = named_weights(weights)
    if found_step is None:
        found_step = step_of(weights)
    check_alone(weights)
    if config is None:
        assert run is not None
        config = _find_config(run, weights)
    elif not os.path.lexists(config):
        raise ExportError(f"{config}: no such file; --config names the run's {CONFIG_FILE}")
    return RunFiles(config, weights, found_step)


def _find_config(run: Path, weights: Path) -> Path:
    # training runs in the recipe's folder and writes to exp/NAME there: conf/ is two levels up
    places = [run / CONFIG_FILE, run / "conf" / CONFIG_FILE, weights.parent / CONFIG_FILE]
    places.append(resolved(run).parent.parent / "conf" / CONFIG_FILE)
    for place in places:
        if os.path.lexists(place):
            return place
    looked = ", ".join(str(p) for p in dict.fromkeys(places))
    raise ExportError(f"{run}: no {CONFIG_FILE} found (looked for {looked}); name it with --config")


def read_recipe(path: Path) -> Recipe:
    """Read and check ``train.yaml`` and the configurations that it names."""
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        raise ExportError(f"{path}: missing; name the run's {CONFIG_FILE} with --config") from error
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or an impossible date
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise ExportError(
            f"{path}: not a readable YAML file ({where}{first_line(ValueError(reason))}); copy it again, or fix it"
        ) from error
    if not isinstance(values, Mapping):
        raise ExportError(f"{path}: holds no fields; expected a UALM train.yaml")
    top = Fields(path, values)
    top.expect("job_type", "ualm", "ualm", "only UALM training runs can be exported")
    io = top.section("multimodal_io")
    unknown = [name for name in io.values if name not in ("text", "discrete_audio", "continuous_audio")]
    if unknown:
        io.refuse(unknown[0], "unknown modality; text, discrete_audio and continuous_audio are supported")

    text = io.section("text")
    tokenizer_name = text.name("tokenizer_name", "name the tokenizer's folder or hub tag")
    discrete = io.section("discrete_audio")
    _check_discrete(discrete)
    continuous = io.section("continuous_audio")
    model = top.section("model")
    model.expect("model_choice", "parallel", "parallel", "only the parallel multi-stream model is supported")
    backbone_name = model.name("model_hf_tag", "name the backbone's folder or hub tag")
    preprocessor = top.section("preprocessor", required=False)
    preprocessor.expect(
        "audio_input", "continuous_audio", "continuous_audio", "sound is heard through continuous_audio"
    )
    preprocessor.expect("audio_output", "discrete_audio", "discrete_audio", "sound is spoken through discrete_audio")

    codec_name = discrete.name("codec_hf_model_tag", "name the codec's folder")
    encoder_kind, encoder_name, encoder_field = _encoder(continuous)

    folders = _Resolver(path)
    tokenizer_folder = folders.file(tokenizer_name, "config.json", f"{text.prefix}tokenizer_name").parent
    backbone_file = folders.file(backbone_name, "config.json", f"{model.prefix}model_hf_tag")
    backbone = read_json(backbone_file)
    shape = backbone_shape(backbone_file, backbone)
    # as in training, the configuration beside the tokenizer gives the vocabulary size
    tokenizer_config = read_json(tokenizer_folder / "config.json")
    text_size = tokenizer_config.get("vocab_size")
    if type(text_size) is not int or text_size != backbone.get("vocab_size"):
        raise ExportError(
            f"{backbone_file}: vocab_size = {shown(backbone.get('vocab_size'))}, but the tokenizer's "
            f"{tokenizer_folder / 'config.json'} says {shown(text_size)}; both must be the same model's"
        )
    codec = read_json(folders.file(codec_name, "config.json", f"{discrete.prefix}codec_hf_model_tag"))
    encoder = read_json(folders.file(encoder_name, "config.json", encoder_field))
    features_file = folders.optional_file(encoder_name, "preprocessor_config.json")
    return Recipe(
        tokenizer_folder=tokenizer_folder,
        backbone=shape,
        codec=codec,
        encoder_kind=encoder_kind,
        encoder=encoder,
        features=read_json(features_file) if features_file else {},
        vocabulary_order=tuple(name for name in io.values if name != "continuous_audio"),
        text_size=text_size,
        names={
            "tokenizer": tokenizer_name,
            "backbone": backbone_name,
            "codec": codec_name,
            "encoder": encoder_name,
        },
    )


def _check_discrete(discrete: Fields) -> None:
    if discrete.get("ssl_choice") is not None:
        discrete.refuse("ssl_choice", "semantic (SSL) streams are not supported; the recipe leaves it null")
    discrete.expect("codec_choice", "Xcodec", None, "only Xcodec is supported")
    discrete.expect("codec_max_token_per_frame", STREAMS, STREAMS, f"exactly {STREAMS} streams are supported")
    discrete.expect("delay_interleave", True, False, "only the delay pattern (true) is supported")


def _encoder(continuous: Fields) -> tuple[str, str, str]:
    choice = continuous.get("encoder_choice", "huggingface")
    if choice == "huggingface":
        field = "encoder_hf_model_tag"
        name = continuous.name(field, "name the encoder's folder or hub tag", "Qwen/Qwen2.5-Omni-7B")
        return "qwen2.5-omni", name, f"{continuous.prefix}{field}"
    if choice == "AFWhisper":
        field = "encoder_local_path"
        name = continuous.name(field, "name the folder of the AF-Whisper encoder")
        return "af-whisper", name, f"{continuous.prefix}{field}"
    continuous.refuse("encoder_choice", 'unknown encoder; "huggingface" (Qwen2.5-Omni) and "AFWhisper" are supported')


class _Resolver:
    """Local folders against the working folder, then train.yaml's; hub names against the local cache; no network."""

    def __init__(self, train_yaml: Path) -> None:
        self.bases = [Path.cwd(), resolved(train_yaml).parent]

    def file(self, name: str, filename: str, field: str) -> Path:
        found = self.optional_file(name, filename)
        if found is None:
            self._absent(name, field, filename)
        return found

    def optional_file(self, name: str, filename: str) -> Path | None:
        local = self._local(name)
        if local is not None:
            # a path that exists but is no file is not treated as absent: it is refused when it is read
            return local / filename if os.path.lexists(local / filename) else None
        return self._cached(name, filename)

    def _local(self, name: str) -> Path | None:
        return next((base / Path(name).expanduser() for base in self.bases if self._folder(base, name)), None)

    @staticmethod
    def _folder(base: Path, name: str) -> bool:
        try:
            return (base / Path(name).expanduser()).is_dir()
        except (OSError, RuntimeError, ValueError):  # a name that no file system accepts, or with an unknown user
            return False

    @staticmethod
    def _cached(name: str, filename: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(name, filename)
        except HFValidationError:  # an absolute or relative path that does not exist is not a hub name
            return None
        return Path(found) if isinstance(found, str) else None

    def _absent(self, name: str, field: str, filename: str = "config.json") -> NoReturn:
        local = self._local(name)
        if local is not None:
            raise ExportError(f"{field} = {shown(name)}: {local / filename} is missing; copy the model's folder again")
        if not _is_hub_name(name):
            where = " or ".join(str(base) for base in dict.fromkeys(self.bases))
            raise ExportError(f"{field} = {shown(name)}: no such folder, seen from {where}; correct the name")
        raise ExportError(
            f"{field} = {shown(name)}: neither a local folder nor in the local Hugging Face cache; fetch it with: "
            f'hf download {name} --include "*.json" --include "merges.txt"'
        )


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith((".yaml", ".json"))
