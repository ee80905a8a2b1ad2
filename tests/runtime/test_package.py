"""``ualm`` is a separate package: no folder of that name takes its place, and it costs nothing until it is used."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import ualm
import ualm.runtime
from ualm.runtime import EngineError, Model, _native
from ualm.runtime.cli import main as cli
from ualm.runtime.process import native_module as compiled

ROOT = Path(__file__).resolve().parents[2]


def installed(place: Path, *, native: bool = True) -> Path:
    """A folder with ualm laid out as in a wheel, according to pyproject.toml."""
    mapped = re.search(r"^wheel\.packages = \{(.*)\}$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert mapped is not None
    for target, source in re.findall(r'"(\S+)" = "(\S+?)"', mapped.group(1)):
        package = place / "site" / target
        package.mkdir(parents=True, exist_ok=True)
        for each in (ROOT / source).iterdir():
            if each.name not in ("__pycache__", "package"):
                (package / each.name).symlink_to(each)
    if native:
        module = Path(_native.__file__)
        (place / "site" / "ualm" / "runtime" / module.name).symlink_to(module)
    return place / "site"


def in_wheel() -> tuple[dict[str, Path], set[str]]:
    """The source of each module of the wheel, by its dotted name, and the modules that ``wheel.exclude`` leaves out."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [re.search(rf"^wheel\.{key} = [{{\[](.*)[}}\]]$", text, re.MULTILINE) for key in ("packages", "exclude")]
    mapped, excluded = (each.group(1) for each in lists if each is not None)
    patterns = [re.sub(r"/\*\*$", "/", each) for each in re.findall(r'"(ualm/\S+?)"', excluded)]
    kept, left_out = {}, set()
    for target, source in re.findall(r'"(ualm/\S+)" = "(\S+?)"', mapped):
        for file in (ROOT / source).rglob("*.py"):
            place = f"{target}/{file.relative_to(ROOT / source).as_posix()}"
            name = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            if any(place.startswith(each) if each.endswith("/") else place == each for each in patterns):
                left_out.add(name)
            elif not place.startswith("ualm/runtime/package/"):
                kept[name] = file
    return kept, left_out


def imported(name: str, file: Path) -> Iterator[str]:
    """What a module imports: modules, and names that may be modules."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: None if file.name == "__init__.py" else -1]
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (module, *(f"{module}.{each.name}" for each in node.names))


def test_nothing_in_the_wheel_imports_what_is_left_out() -> None:
    kept, left_out = in_wheel()
    assert {"ualm.runtime.model", "ualm.export.knows", "ualm.bench.gates"} <= kept.keys()
    assert {"ualm.export.tiny.training.run_folder", "ualm.export.tiny.judging.card"} <= left_out
    assert [(name, each) for name, file in kept.items() for each in imported(name, file) if each in left_out] == []


def python(code: str, *, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` as ``python -c`` in ``cwd``, with ``site`` and no editable install."""
    paths = os.pathsep.join([str(site), *(path for path in sys.path if path.endswith("site-packages"))])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_folder_above_a_checkout_does_not_hide_what_is_installed(tmp_path: Path) -> None:
    site = installed(tmp_path)
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "ualm").symlink_to(ROOT)
    found = python(
        "import ualm, ualm.runtime; from ualm import Model; print(ualm.__file__, ualm.runtime.__file__)",
        site=site,
        cwd=tmp_path / "above",
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(site / "ualm" / "__init__.py"), str(site / "ualm" / "runtime" / "__init__.py")]


def test_the_editable_install_serves_it_too() -> None:
    assert ualm.__file__ is not None and Path(ualm.__file__) == ROOT / "runtime" / "package" / "ualm" / "__init__.py"


def test_the_names_of_the_runtime_are_those_of_the_package() -> None:
    from ualm import AudioSampling, Model, Sound, __version__

    assert (AudioSampling, Model, Sound) == (ualm.runtime.AudioSampling, ualm.runtime.Model, ualm.runtime.Sound)
    assert __version__ == ualm.runtime.__version__
    assert ualm.__all__ == ualm.runtime.__all__ and set(ualm.__all__) <= set(dir(ualm))
    everything: dict[str, object] = {}
    exec("from ualm import *", everything)
    assert set(ualm.runtime.__all__) <= set(everything)
    with pytest.raises(AttributeError, match="module 'ualm' has no attribute 'Modell'"):
        ualm.Modell  # noqa: B018


