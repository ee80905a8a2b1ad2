"""Every kernel compiles for every architecture, and none spills; needs nvcc."""

from __future__ import annotations

import pytest

from support.cuda import resources as cuda_resources
from support.cuda.resources import ARCHITECTURES, Resources

#: Registers may differ by so many between two compilers before the record counts as stale.
SLACK = 8


@pytest.fixture(scope="module")
def compiled() -> Resources:
    compiler = cuda_resources.nvcc()
    if compiler is None:
        pytest.skip("nvcc is not here")
    return cuda_resources.compile_kernels(compiler)


def test_no_kernel_spills_on_any_architecture(compiled):
    assert compiled
    for kernel, found in compiled.items():
        assert list(found) == [f"sm_{each}" for each in ARCHITECTURES], kernel
        for architecture, needs in found.items():
            assert needs["registers"] > 0
            assert (needs["spill_bytes"], needs["stack_bytes"]) == (0, 0), (kernel, architecture)
            assert needs["shared_bytes"] <= 48 * 1024, (kernel, architecture)


def test_the_record_is_of_these_kernels(compiled):
    """`python tests/support/cuda/resources.py` rewrites it."""
    compiler, kernels = cuda_resources.recorded()
    assert kernels.keys() == compiled.keys()
    same = compiler == cuda_resources.version(str(cuda_resources.nvcc()))
    for kernel, found in compiled.items():
        for architecture, needs in found.items():
            written = kernels[kernel][architecture]
            assert written == needs or (not same and abs(written["registers"] - needs["registers"]) <= SLACK), kernel


def test_the_page_shows_the_record():
    _, kernels = cuda_resources.recorded()
    assert cuda_resources.table_of_page() == cuda_resources.table(kernels)
    assert all(needs["spill_bytes"] == 0 for found in kernels.values() for needs in found.values())


@pytest.mark.skipif(cuda_resources.nvcc() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("name", ["frame_sampler.cu", "kv_cache.cu"])
def test_every_operation_rounds_by_itself_where_bits_must_equal_the_cpus(name, tmp_path):
    """In PTX a plain mul or add may be fused later; with .rn, round to nearest, it may not."""
    operations = cuda_resources.float_operations(str(cuda_resources.nvcc()), name, tmp_path)
    assert {"mul.rn.f32", "add.rn.f32"} <= operations
    assert operations <= {"mul.rn.f32", "add.rn.f32", "div.rn.f32", "mul.f64"}, (
        "mul.f64: top_p, which nothing is added to"
    )
