"""The stage ``kernels``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ....runtime.engines.device.device import NUMBER_BYTES
from ..findings import Findings
from . import cache, products, sampler
from .expected import PACKAGED, checksum, load
from .tables import DeviceTables, Tables
from .trials import SUITES, Shape, Suite

if TYPE_CHECKING:
    from ..context import Ground

#: The true head of sound, and a narrower one with as many inputs where time is short.
_HEAD, _NARROW = Shape(1024, 1000, 1536, 256), Shape(96, 1000, 1536, 256)


def check_kernels(ground: Ground, found: Findings) -> None:
    """Every kernel in every format it has; with ``ground.short`` fewer trials of the sampler."""
    device, seed = ground.device, ground.seed
    for name in ("small", "rehearsal" if ground.dry_run else "true sizes"):
        found.check(f"rows, embeddings, latents, stops: {name}", partial(_sampler, ground, SUITES[name]))
    shape = _NARROW if ground.short else _HEAD
    for stored in ("float32", "float16", "bfloat16", "int8"):
        found.check(f"head, {stored}", partial(products.head, device, stored, shape, 2, seed))
        found.check(f"head of one branch, {stored}", partial(products.head, device, stored, shape, 1, seed))
    for number in NUMBER_BYTES:
        found.check(f"null prefix, {number}", partial(cache.null_prefix, device, number, seed))
        found.check(f"rows appended, {number}", partial(cache.append_rows, device, number, seed))
    for number in ("float32", "bfloat16"):
        found.check(f"rows embedded, {number}", partial(products.embedded_rows, device, number, _NARROW, seed))


def _sampler(ground: Ground, suite: Suite) -> str:
    expected = load(ground.expected or PACKAGED, suite.name, ground.seed)
    tables = Tables(suite.shape, ground.seed)
    inputs = checksum(tables.bias, checksum(tables.rvq, checksum(tables.embedding)))
    on_device, chosen, rows = DeviceTables(ground.device, tables), suite.chosen(ground.short), 0
    for done, (at, trial) in enumerate(chosen):
        ground.progress(f"{suite.name}: trial {done + 1} of {len(chosen)}")
        rows += sampler.same_as_cpu(on_device, trial, at, suite.seed(ground.seed, at), expected, inputs)
    return f"{len(chosen)} trials, {rows} rows are equal bit for bit"
