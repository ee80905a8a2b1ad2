"""Bundles whose hashes fit but whose contents do not: one error on opening, and nothing is computed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy

from support.bundles import changed_manifest, changed_part
from ualm.export.run import qwen2
from ualm.runtime import BundleError, EngineError, Model
from ualm.runtime.bundle import graphs as bundle_graphs
from ualm.runtime.bundle.bundle import GOLDEN, MANIFEST, WEIGHTS, Bundle, describe_file
from ualm.runtime.bundle.contents import MOST_LAYERS, MOST_PARTS, ROLES
from ualm.runtime.bundle.graph_header import MOST_FIELDS, GraphHeader, read_graph_header
from ualm.runtime.files.safetensors_reader import MappedTensors

Document = dict[str, Any]


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle(folder, verify="always")
    message = str(caught.value)
    assert "\n" not in message and ("export the run again" in message or "export the bundle again" in message)
    assert str(folder) in message
    return message


def numbers_of(document: Document) -> list[tuple[str, str]]:
    sections = ("model", "vocabulary", "codec")
    return [(section, name) for section in sections for name in document[section]]


#: Facts that nothing else in a bundle confirms: how long a conversation may be, and the rate of a codec's samples.
FREE = {("model", "max_positions"), ("codec", "sample_rate")}


@pytest.mark.parametrize(
    "change",
    [lambda value: value - 1, lambda value: value + 1, lambda value: value * 2, lambda value: value // 2, lambda _: 0],
    ids=["one less", "one more", "twice", "half", "zero"],
)
def test_every_size_is_held_against_the_tables_and_the_graphs(tiny_bundle, tmp_path, change):
    document = json.loads((tiny_bundle / MANIFEST).read_text())
    checked = 0
    for section, name in numbers_of(document):
        value = document[section][name]
        if change(value) == value or change(value) < 0 or ((section, name) in FREE and change(value) > 0):
            continue

        def edit(copy: Document, section: str = section, name: str = name, value: int = change(value)) -> None:
            copy[section][name] = value

        folder = changed_manifest(tiny_bundle, tmp_path / f"{section}.{name}", edit)
        assert str(folder) in refusal(folder), (section, name)
        checked += 1
    assert checked >= 12


HUGE = (10**8, 2**31, 10**18, 10**400)


@pytest.fixture
def a_moment() -> Iterator[None]:
    """Refusals are immediate. A loop over a size in the manifest would never end."""

    def late(*about: object) -> None:
        pytest.fail("still at work after 20 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("value", HUGE, ids=["1e8", "2^31", "1e18", "1e400"])
def test_no_size_however_large_takes_time_or_memory(tiny_bundle, tmp_path, value, a_moment):
    document = json.loads((tiny_bundle / MANIFEST).read_text())
    features = [("features", name) for name, found in document["features"].items() if type(found) is int]
    golden = [("golden", name) for name in document["golden"]] if value == 10**400 else []
    names = [*numbers_of(document), *features, *golden]
    for section, name in names:
        if (section, name) in {("features", "max_samples"), ("model", "max_positions")} and value == 10**8:
            continue  # they have their own limits

        def edit(copy: Document, section: str = section, name: str = name) -> None:
            copy[section][name] = value

        message = refusal(changed_manifest(tiny_bundle, tmp_path / f"{section}.{name}", edit))
        assert len(message) < 600 + len(str(tmp_path)), (section, name)
    assert len(names) >= 20


def test_a_body_has_no_more_layers_than_an_export_makes(tiny_bundle, tmp_path, a_moment):
    def change(document: Document) -> None:
        document["model"]["layers"] = MOST_LAYERS + 1

    folder = changed_manifest(tiny_bundle, tmp_path / "bundle", change)
    assert f"model.layers = {MOST_LAYERS + 1}: at most {MOST_LAYERS} is supported" in refusal(folder)
    assert qwen2.MOST_LAYERS == MOST_LAYERS


def test_more_parts_than_a_bundle_has_are_refused(tiny_bundle, tmp_path):
    def change(document: Document) -> None:
        document["parts"] |= {f"more.{number}": document["parts"]["codec"] for number in range(MOST_PARTS)}

    assert f"and {MOST_PARTS} are the most" in refusal(changed_manifest(tiny_bundle, tmp_path / "bundle", change))


@pytest.mark.parametrize("name", ["sample_rate", "n_fft", "hop_length", "n_mels", "window_frames", "max_samples"])
@pytest.mark.parametrize("factor", [0.5, 2, 1000])
def test_every_size_of_the_features_is_held_against_the_encoder(tiny_bundle, tmp_path, name, factor):
    if name == "max_samples" and factor < 1000:
        return  # how much is heard at most; the encoder takes any number of windows

    def change(document: Document) -> None:
        document["features"][name] = int(document["features"][name] * factor)

    refusal(changed_manifest(tiny_bundle, tmp_path / "bundle", change))


def _set(*path: Any) -> Callable[[Document], None]:
    *keys, last, value = path

    def change(document: Document) -> None:
        place = document
        for key in keys:
            place = place[key]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("parts", {}), "parts: backbone, head.text, "),
        (_set("parts", "codec", "file", "encoder.onnx"), "has no input 'latents'"),
        (_set("parts", "head.text", "file", "head_audio.onnx"), "output 'logits' is"),
        (_set("parts", "codec", "precision", "int8"), "parts.codec.precision = 'int8', but precision.codec = 'fp32'"),
        (_set("parts", "codec", "precision", []), r"parts.codec.precision = \[\] must be one of"),
        (_set("parts", "codec", "compute", "float16"), "parts.codec.compute = 'float16', but its graph computes in"),
        (_set("parts", "codec", "weight_bytes", 8), "parts.codec.weight_bytes = 8, but its graph reads"),
        (_set("precision", "heads", "fp16"), "precision.heads = 'fp16'"),
        (_set("precision", "prefill", "int8"), "there is no part backbone.prefill"),
        (_set("precision", None), "precision = None"),
        (_set("quality", []), r"quality = \[\]"),
        (_set("quality", "audio", "top1", "abc"), r"quality.audio.top1 = 'abc'"),
        (_set("quality", "audio", "top1", [1.0, 2.0]), r"quality.audio.top1 = \[1.0, 2.0\]"),
        (_set("quality", "audio", "top1_by_stream", [1.0, None]), "quality.audio.top1_by_stream = "),
        (_set("quality", "audio", "draws", 10**400), "quality.audio.draws = a whole number of"),
        (_set("quality", "pcm", 3.0), r"quality.pcm = 3.0"),
        (_set("calibration", {"source": {}, "prompts": 1, "sounds": 0}), "calibration.source = {}"),
        (_set("calibration", {"source": "a", "prompts": "1", "sounds": 0}), "calibration.prompts = '1'"),
        (_set("calibration", {"source": "a", "prompts": 1, "sounds": -1}), "calibration.sounds = -1"),
        (_set("source", "step", 10**400), "source.step = a whole number of"),
        (_set("created_by", ["ualm"]), r"created_by = \['ualm'\]"),
        (_set("golden", "pcm", "much"), "golden.pcm = 'much' is not a valid tolerance"),
        (_set("golden", "pcm", float("nan")), "golden.pcm = nan is not a valid tolerance"),
        (_set("sampling", "audio", "max_steps", 3), "max_steps = 3 cannot hold one frame"),
        (_set("vocabulary", "text_base", 1), "do not lay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fields_that_contradict_each_other_are_refused(tiny_bundle, tmp_path, change, said):
    with pytest.raises(BundleError, match=said):
        Bundle(changed_manifest(tiny_bundle, tmp_path / "bundle", change), verify="never")


@pytest.mark.parametrize("role", ROLES)
def test_every_part_must_be_there(tiny_bundle, tmp_path, role):
    folder = changed_manifest(tiny_bundle, tmp_path / "bundle", lambda document: document["parts"].pop(role))
    assert f"parts: {role} missing" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("sample_rate", 10**9), ("channels", 10**9), ("delay", 10**9)], ids=lambda value: str(value)
)
def test_a_stage_behind_the_codec_has_sizes_that_a_sound_can_have(tiny_bundle, tmp_path, field, value):
    stage = {"kind": "resample", "sample_rate": 48000, "channels": 2, "delay": 200, "options": {}} | {field: value}
    folder = changed_manifest(tiny_bundle, tmp_path / "bundle", lambda document: document.update(post_codec=stage))
    assert f"post_codec.{field} = {value}, and " in refusal(folder)


# ---- tables ----


def with_blob(bundle: Path, folder: Path, name: str, change: Callable[[Document, bytes], bytes | None]) -> Path:
    """The bundle with a changed header of its blob or golden vector, signed again; ``change`` gets entries and data."""
    content = (bundle / name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    data = change(header, data) or data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (length - len(text))
    made = len(text).to_bytes(8, "little") + text + data

    def sign(document: Document) -> None:
        (folder / name).unlink()
        (folder / name).write_bytes(made)
        document["files"][name] = vars(describe_file(folder / name))

    return changed_manifest(bundle, folder, sign)


TABLES = (
    "embedding",
    "rope.inverse_frequencies",
    "null.keys",
    "null.values",
    "codec.rvq_table",
    "codec.rvq_bias",
    "encoder.mel_filters",
    "backbone.0.input_norm",
    "head.audio",
)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("fault", ["shape", "type", "gone", "place"])
def test_a_table_of_another_shape_type_or_place_is_refused(tiny_bundle, tmp_path, name, fault):
    def change(header: Document, data: bytes) -> None:
        entry = header[name]
        begin, end = entry["data_offsets"]
        if fault == "shape":
            entry["shape"] = [1, *entry["shape"]]
        elif fault == "type":
            entry["dtype"] = {"F32": "I32"}.get(entry["dtype"], "I16")
        elif fault == "gone":
            header["_padding.x"] = header.pop(name)
        else:
            entry["data_offsets"] = [begin + 1, end + 1]

    assert name in refusal(with_blob(tiny_bundle, tmp_path / "bundle", WEIGHTS, change))


def test_two_tables_in_one_place_are_refused(tiny_bundle, tmp_path):
    def change(header: Document, data: bytes) -> None:
        header["null.keys"]["data_offsets"] = header["null.values"]["data_offsets"]

    assert "not a whole safetensors file" in refusal(with_blob(tiny_bundle, tmp_path / "bundle", WEIGHTS, change))


@pytest.mark.parametrize("name", [WEIGHTS, GOLDEN])
@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_bytes_that_belong_to_no_tensor_are_refused(tiny_bundle, tmp_path, name, size, place):
    def change(header: Document, data: bytes) -> bytes:
        return bytes(size) + data if place == "before" else data + bytes(size)

    assert f"{size} bytes behind its last tensor" in refusal(with_blob(tiny_bundle, tmp_path / "bundle", name, change))


@pytest.mark.parametrize("name", ["rope.inverse_frequencies", "null.keys", "codec.rvq_bias", "encoder.mel_filters"])
def test_a_small_table_that_is_not_finite_is_refused(tiny_bundle, tmp_path, name):
    def change(header: Document, data: bytes) -> bytes:
        end = header[name]["data_offsets"][1]
        return data[: end - 4] + np.float32(np.nan).tobytes() + data[end:]

    assert name in refusal(with_blob(tiny_bundle, tmp_path / "bundle", WEIGHTS, change))


def test_weights_that_make_no_sound_are_told_instead_of_one(tiny_bundle, tmp_path):
    def change(header: Document, data: bytes) -> bytes:
        begin, end = header["codec.conv2.bias"]["data_offsets"]
        return data[:begin] + np.float32(np.nan).tobytes() * ((end - begin) // 4) + data[end:]

    folder = with_blob(tiny_bundle, tmp_path / "bundle", WEIGHTS, change)
    with (
        Model.open(folder, engine="onnxruntime", threads=1, max_context=64, verify="never") as model,
        pytest.raises(EngineError, match="the codec gave NaN or infinity"),
    ):
        model.generate("rain", max_steps=12)


# ---- graphs ----


def edited(bundle: Path, folder: Path, role: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    opened = Bundle(bundle, verify="never")
    model = onnx.load(opened.part(role), load_external_data=False)
    change(model)
    return changed_part(opened, folder, role, model.SerializeToString())


def _input_size(model: onnx.ModelProto) -> None:
    dim = next(d for d in model.graph.input[0].type.tensor_type.shape.dim if d.dim_value > 1)
    dim.dim_value += 1


def _input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _output_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "noise"


def _weight_place(model: onnx.ModelProto) -> None:
    weight = next(each for each in model.graph.initializer if each.external_data)
    next(entry for entry in weight.external_data if entry.key == "offset").value = "64"


def _weight_file(model: onnx.ModelProto) -> None:
    weight = next(each for each in model.graph.initializer if each.external_data)
    next(entry for entry in weight.external_data if entry.key == "location").value = "../../etc/passwd"


def _weight_shape(model: onnx.ModelProto) -> None:
    weight = next(each for each in model.graph.initializer if each.external_data)
    weight.dims.append(1)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("change", [_input_size, _input_type, _output_name, _weight_place, _weight_file, _weight_shape])
def test_a_graph_that_declares_something_else_is_refused(tiny_bundle, tmp_path, role, change):
    folder = edited(tiny_bundle, tmp_path / "bundle", role, change)
    assert Bundle(tiny_bundle, verify="never").part(role).name in refusal(folder)


def test_what_is_read_of_a_graph_is_what_the_onnx_package_reads(tiny_bundle):
    bundle = Bundle(tiny_bundle, verify="never")
    for role in bundle.manifest.parts:
        model, header = onnx.load(bundle.part(role), load_external_data=False), read_graph_header(bundle.part(role))
        for found, values in ((header.inputs, model.graph.input), (header.outputs, model.graph.output)):
            assert list(found) == [value.name for value in values]
            for value in values:
                kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                dims = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
                assert (found[value.name].dtype, list(found[value.name].shape)) == (str(kind), dims)
        outside = [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
        assert list(header.weights) == [each.name for each in outside] and outside
        for each in outside:
            about, weight = {entry.key: entry.value for entry in each.external_data}, header.weights[each.name]
            assert (weight.location, weight.offset, weight.length) == (
                about["location"],
                int(about["offset"]),
                int(about["length"]),
            )
            assert weight.shape == tuple(each.dims)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\xff" * 64, b"\x3a\x05ab", b"\x3a\x00" * 2], ids=str)
def test_a_file_that_is_no_graph_is_named(tiny_bundle, tmp_path, content):
    folder = changed_part(Bundle(tiny_bundle, verify="never"), tmp_path / "bundle", "codec", content)
    assert f"{folder / 'codec.onnx'}: " in refusal(folder)


def small_fields(count: int) -> bytes:
    """A minimal graph followed by so many fields of two bytes each."""
    body = b"\x08\x01" * count
    length = bytearray()
    left = len(body)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    return b"\x3a" + bytes([*length, left]) + body


def test_fields_of_a_graph_are_counted(tmp_path):
    (tmp_path / "a.onnx").write_bytes(small_fields(1000))
    assert read_graph_header(tmp_path / "a.onnx").fields == 1001
    assert read_graph_header(tmp_path / "a.onnx", 1001).fields == 1001
    with pytest.raises(BundleError, match=f"a.onnx: .*more than the {MOST_FIELDS} fields"):
        read_graph_header(tmp_path / "a.onnx", 1000)


def test_a_graph_of_nothing_but_small_fields_is_refused_at_once(tmp_path, a_moment):
    (tmp_path / "a.onnx").write_bytes(small_fields(31 << 20))
    with pytest.raises(BundleError, match="more than the"):
        read_graph_header(tmp_path / "a.onnx")


def test_the_fields_of_all_graphs_are_counted_together_and_each_file_once(tiny_bundle, tmp_path, monkeypatch):
    read: list[Path] = []

    def counting(path: Path, most: int) -> GraphHeader:
        read.append(path)
        return read_graph_header(path, most)

    monkeypatch.setattr(bundle_graphs, "read_graph_header", counting)
    needed = sum(read_graph_header(path).fields for path in tiny_bundle.glob("*.onnx"))

    def change(document: Document) -> None:
        document["parts"] |= {f"codec.{number}": document["parts"]["codec"] for number in range(20)}

    folder = changed_manifest(tiny_bundle, tmp_path / "bundle", change)
    monkeypatch.setattr(bundle_graphs, "MOST_FIELDS", needed)
    Bundle(folder)
    assert sorted(read) == sorted(folder.glob("*.onnx"))
    monkeypatch.setattr(bundle_graphs, "MOST_FIELDS", needed - 1)
    assert "fields that the graphs of a bundle may have" in refusal(folder)


def test_a_cache_that_is_not_stored_in_floats_is_refused(tiny_bundle, tmp_path):
    """Engines take its type from the part's ``compute``, and have no other types for it."""
    bundle = Bundle(tiny_bundle)
    model = onnx.load(bundle.part("backbone"), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_", "present_")):
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    folder = changed_part(bundle, tmp_path / "graph", "backbone", model.SerializeToString())
    named = changed_manifest(folder, tmp_path / "bundle", _set("parts", "backbone", "compute", "int8"))
    assert "its cache is stored in int8; choose float32, float16, bfloat16" in refusal(named)


@pytest.mark.parametrize("shape", [[], [1], [0, 1 << 40]], ids=str)
def test_a_codec_layer_without_a_kernel_is_refused(tiny_bundle, tmp_path, shape):
    name = next(name for name in MappedTensors(tiny_bundle / WEIGHTS) if name.endswith("conv_t1.weight"))

    def change(header: Document, data: bytes) -> bytes:
        size = int(np.prod(shape)) * 4
        begin, end = header[name]["data_offsets"]
        header["_padding.of_the_test"] = {"dtype": "U8", "shape": [end - begin - size]} | {
            "data_offsets": [begin + size, end]
        }
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, begin + size]}
        return data

    blob = with_blob(tiny_bundle, tmp_path / "blob", WEIGHTS, change)

    def without_it(document: Document) -> None:
        for role in ("codec", "codec.stream"):
            part = document["parts"][role]
            graph = onnx.load(blob / part["file"], load_external_data=False)
            kept = [weight for weight in graph.graph.initializer if weight.name != name]
            del graph.graph.initializer[:], part["weight_bytes"]
            graph.graph.initializer.extend(kept)
            (tmp_path / "bundle" / part["file"]).unlink()
            (tmp_path / "bundle" / part["file"]).write_bytes(graph.SerializeToString())
            document["files"][part["file"]] = vars(describe_file(tmp_path / "bundle" / part["file"]))

    assert f"{name} has a kernel of" in refusal(changed_manifest(blob, tmp_path / "bundle", without_it))


