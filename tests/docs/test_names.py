"""The documentation names what exists in the code: environment variables, and functions that no code calls yet."""

from __future__ import annotations

import re
from pathlib import Path

from support.cuda.shim import load_shim

ROOT = Path(__file__).resolve().parents[2]
#: How the name of an environment variable appears in the product; for settings of CMake, in a loop over both.
_NAMED = (r'"(UALM_[A-Z_]+)"', r"foreach\(option ([A-Z_ ]+)\)")
#: How the tests and the shim read one; they also set many.
_READ = (r'(?:environ(?:\.get\(|\[)|setting\()"(UALM_[A-Z_]+)"',)
_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cmake", ".toml", ".txt"}


def pages() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))


def sources(*rooms: str) -> dict[Path, str]:
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in _SUFFIXES]
    files += [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"] if "csrc" in rooms else []
    return {path: path.read_text(encoding="utf-8") for path in files}


def test_every_environment_variable_is_documented_and_every_documented_one_is_read() -> None:
    found: list[str] = []
    for rooms, patterns in ((("runtime", "export", "bench", "csrc"), _NAMED), (("tests",), _READ)):
        code = "\n".join(sources(*rooms).values())
        found += [each for pattern in patterns for each in re.findall(pattern, code)]
    read = {name for each in found for name in each.split()}
    known = set(re.findall(r"UALM_[A-Z]+(?:_[A-Z]+)*", pages()))
    assert {"UALM_BUNDLE", "UALM_ENGINE", "UALM_TENSORRT_BINDINGS", "UALM_CUDA", "UALM_SHIM_WAIT"} <= read
    assert read == known


def test_what_no_code_calls_is_what_the_page_lists() -> None:
    code = "\n".join(sources("runtime", "export", "bench").values())
    module = load_shim()
    names = [name for name, each in vars(module).items() if callable(each) and not name.startswith("_")]
    unused = {name for name in names if not re.search(rf"\.{name}\b", code)}
    head = next(text for path, text in sources("runtime").items() if path.name == "device_head.py")
    if not re.search(r"\bstates=", head[head.index("HeadLaunch(") :]):
        unused.add("states")
    page = (ROOT / "docs/cuda.md").read_text(encoding="utf-8")
    listed = re.search(r"^Called by nothing in .*? yet, though tested: (.*?)\. A step", page, re.MULTILINE | re.DOTALL)
    assert listed is not None
    launches = {"launch_gather_latents", "HeadLaunch"}  # mentioned beside the names, for readers of launch.h
    assert set(re.findall(r"`(\w+)`", listed[1])) - launches == unused
    gpu = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert {"gather_latents", "states"} & unused <= set(re.findall(r"`(\w+)`", gpu))
