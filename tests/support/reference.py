"""The slow, obvious reference: the published algorithm in plain torch, for parity tests.

It deliberately contains nothing clever. The whole head is multiplied for all eight streams, masks are minus infinity
over the whole vocabulary, the null branch is a real prefill of zero rows with its own cache, and everything is float32
(from the values that the checkpoint stores). It shares no code with the product.

``mode="reference"`` is the algorithm as published, defects included; ``mode="fixed"`` ends sounds by draining the delay
pattern, feeds only the assistant row between segments, and closes a turn that ran into ``max_steps``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
import yaml
from transformers import (
    AutoTokenizer,
    DynamicCache,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
    XcodecConfig,
    XcodecModel,
)
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

STREAMS = 8
SPECIALS = 256
PAD, BOS, EOS, EOT = 0, 1, 2, 3
ROLE_IDS = {"system": 4, "user": 5, "assistant": 6}
MODALITY_IDS = {"text": 7, "audio": 8, "speech": 9, "image": 10, "video": 11, "toolcall": 12}
CHOOSABLE = ("audio", "text", "image", "video", "toolcall")

AUDIO_DEFAULTS = {"temperature": 0.8, "top_k": 20, "guidance": 3.0, "max_steps": 1024}
TEXT_DEFAULTS = {"temperature": 0.0, "top_k": 20, "guidance": 1.0, "max_steps": 1024}


class UnsupportedModality(ValueError):
    """The model chose image, video or toolcall."""


@dataclass
class RefSegment:
    """One segment of a turn.

    ``rows`` int64 ``[R, 8]``, the stop row included when there is one. ``codes`` int64 ``[8, T]`` and ``pcm`` float32
    ``[T * hop]`` for a sound (T is 0 where the published loop stopped before row 8), ``text`` for text. ``logits``: of
    each step, mixed, -inf where the modality forbids, float32 ``[8, vocabulary]``. ``modality_logits``: stream 0 at the
    ``assistant`` row, unmasked, ``[vocabulary]``. ``ended_by``: what stream 0 drew to end it ("pad", "eos", "eot") or
    "max_steps"; ``stop``: "eos", "eot" or None (no stop row). ``margin``: smallest gap between the best and the second
    best candidate of any choice made, in standard deviations of the candidates' logits; a greedy path can only be
    compared while this is far above float32 rounding.
    """

    modality: str
    rows: np.ndarray
    text: str | None
    codes: np.ndarray | None
    pcm: np.ndarray | None
    logits: list[np.ndarray]
    modality_logits: np.ndarray
    ended_by: str
    stop: str | None
    margin: float


@dataclass
class _Drawn:
    """The result of a segment's loop."""

    rows: list[list[int]] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    margin: float = math.inf
    ended_by: str = "max_steps"
    stop: int | None = None


