"""Float8 e4m3 against its definition, and the results of an fp8 bundle against arithmetic written in numpy."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ualm.bench.random_run.run import SHAPES, write_random_run
from ualm.export import bundle as exporter
from ualm.export.bundle import export_run
from ualm.export.formats.float8 import EXPONENTS, LARGEST, dequantize, quantize, round_values, scale_of
from ualm.export.formats.precision import FLOAT8
from ualm.export.formats.store import WeightStore
from ualm.export.parts.graph import Graph
from ualm.export.quality import input_scales
from ualm.export.quality.agreement import PROMPTS as HELD_PROMPTS
from ualm.export.quality.input_scales import MARGIN, InputScales
from ualm.export.quality.reference_body import hidden_states
from ualm.export.run.checkpoint import Checkpoint
from ualm.export.run.qwen2 import BackboneShape
from ualm.export.run.recipe import find_run, read_recipe
from ualm.runtime.bundle.bundle import WEIGHTS, Bundle
from ualm.runtime.engines.device.facts import CudaFacts, GpuFacts
from ualm.runtime.engines.onnxruntime import cuda as onnxruntime_cuda
from ualm.runtime.engines.registry import open_engine
from ualm.runtime.errors import ExportError, InputError


def value_of(code: int) -> float:
    """The number that a code means, from the definition: bias 7, subnormals at exponent 0, NaN where all bits are 1."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, fraction = code >> 3 & 0xF, code & 7
    if exponent == 0xF and fraction == 7:
        return float("nan")
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


#: The finite non-negative numbers, ascending; their index is their code.
NUMBERS = np.array([value_of(code) for code in range(0x7F)])


def rounded(x: np.ndarray) -> np.ndarray:
    """float64: the nearest number for each of ``x``; of two equally near ones, that with an even code; at most 448."""
    found = []
    for value in np.asarray(x, np.float64).reshape(-1):
        distances = np.abs(NUMBERS - min(abs(value), LARGEST))
        nearest = np.flatnonzero(distances == distances.min())  # none for a NaN
        code = next((code for code in nearest if code % 2 == 0), nearest[0] if len(nearest) else 0)
        found.append(np.nan if np.isnan(value) else np.copysign(NUMBERS[code], value))
    return np.array(found).reshape(np.shape(x))


def hard_values() -> np.ndarray:
    """float32: every number and every midpoint between two, each with its neighbours, and values beyond all of them."""
    middles = (NUMBERS[1:] + NUMBERS[:-1]) / 2
    exact = np.concatenate([NUMBERS, middles, [464.0, 480.0, 1e6, np.inf]]).astype(np.float32)
    around = [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf))]
    drawn = np.random.default_rng(0).standard_normal(2000) * np.exp2(np.random.default_rng(1).uniform(-14, 11, 2000))
    positive = np.concatenate([*around, drawn.astype(np.float32)])
    return np.concatenate([positive, -positive, [np.float32(np.nan)]]).astype(np.float32)


# ---- the type ----


def test_every_code_means_what_the_definition_says_and_comes_back() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = dequantize(codes, 1.0)
    np.testing.assert_array_equal(values, [value_of(code) for code in range(256)])
    assert (np.nanmax(values), np.isnan(values).sum()) == (LARGEST, 2)
    finite = ~np.isnan(values)
    again, scale = quantize(values[finite])
    assert float(scale) == 1
    np.testing.assert_array_equal(again, codes[finite])  # including the sign of zero


@pytest.mark.parametrize("exponent", [0, *EXPONENTS])
def test_rounding_is_to_the_nearest_even_and_ends_at_the_largest(exponent: int) -> None:
    """Scales are powers of two, so rounding with one is exactly rounding without."""
    x, scale = hard_values(), 2.0**exponent
    with np.errstate(over="ignore"):
        scaled = np.multiply(x, scale, dtype=np.float32)
    np.testing.assert_array_equal(round_values(scaled, scale), rounded(scaled / np.float64(scale)) * scale)


@given(st.floats(-1e4, 1e4, width=32))
def test_any_number_is_rounded_so(value: float) -> None:
    np.testing.assert_array_equal(round_values(np.array([value], np.float32), 1.0), rounded(np.array([value])))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("exponent", [-14, -3, 0, 5])