def test_importing_it_loads_nothing() -> None:
    code = "import sys, ualm; ualm.__version__; print([n for n in ('ualm.runtime', 'numpy') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]", found.stderr


def test_rooms_and_modules_are_there_from_the_first_time_on() -> None:
    code = """
import ualm
print(ualm.runtime.Model.__name__, ualm.bench.__name__)
import ualm.runtime as runtime
print(runtime.errors.__name__, runtime.cli.__name__, runtime._native.__name__, hasattr(runtime, "modell"))
assert not any(hasattr(runtime, name) for name in ("", ".x", "engines.base", "a b"))
print("Model" in vars(runtime), "Model" in vars(ualm), ualm.Model is runtime.Model is vars(ualm)["Model"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.splitlines() == [
        "Model ualm.bench",
        "ualm.runtime.errors ualm.runtime.cli ualm.runtime._native False",
        "True False True",
    ], found.stderr


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from ualm import Model", "ualm.runtime.errors"),  # the first of those that are searched
        ("from ualm.runtime import Model", "ualm.runtime.errors"),
        ("from ualm.runtime import sound", "ualm.runtime.sound"),
        ("from ualm import bench", "ualm.bench"),
    ],
)
def test_an_attribute_that_a_module_lacks_while_it_loads_is_no_name_that_ualm_lacks(line: str, module: str) -> None:
    code = f"""
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder

class Spoilt:
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        spec = PathFinder.find_spec(name, path) or sys.meta_path[1].find_spec(name, path)
        spec.loader.exec_module = lambda module: object().gone
        return spec

sys.meta_path.insert(0, Spoilt())
{line}
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = found.stderr.splitlines()[-1]
    assert last == (
        f"ImportError: {module} cannot be loaded (AttributeError: 'object' object has no attribute 'gone')"
    ), found.stderr


def test_it_is_typed(tmp_path: Path) -> None:
    assert (installed(tmp_path, native=False) / "ualm" / "py.typed").is_file()


def test_without_its_compiled_module_that_is_the_reason_named_first(tmp_path: Path) -> None:
    site = installed(tmp_path, native=False)
    found = python("from ualm import Model; Model.open()", site=site, cwd=tmp_path)
    last = found.stderr.splitlines()[-1]
    assert last.startswith("ualm.runtime.errors.EngineError: ualm's compiled module ualm.runtime._native cannot be")
    assert str(site / "ualm" / "runtime") in last and "pip install" in last and "tensorrt" not in last.lower()


def test_a_compiled_module_that_does_not_load_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = installed(tmp_path, native=False)
    (site / "ualm" / "runtime" / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library at all")
    found = python("from ualm import Model; Model.open()", site=site, cwd=tmp_path)
    last = found.stderr.splitlines()[-1]
    assert "EngineError: ualm's compiled module ualm.runtime._native cannot be loaded: " in last
    assert "tensorrt" not in last.lower()

    monkeypatch.setattr(compiled, "native_problem", lambda: "GLIBC_9 not found")
    for engine in (None, "onnxruntime", "tensorrt"):
        with pytest.raises(EngineError, match=r"^ualm's compiled module \S+ cannot be loaded: GLIBC_9 not found; inst"):
            Model.open(engine=engine)


@pytest.mark.parametrize("verb", [("export", "run", "-o", "bundle"), ("bench", "plan", "x")])
def test_the_commands_name_it_first_as_well(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "native_problem", lambda: "GLIBC_9 not found")
    monkeypatch.setattr(sys, "argv", ["ualm", *verb])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    err = capsys.readouterr().err
    assert stop.value.code == 1 and err.startswith(
        "ualm: ualm's compiled module ualm.runtime._native cannot be loaded: GLIBC_9"
    )