# ---- the golden vector ----


@pytest.mark.parametrize("fault", ["shorter", "type", "gone", "nan", "outside", "long"])
@pytest.mark.parametrize("name", ["rows", "codes", "sound", "logits.audio", "pcm", "features"])
def test_a_golden_vector_of_another_model_is_refused(tiny_bundle, tmp_path, name, fault):
    tensors = {key: np.array(values) for key, values in MappedTensors(tiny_bundle / GOLDEN).items()}
    values = tensors[name]
    whole = values.dtype.kind == "i"
    if fault == "shorter":
        # the prompt minus a row is also a prompt, and the sound minus a sample gives as many features
        tensors[name] = values[: 0 if name in ("rows", "sound") else len(values) - 1]
    elif fault == "type":
        tensors[name] = values.astype(np.int64 if whole else np.float16)
    elif fault == "gone":
        del tensors[name]
    elif fault == "nan" and not whole:
        values.flat[-1] = np.nan
    elif fault == "outside" and whole:
        values.flat[-1] = np.iinfo(values.dtype).max
    elif fault == "long" and name == "rows":
        tensors[name] = np.repeat(values, 9, axis=0)
    else:
        return
    content = safetensors.numpy.save(tensors)

    def sign(document: Document) -> None:
        (tmp_path / "bundle" / GOLDEN).unlink()
        (tmp_path / "bundle" / GOLDEN).write_bytes(content)
        document["files"][GOLDEN] = vars(describe_file(tmp_path / "bundle" / GOLDEN))

    assert GOLDEN in refusal(changed_manifest(tiny_bundle, tmp_path / "bundle", sign))


def test_a_bundle_without_a_golden_vector_opens_for_the_export_that_makes_it(tiny_bundle, tmp_path):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "whole"))
    (folder / GOLDEN).unlink()
    unfinished = changed_manifest(folder, tmp_path / "bundle", lambda document: document["files"].pop(GOLDEN))
    Bundle(unfinished, verify="never")