def test_onnxruntime_rounds_the_same(dtype: Any, exponent: int) -> None:
    """The CPU engine's rounding at run time: bit for bit, over every hard value."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale"], ["codes"], output_dtype=TensorProto.FLOAT8E4M3FN),
            helper.make_node("DequantizeLinear", ["codes", "scale"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", element, ["n"])],
        [helper.make_tensor_value_info("y", element, ["n"])],
        [numpy_helper.from_array(np.array(2.0**exponent, dtype), "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with np.errstate(over="ignore"):
        x = (hard_values() * np.float32(2.0**exponent)).astype(dtype)
    (found,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(found.astype(np.float32), round_values(x.astype(np.float32), 2.0**exponent))


@given(st.floats(2.0**-40, LARGEST * 2.0 ** EXPONENTS[1]))
def test_a_scale_is_the_least_power_of_two_that_holds_the_peak(peak: float) -> None:
    scale = scale_of(peak)
    exponent = np.log2(scale)
    assert exponent == round(exponent) and float(np.float16(scale)) == scale
    assert np.float16(1) / np.float16(scale) >= np.finfo(np.float16).tiny, "engines multiply by the reciprocal"
    assert peak <= LARGEST * scale * (1 + 1e-15)
    assert exponent == EXPONENTS[0] or peak > LARGEST * scale / 2


def test_scales_end_where_float16_does() -> None:
    assert scale_of(0.0) == 1 and scale_of(1e-30) == 2.0 ** EXPONENTS[0] and scale_of(1e30) == 2.0 ** EXPONENTS[1]
    assert [scale_of(peak) for peak in (448.0, 448.1, 224.0, 224.1)] == [1, 2, 0.5, 1]


# ---- matrices ----


def stored(folder: Path, matrix: np.ndarray) -> WeightStore:
    store = WeightStore("weights.safetensors")
    store.add_matrix("w", matrix.shape, lambda: matrix, FLOAT8)  # type: ignore[arg-type]
    store.lay_out()
    list(store.write(folder))
    return store


def gaussian(inputs: int, outputs: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(3).standard_normal((inputs, outputs))).astype(np.float32)


def test_a_matrix_takes_a_byte_a_weight_and_is_near_by_the_rules_of_the_type(tmp_path: Path) -> None:
    matrix = gaussian(37, 21, 0.03)  # any shape will do
    store = stored(tmp_path, matrix)
    assert store.nbytes == matrix.size + 2 + 2
    read = store.read_back(tmp_path, "w").astype(np.float64)
    scale = scale_of(float(np.abs(matrix).max()))
    np.testing.assert_array_equal(read, rounded(matrix / np.float64(scale)) * scale)
    # half a step: 2^-4 of a number, or half of 2^-9 below the normal range
    assert (np.abs(read - matrix) <= np.maximum(np.abs(matrix) * 2.0**-4, scale * 2.0**-10)).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "NaN or infinity"),
        (-np.inf, "NaN"),
        (2e7, r"2e\+07, .*65504; .*bf16"),
        (-7e4, r"70000, .*65504; .*bf16"),
        (63488.0, r"63488, 65536 in fp8, .*65504; .*bf16"),  # float16 itself can hold it
    ],
)
def test_what_float16_cannot_hold_is_refused_by_name(value: float, message: str, tmp_path: Path) -> None:
    damaged = gaussian(8, 8)
    damaged[5, 7] = value
    with pytest.raises(ExportError, match=f"w: .*{message}"):
        stored(tmp_path, damaged)


def test_the_largest_weight_is_finite_in_float16(tmp_path: Path) -> None:
    matrix = gaussian(8, 8)
    matrix[5, 7] = 63487
    assert np.float16(stored(tmp_path, matrix).read_back(tmp_path, "w")[5, 7]) == 61440


def test_zeros_stay_zero(tmp_path: Path) -> None:
    np.testing.assert_array_equal(stored(tmp_path, np.zeros((4, 6), np.float32)).read_back(tmp_path, "w"), 0)


def test_a_product_is_that_of_rounded_rows_and_rounded_weights(tmp_path: Path) -> None:
    """Through onnx's own evaluator and through ONNX Runtime, as the engine loads it.

    Both round as we do, bit for bit, so that only the sums differ: float32 over 96 terms, 1e-6 of the sum of
    magnitudes.
    """
    matrix = gaussian(96, 40, 0.1)
    store = stored(tmp_path, matrix)
    store.rewrite(tmp_path, "w.input_scale", np.array(scale_of(MARGIN * 3.0), np.float16))
    graph = Graph("product", store)
    x = graph.input("x", ["rows", 96])
    graph.output(graph.linear(x, "w", name="y"), "out", ["rows", 40])
    graph.save(tmp_path, "product.onnx")
    model = onnx.load(tmp_path / "product.onnx")
    onnx.checker.check_model(model)

    rows = np.random.default_rng(4).standard_normal((7, 96)).astype(np.float32)
    rows[3], rows[4] = 1e9, -1e-9  # beyond the range: saturated; below it: zero
    scale = scale_of(6.0)
    left, right = rounded(rows / np.float64(scale)) * scale, store.read_back(tmp_path, "w").astype(np.float64)
    assert np.abs(left[3]).max() == LARGEST * scale and np.abs(left - rows)[:3].max() > 0.01
    expected, tolerance = left @ right, 1e-6 * (np.abs(left) @ np.abs(right))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(tmp_path / "product.onnx", options, providers=["CPUExecutionProvider"])
    for found in (*ReferenceEvaluator(model).run(None, {"x": rows}), *session.run(None, {"x": rows})):
        assert (np.abs(found - expected) <= tolerance).all()


def test_weights_are_widened_once_at_load(tmp_path: Path) -> None:
    """Not in every run, which would cost more than the product."""
    bundle = tmp_path / "bundle"
    run = tmp_path / "run"
    write_random_run(run, SHAPES["tiny"])
    export_run(run, bundle, precision="fp8", accept_quality=True)
    engine = open_engine(None, Bundle(bundle), threads=1, max_context=64)
    options = engine.session_options(engine.body)  # type: ignore[attr-defined]
    engine.close()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(str(bundle / "backbone_grouped.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx", load_external_data=False).graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 4 * SHAPES["tiny"].layers


# ---- input scales ----


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float8") / "run"
    write_random_run(folder, SHAPES["tiny"])
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return Bundle(export_run(run, run.parent / "bundle", precision="fp8", accept_quality=True).bundle, verify="always")


def body_of(bundle: Bundle, run: Path, **changes: Any) -> tuple[dict[str, np.ndarray], BackboneShape]:
    """The body's tensors as numbers, read from the file by its rules alone; and its shape."""
    shape = read_recipe(find_run(run).config).backbone
    tensors: dict[str, np.ndarray] = {}
    names = set(bundle._tables)
    for name in (n for n in names if n.startswith(("backbone.", "rope."))):
        values = bundle.table(name)
        if f"{name}.scale" in names:
            values = NUMBERS_BY_CODE[values] * float(bundle.table(name + ".scale"))
        tensors[name] = values.astype(np.float32)
    return tensors, dataclasses.replace(shape, **changes)


