"""The cases on which the product and the reference are compared: a run, the messages, and the known form of the
answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from support.sounds import make_sound


@dataclass(frozen=True)
class Case:
    """A run, the messages, and the known form of its greedy answer.

    ``run``: keywords of :func:`make_run`. ``messages`` and ``options``: arguments of ``Reference.run``, to be compared
    in both modes. ``later``: messages of further turns of the same conversation, each with the same options (for
    ``mode="fixed"``). ``fixed`` and ``reference``: the segments of the first turn in that mode, as (modality, ended_by)
    pairs: the seed was chosen for them, and a test checks them.
    """

    run: dict[str, Any]
    messages: list[tuple[str, Any]]
    options: dict[str, Any]
    fixed: list[tuple[str, str]]
    reference: list[tuple[str, str]]
    later: list[list[tuple[str, Any]]] = field(default_factory=list)


def _greedy(max_steps: int, guidance: float = 1.0) -> dict[str, float]:
    return {"temperature": 0.0, "top_k": 20, "guidance": guidance, "max_steps": max_steps}


def _options(
    modality: Any,
    audio: dict[str, float] | None = None,
    text: dict[str, float] | None = None,
    max_segments: int = 3,
) -> dict[str, Any]:
    return {
        "modality": modality,
        "max_segments": max_segments,
        "audio": audio or _greedy(20, 3.0),
        "text": text or _greedy(16),
    }


_CAPTION = [("user", "A dog barks twice, and then a door slams.")]
_QUESTION = ("user", "What instrument is playing?")
_ODD = {
    "hidden": 36, "heads": 3, "kv_heads": 1, "layers": 3, "ffn": 52, "codebook_size": 7, "quantizers": 9,
    "codec_ratios": (3, 2), "codec_width": 12, "encoder_width": 18, "encoder_heads": 3, "encoder_output": 22,
    "mel_bins": 40, "n_window": 7,
}  # fmt: skip

_GROUPED = {"hidden": 64, "heads": 4, "kv_heads": 2}

CASES: dict[str, Case] = {
    "caption_guidance_1": Case(
        run={"seed": 2},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(24, 1.0)),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "caption_guidance_3": Case(
        run={"seed": 14},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(24, 3.0)),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "text_answer": Case(
        run={"seed": 4, "lean": {"eos": 4.0}},
        messages=_CAPTION,
        options=_options("text", text=_greedy(32)),
        fixed=[("text", "eos")],
        reference=[("text", "eos")],
    ),
    "text_max_steps": Case(
        run={"seed": 4},
        messages=_CAPTION,
        options=_options("text", text=_greedy(12)),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
        later=[[("user", "It is a piano.")]],
    ),
    "omni_22k_mono": Case(
        run={"seed": 5},
        messages=[("user", (make_sound(0.7, 22050), 22050)), _QUESTION],
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "omni_44k_stereo": Case(
        run={"seed": 6},
        messages=[_QUESTION, ("user", (make_sound(0.53, 44100, channels=2), 44100))],
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "speech_text_first": Case(
        run={"seed": 7},
        messages=[("user", "Transcribe the speech."), ("user", (make_sound(0.45), 16000, "speech"))],
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "afwhisper": Case(
        run={"seed": 9, "encoder": "afwhisper"},
        messages=[("user", (make_sound(0.6), 16000)), _QUESTION],
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "afwhisper_24k_stereo": Case(
        run={"seed": 11, "encoder": "afwhisper", "whisper_seconds": 2},
        messages=[_QUESTION, ("user", (make_sound(1.3, 24000, channels=2), 24000))],
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "odd_lengths": Case(
        run={"seed": 10, "n_window": 7},
        messages=[
            ("user", (make_sound(0.4137), 16000)),
            ("user", (make_sound(0.2001, 11025, seed=1), 11025)),
            _QUESTION,
        ],
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "guidance_after_sound": Case(
        run={"seed": 14},
        messages=[("system", "Describe the sound."), ("user", (make_sound(0.5), 16000)), _QUESTION],
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "text_then_audio": Case(
        run={"seed": 15, "lean": {"eot": 2.5, "eos": 2.5, "text": 4.0, "audio": 5.5}},
        messages=_CAPTION,
        options=_options("text", audio=_greedy(40, 3.0), text=_greedy(32)),
        fixed=[("text", "eot"), ("audio", "eos")],
        reference=[("text", "eot"), ("audio", "eos")],
    ),
    "audio_then_text": Case(
        run={"seed": 4, "lean": {"eot": 2.0, "text": 5.5, "audio": 4.0}},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(40, 3.0)),
        fixed=[("audio", "eot"), ("text", "max_steps")],
        reference=[("audio", "eot"), ("text", "max_steps")],
    ),
    "modality_chosen": Case(
        run={"seed": 10, "lean": {"eot": 3.5, "text": 4.0, "audio": 4.0}},
        messages=_CAPTION,
        options=_options(None, text=_greedy(32), max_segments=2),
        fixed=[("text", "eot"), ("audio", "eot")],
        reference=[("text", "eot"), ("text", "eot")],
    ),
    "modality_chosen_audio": Case(
        run={"seed": 16, "lean": {"text": 4.0, "audio": 4.0}},
        messages=_CAPTION,
        options=_options(None),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "ended_by_pad": Case(
        run={"seed": 85, "lean": {"pad": 1.5}},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(40, 3.0)),
        fixed=[("audio", "pad")],
        reference=[("audio", "max_steps")],
        later=[[("user", "It is a piano.")]],
    ),
    "ended_by_pad_at_once": Case(
        run={"seed": 52, "lean": {"pad": 3.0}},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(16, 3.0)),
        fixed=[("audio", "pad")],
        reference=[("audio", "max_steps")],
    ),
    "ended_by_eos": Case(
        run={"seed": 19, "lean": {"eos": 1.5}},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(40, 3.0)),
        fixed=[("audio", "eos")],
        reference=[("audio", "eos")],
        later=[[("user", "It is a piano.")]],
    ),
    "ended_by_eot_then_audio": Case(
        run={"seed": 36, "lean": {"eot": 1.0, "text": 4.0, "audio": 5.5}},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(30, 3.0), max_segments=2),
        fixed=[("audio", "eot"), ("audio", "eot")],
        reference=[("audio", "eot"), ("audio", "eot")],
    ),
    "max_steps_then_turn": Case(
        run={"seed": 20},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(8, 3.0)),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
        later=[[("user", "It is a piano.")], [("user", (make_sound(0.3), 16000))]],
    ),
    "prompt_with_id_0": Case(
        run={"seed": 22},
        messages=[("system", "!"), ("user", "Hear! A bell rings! And rings!!")],
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "padded_text_drawn": Case(
        run={"seed": 23, "text_size": 384, "lean": {"padded_text": 3.0}},
        messages=_CAPTION,
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "odd_dims": Case(
        run={"seed": 33, **_ODD},
        messages=[("user", (make_sound(0.4), 16000)), _QUESTION],
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "odd_dims_afwhisper": Case(
        run={"seed": 24, **_ODD, "encoder": "afwhisper"},
        messages=[("user", (make_sound(0.4, 48000), 48000)), _QUESTION],
        options=_options("text"),
        fixed=[("text", "max_steps")],
        reference=[("text", "max_steps")],
    ),
    "explicit_head_dim": Case(
        run={"seed": 32, "head_dim": 6, "heads": 3, "kv_heads": 3},
        messages=_CAPTION,
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "audio_before_text": Case(
        run={
            "seed": 33,
            "io_order": ("discrete_audio", "text", "continuous_audio"),
            "lean": {"eot": 4.0, "text": 4.0, "audio": 5.5},
        },
        messages=_CAPTION,
        options=_options("text", text=_greedy(32), max_segments=2),
        fixed=[("text", "eot"), ("audio", "eot")],
        reference=[("text", "eot"), ("audio", "eot")],
    ),
    "recipe_ratios": Case(
        run={"seed": 27, "codec_ratios": (8, 5, 4, 2), "codec_width": 32},
        messages=_CAPTION,
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "weight_norm_weight_g": Case(
        run={"seed": 28, "weight_norm": "weight_g"},
        messages=_CAPTION,
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "weight_norm_parametrizations": Case(
        run={"seed": 40, "weight_norm": "parametrizations"},
        messages=_CAPTION,
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "float32_checkpoint": Case(
        run={"seed": 31, "dtype": "float32"},
        messages=_CAPTION,
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    "checkpoint_tree": Case(
        run={"seed": 40, "layout": "tree"},
        messages=_CAPTION,
        options=_options("audio"),
        fixed=[("audio", "max_steps")],
        reference=[("audio", "max_steps")],
    ),
    # head size 16: ONNX Runtime's own attention operator
    "grouped_guidance_3": Case(
        run={"seed": 6, "lean": {"eos": 1.0}, **_GROUPED},
        messages=_CAPTION,
        options=_options("audio", audio=_greedy(40, 3.0)),
        fixed=[("audio", "eos")],
        reference=[("audio", "eos")],
    ),
    # 1264 rows: prefilled in several parts
    "grouped_long_prompt": Case(
        run={"seed": 3, "lean": {"eos": 0.0}, **_GROUPED},
        messages=[("user", "A dog barks twice, and then a door slams. " * 60)],
        options=_options("audio", audio=_greedy(40, 3.0)),
        fixed=[("audio", "eos")],
        reference=[("audio", "eos")],
    ),
    "grouped_two_segments": Case(
        run={"seed": 32, "lean": {"eot": 2.5, "eos": 2.5, "text": 4.0, "audio": 5.5}, **_GROUPED},
        messages=_CAPTION,
        options=_options("text", audio=_greedy(40, 3.0), text=_greedy(32)),
        fixed=[("text", "eot"), ("audio", "pad")],
        reference=[("text", "eot"), ("audio", "eos")],
    ),
    "grouped_modality_chosen": Case(
        run={"seed": 209, "lean": {"eot": 3.5, "text": 4.0, "audio": 4.0}, **_GROUPED},
        messages=_CAPTION,
        options=_options(None, audio=_greedy(40, 3.0), text=_greedy(32), max_segments=2),
        fixed=[("text", "eot"), ("audio", "eot")],
        reference=[("text", "eot"), ("audio", "eot")],
    ),
}
