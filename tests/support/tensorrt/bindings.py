"""The contents of TensorRT's Python bindings: names, parameters and enum members, read from the real bindings.

The bindings come as wheels (``tensorrt-cu13-bindings`` 11, ``tensorrt-cu12-bindings`` 10) whose native libraries are
not needed for inspection: a stand-in with the nine symbols that the bindings import is compiled in their place. No
TensorRT code runs.

``python tests/support/tensorrt/bindings.py WHEEL... > FILE`` writes the facts again, where FILE is
``tests/runtime/engines/tensorrt/tensorrt_bindings.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FACTS = Path(__file__).parents[2] / "runtime" / "engines" / "tensorrt" / "tensorrt_bindings.json"

#: Classes and enumerations that our code uses.
CLASSES = (
    "Builder",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IConvolutionLayer",
    "IDeconvolutionLayer",
    "IAttention",
    "IAttentionInputLayer",
    "IHostMemory",
    "ILayer",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IRuntimeConfig",
    "IRuntimeCache",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "LayerType",
    "NetworkDefinitionCreationFlag",
    "TensorIOMode",
)

_SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)


def facts_of(module: Any) -> dict[str, Any]:
    """Public names of the classes, each with its overloads' parameters; members of the enumerations."""
    classes = {
        name: {each: _overloads(getattr(found, each)) for each in dir(found) if not each.startswith("_")}
        for name in CLASSES
        if (found := getattr(module, name, None)) is not None
    }
    enums = {name: sorted(getattr(module, name).__members__) for name in ENUMS if hasattr(module, name)}
    return {"version": module.__version__, "classes": classes, "enums": enums}


def _overloads(member: Any) -> list[list[str]] | None:
    """Parameters of each overload, those with a default marked "?"; None for an attribute."""
    if not callable(member):
        return None
    found = []
    for line in (member.__doc__ or "").splitlines():
        head = line.split(". ", 1)[1] if line[:1].isdigit() and ". " in line else line
        if head.startswith(f"{member.__name__}(self"):
            inside = head[head.index("(") + 1 : head.rindex(")", 0, head.find(" ->") if " ->" in head else len(head))]
            found.append([_parameter(each) for each in _split(inside)[1:]])
    return found


def _parameter(text: str) -> str:
    return text.split(":", 1)[0].strip() + ("?" if "=" in text else "")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for mark in text:
        depth += (mark in "([{<") - (mark in ")]}>")
        if mark == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += mark
    return parts


def read_wheel(wheel: Path) -> dict[str, Any]:
    """Facts of a wheel of the bindings, imported in a separate process over a stand-in for the native libraries."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        version = wheel.name.split("-")[1].split(".")[0]
        (folder / "stub.c").write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in _SYMBOLS))
        (folder / "empty.c").write_text("static int nothing;\n")
        for library, source in (("nvinfer", "stub"), ("nvonnxparser", "empty"), ("nvinfer_plugin", "empty")):
            target = f"lib{library}.so.{version}"
            command = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{target}", "-o", str(folder / target)]
            subprocess.run([*command, str(folder / f"{source}.c")], check=True)
        environment = os.environ | {"LD_LIBRARY_PATH": name, "PYTHONPATH": f"{name}:{Path(__file__).parent}"}
        code = "import json, tensorrt_bindings as t, importlib.util as u\n"
        code += (
            f"s = u.spec_from_file_location('facts', {str(Path(__file__).resolve())!r}); m = u.module_from_spec(s)\n"
        )
        code += "s.loader.exec_module(m); print(json.dumps(m.facts_of(t)))"
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)


if __name__ == "__main__":
    facts = [read_wheel(Path(argument)) for argument in sys.argv[1:]]
    json.dump({each["version"]: each for each in facts}, sys.stdout, indent=None, separators=(",", ":"), sort_keys=True)
    print()
