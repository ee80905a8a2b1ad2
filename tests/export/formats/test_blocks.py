"""Block formats: how a matrix is rounded, and its layout in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ualm.export.formats.blocks import DIVISORS, LIMITS, block_of, dequantize, pack_int4, quantize, unpack_int4
from ualm.export.formats.store import SCALED_DTYPES, WeightStore
from ualm.export.parts.graph import Graph
from ualm.runtime.errors import ExportError


def matrix(inputs: int = 96, outputs: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize("dtype", SCALED_DTYPES)
def test_no_weight_is_further_off_than_half_a_step_unless_it_is_cut_at_the_end(dtype: str) -> None:
    exact = matrix()
    whole, scales = quantize(exact, dtype)
    low, high = LIMITS[dtype]
    assert whole.dtype == np.int8 and scales.dtype == np.float16
    assert low <= whole.min() and whole.max() <= high
    step = np.repeat(scales.astype(np.float32), block_of(dtype, len(exact)), axis=0)
    inside = (exact / step > low) & (exact / step < high)
    assert inside.mean() > 0.94  # the largest of 32 is at an end
    error = np.abs(dequantize(whole, scales) - exact)
    assert (error[inside] <= step[inside] / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", SCALED_DTYPES)
@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinity"), (-np.inf, "NaN"), (1e8, "1e\\+08.*bf16")])
def test_what_no_block_can_hold_is_refused_by_name(dtype: str, value: float, message: str, tmp_path: Path) -> None:
    damaged = matrix()
    damaged[5, 7] = value
    store = WeightStore("weights.safetensors")
    store.add_matrix("layers.0.q", (96, 40), lambda: damaged, dtype)
    store.lay_out()
    with pytest.raises(ExportError, match=f"layers.0.q: .*{message}"):
        list(store.write(tmp_path))


def test_int4_takes_for_each_block_the_best_of_its_scales() -> None:
    exact = matrix(32, 200)
    whole, scales = quantize(exact, "int4")
    errors = []
    for divisor in DIVISORS["int4"]:
        scale = (np.abs(exact).max(axis=0) / divisor).astype(np.float16).astype(np.float64)
        errors.append(np.square(np.clip(np.rint(exact / scale), -8, 7) * scale - exact).sum(axis=0))
    ours = np.square(dequantize(whole, scales).astype(np.float64) - exact).sum(axis=0)
    np.testing.assert_allclose(ours, np.min(errors, axis=0), rtol=1e-4)
    assert len(np.unique(np.argmin(errors, axis=0))) == len(errors), "each of the scales is the best for some block"


def test_importance_moves_the_error_to_inputs_that_do_not_count() -> None:
    exact = matrix(32, 400)
    importance = np.where(np.arange(32) < 8, 100.0, 1.0).astype(np.float32)

    def error(weight: np.ndarray | None) -> float:
        return float(np.square(dequantize(*quantize(exact, "int4", weight)) - exact)[:8].sum())

    assert error(importance) < 0.95 * error(None)


@pytest.mark.parametrize("dtype", SCALED_DTYPES)
def test_a_matrix_of_zeros_stays_zero(dtype: str) -> None:
    np.testing.assert_array_equal(dequantize(*quantize(np.zeros((64, 2), np.float32), dtype)), 0)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_packing_keeps_every_whole_number(inputs: int, pairs: int, seed: int) -> None:
    whole = np.random.default_rng(seed).integers(-8, 8, (inputs, 2 * pairs)).astype(np.int8)
    np.testing.assert_array_equal(unpack_int4(pack_int4(whole)), whole)


def test_int4_is_packed_as_onnx_packs_it() -> None:
    whole = np.random.default_rng(1).integers(-8, 8, (4, 6)).astype(np.int8)
    theirs = helper.make_tensor("w", TensorProto.INT4, whole.shape, whole.reshape(-1).tolist())
    assert theirs.raw_data or theirs.int32_data
    packed = theirs.raw_data or bytes(value & 0xFF for value in theirs.int32_data)
    assert pack_int4(whole).tobytes() == packed


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", *SCALED_DTYPES])
def test_what_a_graph_multiplies_with_is_what_the_file_holds(tmp_path: Path, dtype: str) -> None:
    """The blob through onnx's own evaluator equals the blob read back, which is close to the matrix."""
    exact = matrix()
    store = WeightStore("weights.safetensors")
    store.add_matrix("w", exact.shape, lambda: exact, dtype)
    store.lay_out()
    list(store.write(tmp_path))
    read = store.read_back(tmp_path, "w")
    tolerance = {"float32": 0, "float16": 1e-3, "bfloat16": 8e-3, "int8": 2e-2, "int8column": 3e-2, "int4": 0.5}
    assert np.abs(read - exact).max() <= tolerance[dtype]

    graph = Graph("product", store)
    x = graph.input("x", ["rows", 96])
    graph.output(graph.linear(x, "w", name="y"), "out", ["rows", 40])
    graph.save(tmp_path, "product.onnx")
    model = onnx.load(tmp_path / "product.onnx")  # with its weights
    onnx.checker.check_model(model)
    x_values = np.random.default_rng(3).standard_normal((5, 96)).astype(np.float32)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x_values})
    np.testing.assert_allclose(found, x_values.astype(np.float64) @ read, atol=1e-4)


@pytest.mark.parametrize(("shape", "dtype"), [((48, 4), "int4"), ((48, 4), "int8"), ((64, 3), "int4")])
def test_a_shape_that_a_format_cannot_hold_is_refused_by_name(shape: tuple[int, int], dtype: str) -> None:
    store = WeightStore("weights.safetensors")
    with pytest.raises(ExportError, match=rf"backbone\.3\.o: {dtype} needs .*{shape[0]} x {shape[1]}.*fp16 or bf16"):
        store.add_matrix("backbone.3.o", shape, lambda: np.zeros(shape, np.float32), dtype)


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    store = WeightStore("weights.safetensors")
    store.add("w", (2,), lambda: np.array([1.0, 7e4], np.float32), "float16")
    store.lay_out()
    with pytest.raises(ExportError, match=r"a weight of 70000 does not fit float16.*bf16"):
        list(store.write(tmp_path))