NUMBERS_BY_CODE = np.array([value_of(code) for code in range(256)])


def test_a_bundle_says_what_is_stored_in_what(bundle: Bundle) -> None:
    assert dict(bundle.manifest.precision) == {
        "backbone": "fp8",
        "heads": "int8",
        "encoder": "fp16",
        "codec": "fp16",
        "prefill": "none",
    }
    parts = bundle.manifest.parts
    assert (parts["backbone"].precision, parts["backbone"].compute) == ("fp8", "float16")
    assert (parts["head.audio"].precision, parts["head.modality"].precision) == ("int8", "fp32")
    for name in ("qkv", "o", "gate_up", "down"):
        assert bundle._tables.stored_as(f"backbone.0.{name}") == "F8_E4M3"
    assert bundle.table("backbone.0.qkv_bias").dtype == bundle.table("backbone.0.input_norm").dtype == np.float32


def test_no_scale_is_made_up(bundle: Bundle) -> None:
    """Each is a power of two, and no two layers have the same scales everywhere by accident."""
    scales = [float(bundle.table(name)) for name in bundle._tables if name.endswith(".input_scale")]
    assert len(scales) == 4 * bundle.manifest.model.layers
    assert all(np.isfinite(scale) and np.log2(scale) % 1 == 0 for scale in scales) and len(set(scales)) > 2