class Reference:
    """A training run, loaded the way the published code loads it: ``Reference(folder of the run)``."""

    def __init__(self, run_folder: str | Path) -> None:
        folder = Path(run_folder)
        self.train_yaml = next(p for p in (folder / "train.yaml", folder / "conf" / "train.yaml") if p.is_file())
        self.config: dict[str, Any] = yaml.safe_load(self.train_yaml.read_text())
        state = torch.load(_checkpoint_of(folder), map_location="cpu", weights_only=True)["module"]
        self.state: dict[str, torch.Tensor] = {
            name: value.float() if value.is_floating_point() else value for name, value in state.items()
        }
        self._load_codec()
        self._load_backbone()
        self._load_encoder()
        self._lay_out_vocabulary()

    # ---- loading ----

    def _folder(self, tag: str) -> Path:
        return self.train_yaml.parent / tag

    def _part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name[len(prefix) :]: value for name, value in self.state.items() if name.startswith(prefix)}

    def _load_codec(self) -> None:
        folder = self._folder(self.config["multimodal_io"]["discrete_audio"]["codec_hf_model_tag"])
        self.codec: Any = XcodecModel(XcodecConfig(**_json(folder / "config.json")))
        self.codec.train(False)
        weights = self._part("multimodal_io_dict.discrete_audio.codec_model.")
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):  # torch's older names to its newer ones
            for name in [name for name in weights if name.endswith(old)]:
                weights[f"{name.removesuffix(old)}parametrizations.weight.{new}"] = weights.pop(name)
        for name, module in self.codec.named_modules():
            if name.startswith("acoustic") and f"{name}.parametrizations.weight.original0" in weights:
                torch.nn.utils.parametrizations.weight_norm(module)
        self.codec.load_state_dict(weights, strict=True)
        self.codebook_size = int(self.codec.config.codebook_size)
        self.sample_rate = int(self.codec.config.sample_rate)
        self.hop = int(self.codec.config.hop_length)

    def _load_backbone(self) -> None:
        folder = self._folder(self.config["model"]["model_hf_tag"])
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            self._folder(self.config["multimodal_io"]["text"]["tokenizer_name"]), local_files_only=True
        )
        settings = _json(folder / "config.json")
        self.text_size = int(settings["vocab_size"])
        settings |= {"tie_word_embeddings": False, "vocab_size": self.state["lm_head.weight"].shape[0]}
        settings.pop("torch_dtype", None)
        settings |= {"attn_implementation": "eager", "dtype": "float32"}
        self.lm: Any = Qwen2ForCausalLM(Qwen2Config(**settings))
        self.lm.train(False)
        body = {name: value for name, value in self.state.items() if name.startswith("model.")}
        self.lm.load_state_dict(body | {"lm_head.weight": self.state["lm_head.weight"]}, strict=True)
        streams = self.state["stream_emb.weight"].clone()
        streams[0] = 0.0
        self.streams = streams

    def _load_encoder(self) -> None:
        settings = self.config["multimodal_io"]["continuous_audio"]
        self.is_whisper = settings["encoder_choice"] == "AFWhisper"
        eager: dict[str, Any] = {"attn_implementation": "eager"}
        self.encoder: Any
        if self.is_whisper:
            folder = self._folder(settings["encoder_local_path"])
            self.encoder = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**_json(folder / "config.json"), **eager))
            weights = self._part("multimodal_io_dict.continuous_audio.model.")
        else:
            folder = self._folder(settings["encoder_hf_model_tag"])
            audio_config = _json(folder / "config.json")["thinker_config"]["audio_config"]
            self.encoder = Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**audio_config, **eager))
            weights = self._part("multimodal_io_dict.continuous_audio.model.audio_tower.")
        self.encoder.eval()
        self.encoder.load_state_dict(weights, strict=True)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self.adaptor = {key: self.state[f"adaptor.continuous_audio.{key}"] for key in ("weight", "bias")}

    def _lay_out_vocabulary(self) -> None:
        start = SPECIALS
        for name in self.config["multimodal_io"]:
            if name == "text":
                self.text_start, start = start, start + self.text_size
            elif name == "discrete_audio":
                self.audio_start, start = start, start + STREAMS * (self.codebook_size + 1)
        self.vocabulary = start
        if self.state["lm_head.weight"].shape[0] != start:
            raise ValueError(f"the head has {self.state['lm_head.weight'].shape[0]} rows, the vocabulary {start}")
        banned = {name: torch.ones(STREAMS, start, dtype=torch.bool) for name in ("text", "audio", "modality")}
        for name in CHOOSABLE:
            banned["modality"][0, MODALITY_IDS[name]] = False
        banned["text"][0, self.text_start : self.text_start + self.text_size] = False
        for stream in range(STREAMS):
            pad = self.stream_pad(stream)
            banned["audio"][stream, pad : pad + 1 + self.codebook_size] = False
        for name in ("text", "audio"):
            banned[name][0, [EOS, EOT]] = False
        for name in ("text", "modality"):
            banned[name][1:, PAD] = False
        self.banned = banned

    def stream_pad(self, stream: int) -> int:
        """Id of a stream's pad; code c of that stream is this + 1 + c."""
        return self.audio_start + stream * (self.codebook_size + 1)

    # ---- inputs ----

    def text_ids(self, text: str) -> list[int]:
        """Ids of an input text; tokenizer id 0 becomes pad, as in training."""
        ids = self.tokenizer.encode(text, truncation=True, add_special_tokens=True)
        return [PAD if token == 0 else token + self.text_start for token in ids]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of drawn ids of the whole vocabulary."""
        text = str(self.tokenizer.decode([token - self.text_start for token in ids], skip_special_tokens=True))
        # transformers 5 no longer honours clean_up_tokenization_spaces=True for BPE; the version that the published
        # code was written for does, with this method
        return str(self.tokenizer.clean_up_tokenization(text))

    @torch.no_grad()
    def features(self, sound: Any) -> np.ndarray:
        """Adaptor output float32 ``[L, H]`` of a sound: ``(samples [channels, n], rate)``, or a path."""
        samples, rate, _ = _sound_of(sound)
        target = int(self.extractor.sampling_rate)
        wave = _resample(samples, rate, target)[0]
        hop = int(self.extractor.hop_length)
        if self.is_whisper:
            limit = self.encoder.config.max_source_positions * 2 * hop
            wave = wave[:limit]
            mel_frames = wave.shape[0] // hop
            wave = np.pad(wave, (0, limit - wave.shape[0]))
            mel = self.extractor(wave, sampling_rate=target, return_tensors="np")["input_features"][0]
        else:
            wave = wave[: int(self.extractor.n_samples)]
            out = self.extractor(
                [wave],
                truncation=False,
                return_tensors="np",
                do_normalize=True,
                max_length=wave.shape[0],
                return_token_stamps=True,
                return_attention_mask=True,
                sampling_rate=target,
            )
            mel_frames = int(out["attention_mask"].sum())
            mel = out["input_features"][0, :, :mel_frames]
        length = ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1
        if length <= 0:
            return np.zeros((0, self.lm.config.hidden_size), np.float32)
        if self.is_whisper:
            hidden = self.encoder(torch.from_numpy(mel)[None].float()).last_hidden_state[0]
        else:
            frames = torch.tensor([mel_frames])
            hidden = self.encoder(
                torch.from_numpy(mel).float(), feature_lens=frames, aftercnn_lens=(frames - 1) // 2 + 1
            ).last_hidden_state
        projected = torch.nn.functional.linear(hidden[:length], self.adaptor["weight"], self.adaptor["bias"])
        return projected.numpy()

    def prompt_parts(self, messages: Sequence[tuple[str, Any]], bos: bool = True) -> list[tuple[str, np.ndarray]]:
        """The prompt as ``("rows", int64 [k, 8])`` and ``("sound", float32 [L, H])`` parts, in order."""
        parts: list[tuple[str, np.ndarray]] = [("rows", _rows([BOS] if bos else []))]
        for index, (role, content) in enumerate(messages):
            same_role_follows = index + 1 < len(messages) and messages[index + 1][0] == role
            closing = EOT if same_role_follows else EOS
            if isinstance(content, str):
                parts.append(("rows", _rows([ROLE_IDS[role], MODALITY_IDS["text"], *self.text_ids(content)])))
            else:
                parts.append(("rows", _rows([ROLE_IDS[role], MODALITY_IDS[_sound_of(content)[2]]])))
                parts.append(("sound", self.features(content)))
            parts.append(("rows", _rows([closing])))
        return parts

    @torch.no_grad()
    def embed_rows(self, rows: np.ndarray) -> np.ndarray:
        """Input embeddings float32 ``[T, H]`` of rows int64 ``[T, 8]``: the sum of the eight."""
        embeddings: torch.Tensor = self.lm.model.embed_tokens(torch.from_numpy(np.asarray(rows, np.int64)))
        return embeddings.sum(dim=1).numpy()

    def embed_prompt(self, messages: Sequence[tuple[str, Any]], bos: bool = True) -> np.ndarray:
        """Input embeddings float32 ``[P, H]`` of a whole prompt, without the ``assistant`` row."""
        parts = self.prompt_parts(messages, bos)
        return np.concatenate([part if kind == "sound" else self.embed_rows(part) for kind, part in parts])

    # ---- outputs ----

    @torch.no_grad()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """PCM float32 ``[T * hop]`` of codes int64 ``[8, T]``."""
        if codes.shape[1] == 0:
            return np.zeros(0, np.float32)
        sound: torch.Tensor = self.codec.decode(torch.from_numpy(np.asarray(codes, np.int64))[None]).audio_values
        return sound.flatten().numpy()

    def codes_of(self, rows: np.ndarray) -> np.ndarray:
        """Codes int64 ``[8, T]`` of rows ``[T + 7, 8]`` without stop row: with the delay undone, and a pad as code
        0."""
        frames = max(rows.shape[0] - (STREAMS - 1), 0)
        codes = np.zeros((STREAMS, frames), np.int64)
        for stream in range(STREAMS):
            for frame in range(frames):
                codes[stream, frame] = max(int(rows[frame + stream, stream]) - self.stream_pad(stream) - 1, 0)
        return codes

    def delayed(self, codes: np.ndarray) -> np.ndarray:
        """Rows int64 ``[T + 7, 8]`` of codes ``[8, T]``: stream n a further n rows down, pads elsewhere."""
        frames = codes.shape[1]
        rows = np.zeros((frames + STREAMS - 1, STREAMS), np.int64)
        for row in range(rows.shape[0]):
            for stream in range(STREAMS):
                inside = 0 <= row - stream < frames
                offset = 1 + int(codes[stream, row - stream]) if inside else 0
                rows[row, stream] = self.stream_pad(stream) + offset
        return rows

    def run(self, messages: Sequence[tuple[str, Any]], **options: Any) -> list[RefSegment]:
        """One turn of a fresh conversation; options as in :meth:`Conversation.turn`, and ``mode``."""
        mode = options.pop("mode", "fixed")
        return Conversation(self, mode).turn(messages, **options)


class Conversation:
    """A cache that lives across turns; only the first turn gets ``bos``.

    ``fed`` lists what was written to the cache, in order: ``"sound"`` for a feature row, otherwise the row's eight ids.
    """

    def __init__(self, reference: Reference, mode: str = "fixed") -> None:
        if mode not in ("fixed", "reference"):
            raise ValueError(f"mode is {mode!r}, not 'fixed' or 'reference'")
        self.ref, self.mode = reference, mode
        self.cache = DynamicCache()
        self.fed: list[Any] = []

    @torch.no_grad()
    def turn(
        self,
        messages: Sequence[tuple[str, Any]],
        *,
        modality: str | Sequence[str | None] | None = None,
        max_segments: int = 8,
        audio: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> list[RefSegment]:
        """Listen to ``messages``, then speak until ``eos``, ``max_steps`` or ``max_segments``.

        A message is ``(role, content)``: content a str, or a sound as ``(samples [channels, n], rate)``,
        ``(samples, rate, "speech")``, a Path or ``(Path, "speech")``. ``modality`` forces the first segment's, or as a
        list that of each; None leaves it to the model.
        """
        options = {"audio": AUDIO_DEFAULTS | (audio or {}), "text": TEXT_DEFAULTS | (text or {})}
        forced = [modality] if isinstance(modality, str) or modality is None else list(modality)
        generator = torch.Generator().manual_seed(seed)
        parts = self.ref.prompt_parts(messages, bos=not self.fed)
        segments: list[RefSegment] = []
        while len(segments) < max_segments:
            # the published loop feeds the whole prompt to every segment, on top of the cache that already contains it
            if not segments or self.mode == "reference":
                for kind, part in parts:
                    self._feed(part, kind)
            wanted = forced[len(segments)] if len(segments) < len(forced) else None
            segments.append(self._segment(wanted, options, generator))
            if segments[-1].stop != "eot":
                break
        return segments

    # ---- one segment ----

    def _segment(
        self, wanted: str | None, options: dict[str, dict[str, Any]], generator: torch.Generator
    ) -> RefSegment:
        ref = self.ref
        hidden = self._feed(_rows([ROLE_IDS["assistant"]]))
        choice_logits = self._logits(hidden)
        drawn = _Drawn()
        if wanted is None:
            chosen = self._draw(choice_logits[0], ref.banned["modality"][0], {"temperature": 0}, generator, drawn)
            name = {index: name for name, index in MODALITY_IDS.items()}[chosen]
        else:
            name = wanted
        if name not in ("text", "audio"):
            raise UnsupportedModality(f"the model chose {name}")
        null = None
        if options[name]["guidance"] > 1:
            null = DynamicCache()
            zeros = np.zeros((self.cache.get_seq_length(), STREAMS), np.int64)
            self._through(torch.from_numpy(ref.embed_rows(zeros)), null)
        speak = self._drain_loop if self.mode == "fixed" and name == "audio" else self._plain_loop
        speak(name, options[name], null, generator, drawn)

        rows = np.array(drawn.rows, np.int64).reshape(-1, STREAMS)
        content = rows if drawn.stop is None else rows[:-1]
        codes = ref.codes_of(content) if name == "audio" else None
        return RefSegment(
            modality=name,
            rows=rows,
            text=ref.decode_text(content[:, 0].tolist()) if name == "text" else None,
            codes=codes,
            pcm=ref.decode(codes) if codes is not None else None,
            logits=[step.numpy() for step in drawn.logits],
            modality_logits=choice_logits[0].numpy(),
            ended_by=drawn.ended_by,
            stop={EOS: "eos", EOT: "eot", None: None}[drawn.stop],
            margin=drawn.margin,
        )

    def _plain_loop(
        self,
        name: str,
        options: dict[str, Any],
        null: DynamicCache | None,
        generator: torch.Generator,
        drawn: _Drawn,
    ) -> None:
        """The published loop: every stream draws at every row; eos or eot in stream 0 stops."""
        row = [MODALITY_IDS[name]] + [0] * (STREAMS - 1)
        banned = self.ref.banned[name]
        for _ in range(options["max_steps"]):
            logits = self._mixed(row, banned, options["guidance"], null)
            drawn.logits.append(logits)
            row = [self._draw(logits[n], banned[n], options, generator, drawn) for n in range(STREAMS)]
            drawn.rows.append(row)
            if row[0] in (EOS, EOT):
                drawn.stop = row[0]
                drawn.ended_by = "eos" if row[0] == EOS else "eot"
                break
        self._feed(_rows([row[0]]))  # streams 1-7 are zeroed, whether or not it is a stop row
        if drawn.stop is None and self.mode == "fixed":
            self._feed(_rows([EOS]))

    def _drain_loop(
        self,
        name: str,
        options: dict[str, Any],
        null: DynamicCache | None,
        generator: torch.Generator,
        drawn: _Drawn,
    ) -> None:
        """A sound in fixed mode; ``frames`` is None until stream 0 ends the sound or the reserve is reached."""
        if options["max_steps"] < STREAMS:
            raise ValueError(f"max_steps is {options['max_steps']}; the shortest sound takes {STREAMS} rows")
        row = [MODALITY_IDS[name]] + [0] * (STREAMS - 1)
        banned = self.ref.banned[name]
        pads = [self.ref.stream_pad(n) for n in range(STREAMS)]
        frames: int | None = None
        remembered: int | None = None
        for at in range(options["max_steps"]):
            logits = self._mixed(row, banned, options["guidance"], null)
            drawn.logits.append(logits)
            if frames is None and at == options["max_steps"] - (STREAMS - 1):
                frames = at
            if frames is not None and at == frames + STREAMS - 1:
                drawn.stop = remembered
                if remembered is None:
                    only_stops = torch.ones_like(banned[0])
                    only_stops[[EOS, EOT]] = False
                    drawn.stop = self._draw(logits[0], only_stops, {"temperature": 0}, generator, drawn)
                drawn.rows.append([int(drawn.stop or 0), *pads[1:]])
                self._feed(_rows([int(drawn.stop or 0)]))
                return
            row = list(pads)
            for n in range(STREAMS):
                started = at >= n
                finished = frames is not None and at >= frames + n
                if not started or finished:
                    continue
                forbidden = banned[n].clone()
                if n == 0 and at == 0:
                    forbidden[[EOS, EOT, pads[0]]] = True
                token = self._draw(logits[n], forbidden, options, generator, drawn)
                if n == 0 and token in (pads[0], EOS, EOT):
                    frames = at
                    remembered = None if token == pads[0] else token
                    drawn.ended_by = {pads[0]: "pad", EOS: "eos", EOT: "eot"}[token]
                    token = pads[0]
                row[n] = token
            drawn.rows.append(row)
        self._feed(np.array([row], np.int64))
        self._feed(_rows([EOS]))

    # ---- steps ----

    def _through(self, embeddings: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        output = self.ref.lm.model(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True)
        hidden: torch.Tensor = output.last_hidden_state[0, -1]
        return hidden

    def _feed(self, part: np.ndarray, kind: str = "rows") -> torch.Tensor:
        """Write rows or features to the cache; the last one's hidden state ``[H]`` after the final norm."""
        if part.shape[0] == 0:
            return torch.zeros(0)
        self.fed += ["sound"] * part.shape[0] if kind == "sound" else [tuple(row) for row in part.tolist()]
        return self._through(torch.from_numpy(part if kind == "sound" else self.ref.embed_rows(part)), self.cache)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[8, vocabulary]``: the whole head, for every stream."""
        logits: torch.Tensor = self.ref.lm.lm_head(hidden[None] + self.ref.streams)
        return logits

    def _mixed(self, row: list[int], banned: torch.Tensor, guidance: float, null: DynamicCache | None) -> torch.Tensor:
        rows = np.array([row], np.int64)
        logits = self._logits(self._feed(rows))
        if null is not None:
            null_logits = self._logits(self._through(torch.from_numpy(self.ref.embed_rows(rows)), null))
            logits = guidance * logits + (1 - guidance) * null_logits
        return logits.masked_fill(banned, -math.inf)

    @staticmethod
    def _draw(
        logits: torch.Tensor,
        banned: torch.Tensor,
        options: dict[str, Any],
        generator: torch.Generator,
        drawn: _Drawn,
    ) -> int:
        """One id of one stream; also lowers ``drawn.margin`` to this choice's."""
        logits = logits.masked_fill(banned, -math.inf)
        allowed = logits[~banned]
        if allowed.numel() > 1:
            best = allowed.topk(2).values
            spread = max(float(allowed.std()), 1e-6) if allowed.numel() > 2 else 1.0
            drawn.margin = min(drawn.margin, float(best[0] - best[1]) / spread)
        if options["temperature"] == 0:
            return int(logits.argmax())
        kept = logits.topk(min(options["top_k"], logits.numel()))
        chances = torch.softmax(kept.values / options["temperature"], dim=-1)
        return int(kept.indices[torch.multinomial(chances, 1, generator=generator)])


