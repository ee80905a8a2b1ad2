"""The folder for transformers: it loads, encodes conversations as the runtime does, and gives the same answers token by
token."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, WhisperFeatureExtractor

from support.runs import Run, make_run
from support.sounds import make_sound
from ualm.export.bundle import export_run
from ualm.export.formats import safetensors_writer as stacked
from ualm.export.formats.safetensors_writer import Stacked, write_stacked
from ualm.export.targets.huggingface.target import target, write_weights
from ualm.export.targets.huggingface.tokenizer import rebuilt_otherwise
from ualm.export.targets.registry import ExportRequest, ExportResult
from ualm.export.targets.text_side import read_text_side
from ualm.runtime import ExportError, InputError, Model, OutputError, Sound, TextSampling
from ualm.runtime.conversation.prompt import check_messages, prompt_parts

STEPS = 40
CONVERSATIONS: list[list[tuple[str, str]]] = [
    [("user", "A dog barks twice!")],
    [("user", "!")],
    [("user", " two  spaces,\nand a line !! ! "), ("user", "What instrument is playing in this recording?")],
    [
        ("system", "it's quiet"),
        ("user", "Rain"),
        ("assistant", "It is a piano!"),
        ("assistant", "!"),
        ("user", "e\u0301"),
    ],
    [("user", "<|im_start|>user\nhello<|im_end|>"), ("assistant", "\u4e2d\u6587 \U0001f3ba"), ("user", "3.14")],
]


def export(run: Path, output: Path, **options: Any) -> ExportResult:
    return target(ExportRequest(run=run, output=output, **options), lambda stage, done, total: None)


@dataclass
class Both:
    """One run, exported for both sides."""

    run: Run
    folder: Path
    ours: Model
    network: Any
    tokenizer: Any

    def prompt(self, messages: list[tuple[str, str]], answer: bool = True) -> list[int]:
        written = [{"role": role, "content": content} for role, content in messages]
        return list(
            self.tokenizer.apply_chat_template(written, add_generation_prompt=answer, return_dict=True)["input_ids"]
        )

    def answer(self, prompt: list[int], **options: Any) -> list[int]:
        made = self.network.generate(torch.tensor([prompt]), max_new_tokens=STEPS, **options)
        return list(made[0, len(prompt) :].tolist())


@pytest.fixture(scope="module", params=["text first", "sound first", "af-whisper"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Random models in which stream 0 prefers ids that no text may contain."""
    folder = tmp_path_factory.mktemp("both")
    lean = {"audio": 5.0, "pad": 5.0, "eos": 3.0, "padded_text": 1.0}
    options: dict[str, Any] = {"seed": 21, "lean": lean}
    if request.param == "sound first":
        options |= {"io_order": ("discrete_audio", "text", "continuous_audio"), "head_dim": 16}
    if request.param == "af-whisper":
        options |= {"encoder": "afwhisper"}
    run = make_run(folder / "run", **options)
    export(run.folder, folder / "hf", precision="fp32")
    export_run(run.folder, folder / "bundle")
    network: Any = AutoModelForCausalLM.from_pretrained(folder / "hf")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "hf")
    with Model.open(folder / "bundle", threads=1, verify="never", max_context=512) as model:
        yield Both(run, folder / "hf", model, network, tokenizer)


# ---- text ----


def test_a_conversation_becomes_the_rows_of_the_runtime(both: Both) -> None:
    vocabulary, text = both.ours.bundle.manifest.vocabulary, both.ours.resources.tokenizer
    for messages in CONVERSATIONS:
        checked = check_messages(messages, vocabulary, text, lambda sound: None)
        (rows,) = prompt_parts(checked, vocabulary, lambda sound: np.empty(0))
        assert both.prompt(messages, answer=False) == rows[:, 0].tolist()
        assert both.prompt(messages) == [*rows[:, 0].tolist(), 6, 7]


def test_greedy_text_equals_the_runtime_token_by_token(both: Both) -> None:
    finished = set()
    for messages in CONVERSATIONS:
        (expected,) = both.ours.run(messages, modality="text", text=TextSampling(max_steps=STEPS), max_segments=1)
        found = both.answer(both.prompt(messages))
        assert found == expected.rows[:, 0].tolist()
        finished.add(expected.finish)
        # ids of the padded tail, and those that end the text, decode to nothing on both sides
        as_it_is = PreTrainedTokenizerFast.from_pretrained(both.folder)
        assert as_it_is.decode(found, skip_special_tokens=True) == expected.text
    assert finished >= {"eos"}


def test_only_the_generation_config_keeps_other_ids_out(both: Both) -> None:
    prompt = both.prompt(CONVERSATIONS[0])
    facts = json.loads((both.folder / "ualm_text.json").read_text())
    forbidden = {index for first, end in facts["suppress"] for index in range(first, end)}
    assert forbidden == set(both.network.generation_config.suppress_tokens)
    assert len(forbidden) == both.run.vocabulary - both.run.text_size - 2
    free = both.answer(prompt, suppress_tokens=None)
    assert forbidden & set(free), "the model does not prefer the suppressed ids, so this test shows nothing"
    assert not forbidden & set(both.answer(prompt))