def test_scales_leave_twice_of_what_was_seen(run: Path, tmp_path: Path) -> None:
    """From our own rows: the largest number at each product, found by a second pass over the stored weights."""
    from ualm.export.parts.backbone import BackbonePlan

    checkpoint, shape = Checkpoint(find_run(run).weights), read_recipe(find_run(run).config).backbone
    store = WeightStore("weights.safetensors")
    BackbonePlan(checkpoint, shape, store, FLOAT8)
    store.lay_out()
    list(store.write(tmp_path))
    assert np.isnan(store.read_back(tmp_path, "backbone.0.qkv.input_scale")), "no scale before rows were seen"
    rows = [np.random.default_rng(n).standard_normal((n, shape.hidden_size)).astype(np.float32) for n in (5, 9)]
    scales = InputScales(tmp_path, store, shape)
    scales.see(rows[:1])
    first = dict(scales.peaks)
    scales.see(rows[1:])
    peaks: dict[str, float] = {}
    for sequence in rows:
        hidden_states(
            lambda name: store.read_back(tmp_path, name),
            shape,
            [sequence],
            on_product=lambda name, x: peaks.update({name: max(peaks.get(name, 0.0), float(x.abs().max()))}),
        )
    assert peaks == pytest.approx(scales.peaks, rel=1e-5) and len(peaks) == 4 * shape.layers
    assert any(scales.peaks[name] > peak for name, peak in first.items()), "a second pass adds to the first"
    for name, peak in scales.peaks.items():
        scale = float(store.read_back(tmp_path, f"{name}.input_scale")[0])
        assert LARGEST * scale / 2 < MARGIN * peak <= LARGEST * scale


def test_what_is_asked_while_scaling_is_not_what_is_measured() -> None:
    assert not set(input_scales.PROMPTS) & set(HELD_PROMPTS)


def test_values_that_a_gpu_could_not_hold_are_refused(run: Path, tmp_path: Path) -> None:
    from ualm.export.parts.backbone import BackbonePlan

    checkpoint, shape = Checkpoint(find_run(run).weights), read_recipe(find_run(run).config).backbone

    class Loud:
        """The checkpoint with a norm that makes its rows a million times larger."""

        def __getattr__(self, name: str) -> Any:
            return getattr(checkpoint, name)

        def read(self, name: str, *rows: Any) -> np.ndarray:
            return checkpoint.read(name, *rows) * (1e6 if name == "model.layers.2.input_layernorm.weight" else 1)

    store = WeightStore("weights.safetensors")
    BackbonePlan(Loud(), shape, store, FLOAT8)  # type: ignore[arg-type]
    store.lay_out()
    list(store.write(tmp_path))
    rows = np.random.default_rng(0).standard_normal((4, shape.hidden_size)).astype(np.float32)
    with pytest.raises(ExportError, match=r"backbone\.2\.qkv: is multiplied with values up to .*65504.*bf16"):
        InputScales(tmp_path, store, shape).see([rows])


