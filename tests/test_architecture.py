"""The rules between rooms (docs/architecture.md): a folder is a room, and so is a module beside folders."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("runtime", "export", "bench")
#: Folder -> the other top-level folders that it may import. Upper layers may know lower ones.
ABOVE = {
    "export": {"runtime"},
    "bench": {"runtime", "export"},
    "runtime.cli": {"export", "bench"},
    "runtime.cli.verbs": {"export", "bench"},
}
MOST_MODULES, MOST_SUPPORT = 15, 20
#: Libraries, and the rooms that may import them, including everything within these rooms.
LIBRARIES = {
    "torch": ("export", "bench.peers", "bench.random_run", "bench.evidence"),
    "transformers": ("export", "bench.peers", "bench.random_run"),
    "onnx": ("export",),
    "safetensors": ("export",),
    "onnxruntime": ("runtime.engines.onnxruntime",),
    "tensorrt": ("runtime.engines.tensorrt",),
    # a separate process, which may crash: it tests the library before any of our engines exists
    "tensorrt_rtx": ("runtime.engines.tensorrt", "bench.acceptance.rtx_probe"),
    "typer": ("runtime.cli", "bench.scenarios.tensorrt_build"),
    "matplotlib": ("runtime.cli",),
    "sounddevice": ("runtime.cli",),
    "av": ("runtime.sound",),
}


def modules(top: str) -> Iterator[Path]:
    for file in sorted((ROOT / top).rglob("*.py*")):
        if file.suffix in (".py", ".pyi") and "package" not in file.relative_to(ROOT).parts:
            yield file


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known() -> dict[str, Path]:
    return {name_of(file): file for top in TOPS for file in modules(top)}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports_of(name: str) -> frozenset[str]:
    """Our modules that a module imports anywhere: at its top, in a function, or for type checkers."""
    file, found = known()[name], set()
    package = name.split(".") if file.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("ualm.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").removeprefix("ualm.")
            if node.level:
                base = package[: len(package) - (node.level - 1)]
                module = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    # a name from a module imports only that module; from a package, whatever its __init__ provides
    named = found & known().keys()
    return frozenset(each for each in named if not any(other.startswith(f"{each}.") for other in named))


@cache
def folders() -> frozenset[str]:
    return frozenset(name.rpartition(".")[0] for name in known())


def room_of(name: str) -> str:
    """The folder of a module, or the module itself if folders are beside it."""
    if known()[name].stem == "__init__":
        return name
    folder = name.rpartition(".")[0]
    beside = any(each.startswith(f"{folder}.") for each in folders())
    return name if beside else folder


def arrows() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Each pair of rooms where one imports the other, and the modules that do."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for name in known():
        if known()[name].stem == "__init__":
            continue  # it only re-exports what its room has
        for other in imports_of(name):
            pair = room_of(name), room_of(other)
            if pair[0] != pair[1]:
                found.setdefault(pair, set()).add((name, other))
    return found


def test_rooms_import_downwards_only() -> None:
    """There is an order in which every import points down, so that a room can be changed without knowing those above
    it."""
    below: dict[str, set[str]] = {}
    for upper, lower in arrows():
        below.setdefault(upper, set()).add(lower)
        below.setdefault(lower, set())
    left = dict(below)
    while ready := [room for room, needs in left.items() if not needs & left.keys()]:
        for room in ready:
            del left[room]
    pairs = [pair for rooms, found in arrows().items() if set(rooms) <= left.keys() for pair in found]
    circle = sorted(f"{upper} imports {lower}" for upper, lower in pairs)
    assert not left, "rooms import each other in a circle; move what both need below both:\n" + "\n".join(circle)


def test_the_tops_know_what_is_below_them_alone() -> None:
    for upper, lower in arrows():
        tops = upper.split(".")[0], lower.split(".")[0]
        if tops[0] != tops[1]:
            allowed = [tops[0], ".".join(upper.split(".")[:2]), upper]
            assert any(tops[1] in ABOVE.get(room, ()) for room in allowed), (
                f"{upper} imports {lower}: {tops[0]} lies below {tops[1]}, and only the command line knows both"
            )


def test_engines_know_nothing_of_conversations() -> None:
    above = ("runtime.conversation", "runtime.reasoning", "runtime.cli", "runtime.model")
    for upper, lower in arrows():
        if upper.startswith("runtime.engines"):
            problem = f"{upper} imports {lower}: an engine computes rows, and does not know what they say"
            assert not lower.startswith(above), problem
    libraries = ("runtime.engines.onnxruntime", "runtime.engines.tensorrt")
    for upper, lower in arrows():
        assert not (upper in libraries and lower in libraries), (
            f"{upper} imports {lower}: engines of different libraries share what lies in engines/device"
        )


def test_no_file_reaches_into_another() -> None:
    """Names with a leading underscore belong to their file: a method or field that others need has a name without
    one."""
    for name, file in known().items():
        tree = tree_of(file)
        own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        own |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                inherited = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert inherited or node.attr in own | {"_exit"}, (
                    f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)} is another file's own"
                )
            elif isinstance(node, ast.ImportFrom):
                private = {a.name for a in node.names if re.match(r"_[a-z]", a.name)} - {"_native", "_cuda"}
                ours = node.level or (node.module or "").startswith("ualm")
                assert not (ours and private), f"{name}:{node.lineno}: {', '.join(private)} is another file's own"


@pytest.mark.parametrize("top", [*TOPS, "tests"])
def test_a_folder_holds_few_files(top: str) -> None:
    counts = Counter(file.parent for file in (ROOT / top).rglob("*.py") if file.stem != "__init__")
    for folder, count in counts.items():
        most = MOST_SUPPORT if folder == ROOT / "tests" / "support" else MOST_MODULES
        assert count <= most, f"{folder.relative_to(ROOT)} holds {count} modules, {most} at most: find their rooms"


@pytest.mark.parametrize("top", [*TOPS, "tests"])
def test_a_prefix_that_three_siblings_share_is_a_folder(top: str) -> None:
    names: dict[tuple[Path, str], list[str]] = {}
    for file in (ROOT / top).rglob("*.py"):
        prefix, _, rest = file.stem.removeprefix("test_").partition("_")
        if rest and file.stem != "__init__" and prefix:
            names.setdefault((file.parent, prefix), []).append(file.name)
    for (folder, prefix), files in names.items():
        assert len(files) < 3, f"{folder.relative_to(ROOT)}: {', '.join(files)} are a folder {prefix}/"


def test_libraries_are_imported_in_their_rooms_alone() -> None:
    for name, file in known().items():
        for node in ast.walk(tree_of(file)):
            wanted: list[str] = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                wanted = [node.module or ""]
            for library in {each.split(".")[0] for each in wanted} & LIBRARIES.keys():
                rooms = LIBRARIES[library]
                assert any(name == room or name.startswith(f"{room}.") for room in rooms), (
                    f"{name} imports {library}, which only {', '.join(rooms)} may: others stay loadable without it"
                )


def test_the_rules_see_what_they_forbid() -> None:
    """No rule is empty: there are rooms, imports between them, and libraries that are imported."""
    assert len({room_of(name) for name in known()}) > 40 and len(arrows()) > 100
    assert ("runtime.model", "runtime.conversation") in arrows()
    assert room_of("runtime.errors") == "runtime.errors" and room_of("runtime.text.stream") == "runtime.text"
    assert "runtime.engines.onnxruntime.cuda" in imports_of("runtime.engines.registry"), "lazy imports are imports"
