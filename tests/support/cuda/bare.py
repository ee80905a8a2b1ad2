"""A Python environment with numpy and ualm alone: nothing else that is installed here can be imported in it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[3]
#: Libraries of ualm that a borrowed machine may lack.
BLOCKED = (
    *("typer", "rich", "soundfile", "soxr", "tokenizers", "cffi", "onnxruntime", "torch", "transformers"),
    *("tensorrt", "tensorrt_rtx", "safetensors", "onnx", "yaml"),
)
_BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""


def make_bare(folder: Path, *others: str) -> Path:
    """Make the environment; returns its interpreter. ``others``: distributions to have as well, by name."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for name in ("numpy", *others):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {".."}:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    # laid out as in a wheel: pyproject.toml maps the rooms, ualm's own __init__ and the compiled module
    mapped = re.search(r"^wheel\.packages = \{(.*)\}$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert mapped is not None
    package = site / "ualm"
    package.mkdir()
    for target, source in re.findall(r'"ualm/(\w+)" = "([^"]+)"', mapped[1]):
        (package / target).mkdir()
        for each in (ROOT / source).iterdir():
            (package / target / each.name).symlink_to(each)
    (package / "__init__.py").symlink_to(ROOT / "runtime" / "package" / "ualm" / "__init__.py")
    native = importlib.util.find_spec("ualm.runtime._native")
    assert native is not None and native.origin is not None
    place = package / "runtime" / Path(native.origin).name
    if not place.exists():
        place.symlink_to(native.origin)
    (site / "sitecustomize.py").write_text(_BLOCK)
    return folder / "bin" / "python"
