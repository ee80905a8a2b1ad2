"""Bytes of a step, compared with counts from the ONNX files and the sizes of the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from support.runs import make_run
from ualm.bench.meters.traffic import body_role, held_against, step_bytes, weight_bytes
from ualm.bench.report.schema import Bandwidth, BandwidthPair
from ualm.export.bundle import export_run
from ualm.runtime import BundleError
from ualm.runtime.bundle.bundle import MANIFEST, Bundle
from ualm.runtime.bundle.manifest import digest_of


def bytes_by_hand(path: Path) -> int:
    """Bytes of the blob that the initializers of an ONNX file refer to, each range once."""
    stretches = set()
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            stretches.add((int(where["offset"]), int(where["length"])))
    return sum(length for _, length in stretches)


def test_the_weights_of_each_part_are_what_its_graph_points_to(tiny_bundle):
    bundle = Bundle(tiny_bundle)
    for role in bundle.manifest.parts:
        assert weight_bytes(bundle, role) == bytes_by_hand(bundle.part(role)) > 0, role


def test_the_body_of_a_tiny_model_has_as_many_bytes_as_its_shape_says(tiny_bundle):
    bundle = Bundle(tiny_bundle)
    model = bundle.manifest.model
    h, f, q, kv = 32, 48, 32, 16  # the defaults of make_run
    assert (model.hidden_size, model.heads * model.head_dim, model.kv_heads * model.head_dim) == (h, q, kv)
    layer = 2 * h + (h + 1) * (q + 2 * kv) + q * h + 3 * h * f
    assert weight_bytes(bundle, body_role(bundle)) == 4 * (model.layers * layer + h)
    vocabulary = bundle.manifest.vocabulary
    columns = 2 + 8 * (vocabulary.codebook_size + 1)
    assert weight_bytes(bundle, "head.audio") == 4 * columns * (h + 1)


def test_a_step_reads_body_head_and_cache_in_its_time(tiny_bundle):
    bundle = Bundle(tiny_bundle)
    step = step_bytes(bundle, "audio", kv_bytes=1000.4)
    pairs = [BandwidthPair(9.0, 11.0, 1.0), BandwidthPair(10.0, 10.0, 2.0), BandwidthPair(10.0, 10.0, 1.0)]
    found = held_against(step, 1.0, pairs, Bandwidth(1, 64, 4, 11.0, 10.0))
    body, head = weight_bytes(bundle, body_role(bundle)), weight_bytes(bundle, "head.audio")
    assert (found.body_bytes, found.head_bytes, found.kv_bytes) == (body, head, 1000)
    assert found.bytes == body + head + 1000
    assert found.gb_per_second == pytest.approx(found.bytes / 0.001 / 1e9, rel=1e-4)
    assert found.fraction == pytest.approx(found.gb_per_second / 10)


def test_the_dialect_that_the_engine_computes_with_is_counted(tmp_path, tiny_bundle):
    run = make_run(tmp_path / "run", hidden=64, heads=4, kv_heads=2)  # head size 16
    grouped = Bundle(export_run(run.folder, tmp_path / "bundle").bundle)
    assert body_role(grouped) == "backbone.grouped"
    from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine

    for bundle in (grouped, Bundle(tiny_bundle)):
        engine = OnnxRuntimeEngine(bundle, threads=1, max_context=8)
        assert list(engine._sessions) == [body_role(bundle)]
        engine.close()


def test_a_bundle_that_does_not_tell_its_bytes_is_to_be_exported_again(bench, ualm, tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "old")
    document = json.loads((tmp_path / "old" / MANIFEST).read_text())
    for part in document["parts"].values():
        del part["weight_bytes"]
    document["digest"] = digest_of(document)
    (tmp_path / "old" / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"parts.backbone\S*.weight_bytes = None.*export the run again"):
        bundle = Bundle(tmp_path / "old")
        weight_bytes(bundle, body_role(bundle))
    status, out, err = ualm("bench", "decode", tmp_path / "old", "--threads", 1)
    assert (status, out, err.count("\n")) == (1, "", 1) and "export the run again" in err
    assert bench("codec", tmp_path / "old", "--seconds", 0.01, "--repeat", 1).measurements  # counts no bytes
