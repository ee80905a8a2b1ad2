"""The documentation names the environment variables that the code has, and the CUDA module has what the code calls."""

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


def test_everything_that_the_cuda_module_offers_is_called() -> None:
    code = "\n".join(sources("runtime", "export", "bench").values())
    offered = [name for name, each in vars(load_shim()).items() if callable(each) and not name.startswith("_")]
    assert len(offered) > 30
    assert [name for name in offered if not re.search(rf"\.{name}\b", code)] == []