def _rows(ids: Sequence[int]) -> np.ndarray:
    """Rows with ids in stream 0 and zeros in the others, int64 ``[len(ids), 8]``."""
    rows = np.zeros((len(ids), STREAMS), np.int64)
    rows[:, 0] = ids
    return rows


def _sound_of(content: Any) -> tuple[np.ndarray, int, str]:
    """Samples float32 ``[channels, n]``, rate, and "audio" or "speech"."""
    if isinstance(content, Path):
        content = (content, "audio")
    if isinstance(content[0], Path):
        samples, rate = soundfile.read(content[0], dtype="float32", always_2d=True)
        return np.ascontiguousarray(samples.T), int(rate), content[1]
    samples = np.atleast_2d(np.asarray(content[0], np.float32))
    return samples, int(content[1]), content[2] if len(content) > 2 else "audio"


def _resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """The default of librosa.resample: soxr HQ channel by channel, then cut or zero-pad to ceil(n * ratio)."""
    if rate == target:
        return samples
    length = math.ceil(samples.shape[-1] * (float(target) / rate))
    resampled = np.stack([soxr.resample(channel, rate, target, quality="HQ") for channel in samples])[:, :length]
    return np.pad(resampled, ((0, 0), (0, length - resampled.shape[-1]))).astype(np.float32)


def _checkpoint_of(folder: Path) -> Path:
    """The checkpoint of a flat folder, or the one of the highest step under ``checkpoints``."""
    name = "mp_rank_00_model_states.pt"
    if (folder / name).is_file():
        return folder / name
    steps = sorted((folder / "checkpoints").glob("step_*"), key=lambda step: int(step.name.removeprefix("step_")))
    return next(steps[-1].glob(f"global_step*/{name}"))


def _json(path: Path) -> dict[str, Any]:
    settings = json.loads(path.read_text())
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not an object")
    return settings
