"""What our code uses of TensorRT exists there: names, parameters and enum members, according to the bindings of 10.3
(JetPack 6), 10.13, 10.16 and 11.4.

The bindings were inspected, not run: this is not a test of TensorRT. The facts are in ``tensorrt_bindings.json``; if
``UALM_TENSORRT_BINDINGS`` names a folder with the wheels, they are read from these again.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.tensorrt.bindings import FACTS, facts_of, read_wheel
from ualm.runtime.engines.tensorrt.library import load_library

ROOT = Path(__file__).parents[4]
#: File -> classes of its variables.
SOURCES = {
    "runtime/engines/tensorrt/context.py": {
        "self._runtime": "Runtime",
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "context": "IExecutionContext",
        "self._context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "self._cache": "IRuntimeCache",
    },
    "export/targets/tensorrt/build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "made": "IOptimizationProfile",
        "layer": "ILayer",
        "layer.attention": "IAttention",
    },
    "export/targets/tensorrt/compare.py": {"network": "INetworkDefinition", "layer": "ILayer"},
}
#: Used only with TensorRT-RTX, after a check that it exists.
RTX_ONLY = {
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "set_runtime_cache"),
    ("IRuntimeCache", "deserialize"),
    ("IRuntimeCache", "serialize"),
}
#: What is only used if a library has a feature that is checked first: a member of a class or of an enumeration -> the
#: uses after that check, with the keywords of a call.
ASKED: dict[tuple[str, str], set[tuple[str, str, tuple[str, ...]]]] = {
    ("ICudaEngine", "create_runtime_config"): {
        ("ICudaEngine", "create_runtime_config", ()),
        ("ICudaEngine", "create_execution_context", ("runtime_config",)),
        ("IRuntimeConfig", "set_execution_context_allocation_strategy", ()),
    },
    ("LayerType", "ATTENTION_INPUT"): {
        ("IAttentionInputLayer", "attention", ()),
        ("IAttention", "decomposable", ()),
        ("LayerType", "ATTENTION_INPUT", ()),
    },
}
#: Attributes of classes that layers are cast to.
SUBCLASSES = {
    ("ILayer", "attention"): "IAttentionInputLayer",
    ("ILayer", "kernel"): "IConvolutionLayer",
    ("ILayer", "bias"): "IConvolutionLayer",
}

Use = tuple[str, str, int, tuple[str, ...], str]


def uses() -> Iterator[Use]:
    """Class, attribute, positional arguments (-1: not called, -2: any number), keywords, place of every use."""
    for file, receivers in SOURCES.items():
        tree = ast.parse((ROOT / file).read_text())
        called = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
                continue
            kind = receivers.get(ast.unparse(node.value))
            if kind is None:
                continue
            call = called.get(node)
            count = -1 if call is None else len(call.args)
            if call is not None and any(isinstance(each, ast.Starred) for each in call.args):
                count = -2
            keywords = () if call is None else tuple(str(each.arg) for each in call.keywords)
            kind = SUBCLASSES.get((kind, node.attr), kind)
            yield kind, node.attr, count, keywords, f"{file}:{node.lineno}"


def members() -> Iterator[tuple[str, str, str]]:
    """Enumeration, member and place of every ``trt.Enumeration.MEMBER``."""
    for file in SOURCES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith("trt.") and node.attr.isupper():
                yield ast.unparse(node.value).removeprefix("trt."), node.attr, f"{file}:{node.lineno}"


def takes(overloads: list[list[str]], count: int, keywords: tuple[str, ...]) -> bool:
    """Whether an overload takes so many positional arguments, and these keywords."""
    for parameters in overloads:
        names = [each.rstrip("?") for each in parameters]
        needed = {each for each in parameters if not each.endswith("?")}
        if count == -2:
            return True
        given = {*names[:count], *keywords}
        if count <= len(names) and set(keywords) <= set(names) and needed <= given:
            return True
    return False


def problems(facts: dict[str, Any], *, rtx: bool) -> list[str]:
    found = []
    present = {(each, name) for group in ("classes", "enums") for each, names in facts[group].items() for name in names}
    unasked = {use for question, behind in ASKED.items() if question not in present for use in behind}
    for kind, name, count, keywords, place in uses():
        if ((kind, name) in RTX_ONLY and not rtx) or (kind, name, keywords) in unasked:
            continue
        known = facts["classes"].get(kind)
        if known is None or name not in known:
            found.append(f"{place}: {kind} has no {name}")
        elif count != -1 and (known[name] is None or not takes(known[name], count, keywords)):
            found.append(f"{place}: {kind}.{name} takes {known[name]}, not {count} and {list(keywords)}")
    for enum, member, place in members():
        if member not in facts["enums"].get(enum, ()) and (enum, member, ()) not in unasked:
            found.append(f"{place}: {enum} has no {member}")
    return found


def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FACTS.read_text())
    return found


def test_the_uses_are_found() -> None:
    found = {(kind, name) for kind, name, *_ in uses()}
    assert {("IExecutionContext", "execute_async_v3"), ("ICudaEngine", "create_execution_context")} <= found
    assert {("Builder", "build_serialized_network"), ("IAttention", "decomposable"), *RTX_ONLY} <= found
    assert ("TensorIOMode", "INPUT") in {(enum, member) for enum, member, _ in members()}


VERSIONS = {"10.3.0": "appended", "10.13.3.9": "appended", "10.16.1.11": "in_place", "11.4.0.106": "in_place"}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_we_call_is_in_the_bindings(version: str) -> None:
    assert problems(stored()[version], rtx=False) == []


def test_what_is_asked_for_is_used_behind_the_question() -> None:
    found = {(kind, name, keywords) for kind, name, _, keywords, _ in uses()} | {(*each[:2], ()) for each in members()}
    assert set.union(*ASKED.values()) <= found
    without = {
        version for version, facts in stored().items() if "create_runtime_config" not in facts["classes"]["ICudaEngine"]
    }
    assert without == {"10.3.0"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cache_is_written_as_the_bindings_allow(version: str) -> None:
    network = SimpleNamespace(**dict.fromkeys(stored()[version]["classes"]["INetworkDefinition"]))
    module = SimpleNamespace(__version__=version, INetworkDefinition=network)
    assert load_library("tensorrt", lambda name: module).cache == VERSIONS[version]


def test_what_we_call_is_in_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert problems(facts_of(trt), rtx=True) == []


def test_a_call_that_does_not_exist_is_noticed() -> None:
    facts = stored()["11.4.0.106"]
    del facts["classes"]["Builder"]["create_network"]
    facts["classes"]["IExecutionContext"]["execute_async_v3"] = [["stream_handle", "more"]]
    facts["enums"]["BuilderFlag"].remove("TF32")
    assert [each.split(": ", 1)[1].split(" ", 3)[:3] for each in problems(facts, rtx=False)] == [
        ["IExecutionContext.execute_async_v3", "takes", "[['stream_handle',"],
        ["Builder", "has", "no"],
        ["BuilderFlag", "has", "no"],
    ]


def test_layer_kinds_and_types_that_we_compare_with_are_the_librarys() -> None:
    from ualm.export.targets.tensorrt.compare import _LAYERS, _NUMBERS, _TYPES

    newer = {"ATTENTION_OUTPUT", "KV_CACHE_UPDATE", "ROTARY_EMBEDDING"}
    for version, facts in stored().items():
        wanted = set(_LAYERS.values()) | {"CONSTANT"}
        unknown = newer if VERSIONS[version] == "appended" else set()
        assert wanted - unknown <= set(facts["enums"]["LayerType"]), version
        unknown = {"FP4"} if version == "10.3.0" else set()
        assert (set(_TYPES.values()) | set(_NUMBERS)) - unknown <= set(facts["enums"]["DataType"]), version


@pytest.mark.skipif(
    "UALM_TENSORRT_BINDINGS" not in os.environ,
    reason="UALM_TENSORRT_BINDINGS names no folder with wheels of TensorRT's bindings",
)
def test_the_facts_are_those_of_the_wheels() -> None:
    wheels = sorted(Path(os.environ["UALM_TENSORRT_BINDINGS"]).glob("tensorrt_cu*_bindings-*.whl"))
    assert wheels and {each["version"]: each for each in map(read_wheel, wheels)} == stored()