def test_the_first_text_id_comes_out_as_it_went_in(both: Both) -> None:
    base = both.run.text_start
    as_it_is = PreTrainedTokenizerFast.from_pretrained(both.folder)
    assert set(as_it_is("!")) == {"input_ids", "attention_mask"}  # everything that a Qwen2 takes
    assert as_it_is.encode("!") == [0]
    assert as_it_is.decode([base]) == "!"
    # transformers 5 uses the decoder of its Qwen2Tokenizer, which does not know this name: docs/huggingface.md
    assert both.tokenizer.decode([base]) in ("!", "\uff01")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "tool", "content": "a"}], "role tool is unknown"),
        ([{"role": "user", "content": ""}], "text is empty"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "content of type audio"),
    ],
)
def test_the_chat_template_refuses_what_it_cannot_say(both: Both, messages: list[Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        both.tokenizer.apply_chat_template(messages)


def test_content_may_come_in_parts(both: Both) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "A dog "}, {"type": "text", "text": "barks"}]}]
    found = both.tokenizer.apply_chat_template(parts, return_dict=True)["input_ids"]
    assert list(found) == both.prompt([("user", "A dog barks")], answer=False)


# ---- encoder ----


def test_a_sound_is_heard_as_the_runtime_hears_it(both: Both) -> None:
    listening = both.folder / "listening"
    (name,) = json.loads((listening / "config.json").read_text())["architectures"]
    encoder: Any = getattr(transformers, name, None) or _omni_encoder()
    encoder = encoder.from_pretrained(listening)
    extractor: Any = WhisperFeatureExtractor.from_pretrained(listening)
    adaptor = load_file(listening / "adaptor.safetensors")
    sound = Sound(make_sound(0.7, 16000)[0], 16000)

    wave = sound.samples.reshape(-1)
    normalize = json.loads((both.folder / "ualm_text.json").read_text())["normalize_sound"]
    with torch.no_grad():
        if normalize:
            out = extractor(wave, sampling_rate=16000, do_normalize=True, padding="longest", return_tensors="pt")
            frames = torch.tensor([len(wave) // extractor.hop_length])
            mel = out["input_features"][0, :, : int(frames)]
            heard = encoder(mel, feature_lens=frames, aftercnn_lens=(frames - 1) // 2 + 1).last_hidden_state
        else:
            out = extractor(wave, sampling_rate=16000, return_tensors="pt")
            frames = torch.tensor([len(wave) // extractor.hop_length])
            heard = encoder(out["input_features"]).last_hidden_state[0]
        heard = heard[: (int(frames) + 1) // 2 // 2]
        heard = torch.nn.functional.linear(heard, adaptor["weight"], adaptor["bias"])
    expected = both.ours.resources.features.features(sound, lambda: None)
    assert np.abs(heard.numpy() - expected).max() < 1e-4 * np.abs(expected).max()

    before, behind = (
        both.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for text in (
            "<|ualm_bos|><|ualm_user|><|ualm_audio|>",
            "<|ualm_eot|><|ualm_user|><|ualm_text|>What is it?<|ualm_eos|><|ualm_assistant|><|ualm_text|>",
        )
    )
    embed = both.network.get_input_embeddings()
    prompt = torch.cat([embed(before), heard[None], embed(behind)], dim=1)
    found = both.network.generate(inputs_embeds=prompt, max_new_tokens=STEPS)[0].tolist()
    (answer,) = both.ours.run(
        [("user", sound), ("user", "What is it?")], modality="text", text=TextSampling(max_steps=STEPS), max_segments=1
    )
    assert found == answer.rows[:, 0].tolist()


def _omni_encoder() -> Any:
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

    return Qwen2_5OmniAudioEncoder


# ---- the folder ----


def test_weights_are_the_bits_of_the_checkpoint(tiny_run: Run, tmp_path: Path) -> None:
    made = export(tiny_run.folder, tmp_path / "hf")
    state = torch.load(tiny_run.checkpoint, weights_only=True)["module"]
    found = load_file(tmp_path / "hf" / "model.safetensors")
    wanted = {name for name in state if name.startswith("model.") or name == "lm_head.weight"}
    assert set(found) == wanted
    for name in wanted:
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], state[name]), name
    assert not torch.equal(found["model.embed_tokens.weight"], found["lm_head.weight"])
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert network.dtype == torch.bfloat16
    assert network.config.tie_word_embeddings is False
    assert network.config.vocab_size == tiny_run.vocabulary
    assert torch.equal(network.lm_head.weight, state["lm_head.weight"])
    assert made.result["dtype"] == "bfloat16"
    assert sum(made.result["bytes"].values()) == sum(
        file.stat().st_size for file in (tmp_path / "hf").rglob("*") if file.is_file()
    )


def test_many_files_of_weights_are_one_model(tiny_run: Run, tmp_path: Path) -> None:
    export(tiny_run.folder, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    (tmp_path / "many" / "model.safetensors").unlink()
    side = read_text_side(ExportRequest(run=tiny_run.folder, output=tmp_path / "many"))
    seen: list[tuple[int, int]] = []
    write_weights(side, tmp_path / "many", lambda stage, done, total: seen.append((done, total)), shard=20_000)
    files = sorted(file.name for file in (tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "many"))
    assert set(one) == set(many)
    assert all(torch.equal(one[name], many[name]) for name in one)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert seen[-1] == (index["metadata"]["total_size"],) * 2


class _Rows:
    """A source of one large tensor that records how much of it was requested at once."""

    def __init__(self) -> None:
        self.table = np.arange(5000 * 24, dtype=np.float32).reshape(5000, 24)
        self.largest = 0

    def shape(self, name: str) -> tuple[int, ...]:
        return self.table.shape

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        self.largest = max(self.largest, self.table[rows].size)
        return self.table[rows]


def test_no_more_than_a_block_of_a_tensor_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "BLOCK", 2400)
    source: Any = _Rows()
    tensors = [Stacked("twice", (10000, 24), ("a", "b"))]
    written = list(write_stacked(tmp_path / "file.safetensors", tensors, source, "float32"))
    assert source.largest <= 2400
    assert max(written) <= 4 * 2400
    found = load_file(tmp_path / "file.safetensors")["twice"].numpy()
    assert np.array_equal(found, np.concatenate([source.table, source.table]))


def test_a_tokenizer_that_cuts_otherwise_than_qwens_is_told(tiny_run: Run, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    assert export(run, tmp_path / "qwen").result["notes"] == []
    assert rebuilt_otherwise(tmp_path / "qwen") == []
    file = run / tiny_run.backbone.relative_to(tiny_run.folder) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content))
    (note,) = export(run, tmp_path / "other").result["notes"]
    assert "normalizer" in note
    assert "PreTrainedTokenizerFast" in note
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "other").encode("DOG") == (
        PreTrainedTokenizerFast.from_pretrained(tmp_path / "qwen").encode("dog")
    )


# ---- refusals ----


def _first_token_special(content: dict[str, Any]) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].insert(0, {"id": 0, "content": "!", **plain})


def _name_taken(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<|ualm_eot|>"] = content["model"]["vocab"].pop("Z")


def _word_pieces(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    content["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "!"}


@pytest.mark.parametrize(
    ("change", "said"),
    [(_first_token_special, "id 0 is '!'"), (_name_taken, "<|ualm_eot|>"), (_word_pieces, "WordLevel")],
)
def test_a_tokenizer_whose_ids_cannot_be_moved_is_refused(
    tiny_run: Run, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    folder = run / tiny_run.backbone.relative_to(tiny_run.folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ExportError) as caught:
        export(run, tmp_path / "hf")
    assert said in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_numbers_that_float16_cannot_hold_are_refused_and_nothing_is_left(tiny_run: Run, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    checkpoint = run / tiny_run.checkpoint.relative_to(tiny_run.folder)
    saved = torch.load(checkpoint, weights_only=True)
    saved["module"]["model.layers.1.mlp.down_proj.weight"][3, 4] = 70000.0
    torch.save(saved, checkpoint)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.down_proj\.weight.*bf16"):
        export(run, tmp_path / "hf", precision="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_what_does_not_apply_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    order = ExportRequest(run=tiny_run.folder, output=tmp_path / "hf")
    for options, said in (
        ({"encoder_precision": "int8"}, "--encoder-precision"),
        ({"calibrate": tmp_path}, "--calibrate"),
        ({"accept_quality": True}, "--accept-quality"),
        ({"post_codec": lambda codec: codec}, "--sound-rate"),
    ):
        with pytest.raises(InputError, match=said):
            target(replace(order, **options), lambda stage, done, total: None)
    with pytest.raises(ExportError, match=r"int4.*fp32, bf16, fp16"):
        export(tiny_run.folder, tmp_path / "hf", precision="int4")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").touch()
    with pytest.raises(OutputError, match="exists already"):
        export(tiny_run.folder, tmp_path / "hf")


def test_the_last_line_tells_size_time_and_a_command_that_works(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = export(tiny_run.folder, tmp_path / "the hf").lines[-1]
    found = re.search(r"; [\d.]+ (bytes|KiB|MiB) in [\d.]+ s; next: (python -c .*)$", last)
    assert found is not None, last
    *_, code = shlex.split(found[2])
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_the_command_knows_its_engines(
    ualm: Callable[..., tuple[int, str, str]], tiny_run: Run, tmp_path: Path
) -> None:
    status, out, _ = ualm(
        "export", tiny_run.folder, "--engine", "huggingface", "-o", tmp_path / "hf", "--precision", "fp32", "--json"
    )
    assert status == 0
    told = json.loads(out)
    assert told["folder"] == str(tmp_path / "hf")
    assert told["total_bytes"] == sum(file.stat().st_size for file in (tmp_path / "hf").rglob("*") if file.is_file())
    assert told["total_seconds"] > 0 and told["next"].startswith("python -c ")
    status, _, err = ualm("export", tiny_run.folder, "--engine", "vllm", "-o", tmp_path / "other")
    assert status == 1
    assert "--engine vllm: choose onnxruntime, huggingface" in err