@pytest.mark.parametrize(("given", "said"), [(False, "the scales of fp8"), (True, "--calibrate")])
def test_what_goes_wrong_while_scaling_is_laid_to_what_was_asked_for(
    run: Path, tmp_path: Path, given: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise InputError("the prompt is too long")

    monkeypatch.setattr(exporter, "rows_read", fail)
    examples = tmp_path / "prompts.txt"
    examples.write_text("bells\n", encoding="utf-8")
    with pytest.raises(ExportError, match=f"^{said}: the prompt is too long"):
        export_run(run, tmp_path / "bundle", precision="fp8", calibration=examples if given else None)


def test_calibration_adds_what_it_is_given_to_what_is_built_in(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    examples = tmp_path / "prompts.txt"
    examples.write_text("wind in dry leaves, " * 20 + "\nbells\n", encoding="utf-8")
    told: list[tuple[str, int, int]] = []
    made = export_run(
        run,
        tmp_path / "bundle",
        precision="fp8",
        calibration=examples,
        accept_quality=True,
        progress=lambda *step: told.append(step),
    )
    layers = bundle.manifest.model.layers
    assert [step for step in told if step[0] == "calibrate"][-1] == ("calibrate", 4 * layers, 4 * layers)
    ours = Bundle(made.bundle, verify="always")
    names = [name for name in bundle._tables if name.endswith(".input_scale")]
    assert all(float(ours.table(name)) >= float(bundle.table(name)) for name in names)
    for name in ("backbone.3.down", "head.audio", "embedding"):  # only scales are fitted, and weights are unchanged
        np.testing.assert_array_equal(ours.table(name), bundle.table(name))


# ---- the engine ----


def in_numpy(x: np.ndarray, tensors: dict[str, np.ndarray], bundle: Bundle, shape: BackboneShape) -> np.ndarray:
    """Hidden state of the last row, by definition: rounded rows times the stored weights, in float32."""

    def round_input(name: str, rows: np.ndarray) -> np.ndarray:
        scale = float(bundle.table(f"{name}.input_scale"))
        return (rounded(rows / np.float64(scale)) * scale).astype(np.float32)

    return hidden_states(tensors.__getitem__, shape, [x], round_input=round_input)[0][-1]


def test_the_engine_computes_the_definition(run: Path, bundle: Bundle) -> None:
    """Twelve short prompts, and the modality logits after them.

    Rounding is not smooth: a difference of one unit in the last place before it may become a whole step of the type.
    For most prompts no value is so close to a midpoint, and only float32 rounding remains (1e-5). For no prompt may the
    difference exceed the effect of the type itself on the logits.
    """
    tensors, shape = body_of(bundle, run)
    head = bundle.table("head.modality")
    engine = open_engine(None, bundle, threads=1, max_context=64)
    exact = open_engine(None, Bundle(export_run(run, run.parent / "fp32").bundle), threads=1, max_context=64)
    vocabulary, errors, losses = bundle.manifest.vocabulary, [], []
    for seed in range(12):
        ids = np.random.default_rng(seed).integers(1, vocabulary.text_size, 4)
        rows = vocabulary.text_rows(ids.tolist())
        found = []
        for each in (engine, exact):
            sequence = each.open_sequence()
            sequence.prefill([rows])
            found.append(sequence.modality_logits())
        table = bundle.table("embedding")
        x = (table[rows].astype(np.uint32) << 16).view(np.float32).sum(axis=1)
        expected = in_numpy(x, tensors, bundle, shape) @ head
        errors.append(np.abs(found[0] - expected).max() / np.abs(expected).max())
        losses.append(np.abs(found[1] - expected).max() / np.abs(expected).max())
    engine.close()
    exact.close()
    assert np.median(errors) < 1e-5 and np.median(losses) > 1e-3
    assert max(errors) < max(losses)


def with_input_scales(bundle: Bundle, folder: Path, scale: float) -> Bundle:
    """A copy with one scale for all inputs."""
    shutil.copytree(bundle.folder, folder)
    with open(folder / WEIGHTS, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in header:
            if name.endswith(".input_scale"):
                file.seek(8 + length + header[name]["data_offsets"][0])
                file.write(np.float16(scale).tobytes())
    return Bundle(folder, verify="never")


def test_what_is_beyond_the_range_is_cut_off_and_nan_is_seen(bundle: Bundle, run: Path, tmp_path: Path) -> None:
    """With scales so small that most values are beyond the range, the logits are those of saturated values."""
    narrow = with_input_scales(bundle, tmp_path / "narrow", 2.0**-11)
    tensors, shape = body_of(narrow, run)
    engine = open_engine(None, narrow, threads=1, max_context=64)
    x = np.random.default_rng(0).standard_normal((3, shape.hidden_size)).astype(np.float32)
    assert (np.abs(x) > LARGEST * 2.0**-11).mean() > 0.5
    sequence = engine.open_sequence()
    sequence.prefill([x])
    expected = in_numpy(x, tensors, narrow, shape) @ narrow.table("head.modality")
    np.testing.assert_allclose(sequence.modality_logits(), expected, atol=1e-5 * np.abs(expected).max())
    # a NaN stays NaN, and the sampler refuses such logits
    x[1, 5] = np.nan
    sequence = engine.open_sequence()
    sequence.prefill([x])
    assert np.isnan(sequence.modality_logits()).all()
    engine.close()


@pytest.mark.parametrize(
    ("sm", "said", "unsaid"),
    [
        (86, r"A GPU \(compute capability 8\.6\) cannot multiply; export the run with --precision int8$", "--engine"),
        (89, r"--engine tensorrt-rtx --target sm89 -o .*, or export the run with --precision int8$", "sm120"),
        (90, r"--engine tensorrt -o .*, or export the run with --precision int8$", "--target"),
        (120, r"--engine tensorrt-rtx --target sm120 -o ", "sm89"),
    ],
)
def test_onnxruntime_on_a_gpu_passes_it_over_and_says_what_to_do(
    bundle: Bundle, sm: int, said: str, unsaid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = CudaFacts(None, (sm,), None, 13000, 13000, "580.65.06", (GpuFacts("A GPU", sm, 1 << 36, 1 << 36),))
    monkeypatch.setattr(onnxruntime_cuda, "cuda_facts", lambda: facts)
    monkeypatch.setattr(onnxruntime_cuda.ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    reason = onnxruntime_cuda.why_not(bundle, 64)
    assert reason is not None and re.search(f"this bundle's body is fp8, .*{said}", reason), reason
    assert unsaid not in reason
