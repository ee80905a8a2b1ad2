"""The rules between rooms (docs/architecture.md): a folder is a room, and so is a module beside folders.

Each rule is a function that reports what breaks it. The code must break none, and for each rule there are lines that
break it when they are added to a file in memory.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("runtime", "export", "bench")
#: Folder -> the other top-level folders that it may import. Upper layers may know lower ones.
ABOVE = {
    "export": {"runtime"},
    "bench": {"runtime", "export"},
    "runtime.cli": {"export", "bench"},
}
#: The rooms of the runtime from the bottom up. A room imports rooms before it only.
ORDER = (
    *("runtime._native", "runtime._cuda", "runtime.errors", "runtime.shown", "runtime.finish", "runtime.process"),
    *("runtime.files", "runtime.vocabulary", "runtime.sampling", "runtime.text", "runtime.sound", "runtime.bundle"),
    *("runtime.engines", "runtime.audio", "runtime.conversation", "runtime.reasoning", "runtime.model"),
    *("runtime.diagnostics", "runtime.terminal", "runtime", "runtime.cli"),
)
#: Room -> rooms that it must not import, and why.
FORBIDDEN = {
    "runtime.engines.onnxruntime": (("runtime.engines.tensorrt",), "engines share what is in engines/device"),
    "runtime.engines.tensorrt": (("runtime.engines.onnxruntime",), "engines share what is in engines/device"),
    "runtime.conversation": (
        (
            "runtime.engines.registry",
            "runtime.engines.device",
            "runtime.engines.onnxruntime",
            "runtime.engines.tensorrt",
        ),
        "a conversation knows engines/protocol.py, not an engine",
    ),
    "runtime.audio": (
        (
            "runtime.engines.registry",
            "runtime.engines.device",
            "runtime.engines.onnxruntime",
            "runtime.engines.tensorrt",
        ),
        "sound knows engines/protocol.py, not an engine",
    ),
    "export.run": (("runtime.engines", "runtime.model"), "reading a run computes nothing"),
    "export.formats": (("runtime.engines", "runtime.model"), "a format computes no model"),
    "bench.meters": (("export",), "what is read beside a measurement knows no export"),
}
#: Names of others' that begin so: of the standard library, and what torch alone offers.
_OF_LIBRARIES = ("_exit", "_checkpoint_offset")
MOST_MODULES, MOST_SUPPORT = 15, 20
#: Libraries, and the rooms that may import them, including everything within these rooms.
LIBRARIES = {
    "torch": ("export", "bench.peers", "bench.random_run", "bench.evidence"),
    "transformers": ("export", "bench.peers", "bench.random_run"),
    "onnx": ("export",),
    "safetensors": ("export",),
    "yaml": ("export", "bench.random_run"),
    "librosa": ("export.tiny.judging",),
    "scipy": (),
    "onnxruntime": ("runtime.engines.onnxruntime",),
    "tensorrt": ("runtime.engines.tensorrt",),
    # a separate process, which may crash: it tests the library before any of our engines exists
    "tensorrt_rtx": ("runtime.engines.tensorrt", "bench.acceptance.rtx_probe"),
    "typer": ("runtime.cli", "bench.scenarios.tensorrt_build"),
    "matplotlib": ("runtime.cli",),
    "sounddevice": ("runtime.cli",),
    "av": ("runtime.sound",),
}


class House:
    """The modules of the product, by name, as syntax trees."""

    def __init__(self, sources: dict[str, str]) -> None:
        """``sources``: path below the root -> source."""
        self.paths = {_name(path): path for path in sources}
        self.trees = {_name(path): _parsed(source) for path, source in sources.items()}

    @classmethod
    def read(cls, added: dict[str, str] | None = None) -> House:
        """The house as it is, and in memory lines at the end of some of its files, or new files."""
        sources = {
            file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
            for top in TOPS
            for file in sorted((ROOT / top).rglob("*.py*"))
            if file.suffix in (".py", ".pyi") and "package" not in file.relative_to(ROOT).parts
        }
        for path, lines in (added or {}).items():
            sources[path] = sources.get(path, "") + "\n" + lines + "\n"
        return cls(sources)

    def is_package(self, name: str) -> bool:
        return self.paths[name].endswith("__init__.py")

    @cached_property
    def folders(self) -> frozenset[str]:
        return frozenset(name.rpartition(".")[0] for name in self.trees)

    def room_of(self, name: str) -> str:
        """The folder of a module, or the module itself if folders are beside it."""
        if self.is_package(name):
            return name
        folder = name.rpartition(".")[0]
        beside = any(each.startswith(f"{folder}.") for each in self.folders)
        return name if beside else folder

    def imports_of(self, name: str) -> frozenset[str]:
        """Our modules that a module imports anywhere: at its top, in a function, for type checkers, or by a name that
        it passes to ``import_module``."""
        package = name if self.is_package(name) else name.rpartition(".")[0]
        found = _imported(self.trees[name], package)
        # a name from a module imports only that module; from a package, whatever its __init__ provides
        named = found & self.trees.keys()
        return frozenset(each for each in named if not any(other.startswith(f"{each}.") for other in named))

    @cached_property
    def arrows(self) -> dict[tuple[str, str], set[tuple[str, str]]]:
        """Each pair of rooms where one imports the other, and the modules that do."""
        found: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for name in self.trees:
            if name in TOPS:
                continue  # a face, which offers what its rooms have
            for other in self.imports_of(name):
                pair = self.room_of(name), self.room_of(other)
                if pair[0] != pair[1]:
                    found.setdefault(pair, set()).add((name, other))
        return found


def _name(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def _nodes(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


@cache
def _imported(tree: ast.Module, package: str) -> frozenset[str]:
    """What the imports of a module in ``package`` may name, without "ualm."."""
    found: set[str] = set()
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("ualm.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").removeprefix("ualm.")
            if node.level:
                base = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                module = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
        else:
            found |= {each.removeprefix("ualm.").rstrip(".") for each in _loaded_by_name(node)}
    return frozenset(found)


def _called(node: ast.AST) -> str:
    """The last name of what a call calls; "" for anything else."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _loaded_by_name(node: ast.AST) -> Iterator[str]:
    """Module names in a call of ``import_module``, up to where they are computed."""
    if isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
        first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def _within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


# ---- the rules ----


def circles(house: House) -> Iterator[str]:
    """There is an order in which every import points down, so that a room can be changed without knowing those above
    it."""
    below: dict[str, set[str]] = {}
    for upper, lower in house.arrows:
        below.setdefault(upper, set()).add(lower)
        below.setdefault(lower, set())
    left = dict(below)
    while ready := [room for room, needs in left.items() if not needs & left.keys()]:
        for room in ready:
            del left[room]
    for rooms, pairs in house.arrows.items():
        if set(rooms) <= left.keys():
            yield from (f"{a} imports {b}, in a circle; move what both need below both" for a, b in sorted(pairs))


def upward(house: House) -> Iterator[str]:
    """The runtime's rooms have one order."""

    def floor(name: str) -> int | None:
        fits = [at for at, room in enumerate(ORDER) if _within(name, room)]
        return max(fits, key=lambda at: len(ORDER[at]), default=None)

    for pairs in house.arrows.values():
        for upper, lower in sorted(pairs):
            high, low = floor(upper), floor(lower)
            if high is not None and low is not None and low > high:
                yield f"{upper} imports {lower}: {ORDER[low]} is above {ORDER[high]}"


def tops(house: House) -> Iterator[str]:
    """Only what is above another top-level folder imports it."""
    for upper, lower in house.arrows:
        top, other = upper.split(".")[0], lower.split(".")[0]
        if top != other and not any(_within(upper, room) and other in known for room, known in ABOVE.items()):
            yield f"{upper} imports {lower}: {top} is below {other}, and only the command line knows both"


def forbidden(house: House) -> Iterator[str]:
    for pairs in house.arrows.values():
        for upper, lower in sorted(pairs):
            for room, (others, why) in FORBIDDEN.items():
                if _within(upper, room) and any(_within(lower, other) for other in others):
                    yield f"{upper} imports {lower}: {why}"


def private(house: House) -> Iterator[str]:
    """Names with a leading underscore belong to their file: a method or field that others need has a name without one.
    What a class inherits, it may use on ``self``."""
    for name, tree in house.trees.items():
        own = set(_OF_LIBRARIES)
        for node in _nodes(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _on_self(node):
                own.add(node.attr)
        for node in _nodes(tree):
            used: set[str] = set()
            if isinstance(node, ast.Attribute) and not _on_self(node):
                used = {node.attr}
            elif isinstance(node, ast.Call) and _called(node) in ("getattr", "setattr", "delattr"):
                used = {str(each.value) for each in node.args[1:2] if isinstance(each, ast.Constant)}
            elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("ualm")):
                used = {alias.name for alias in node.names} - {"_native", "_cuda"}
            strange = {each for each in used - own if re.match(r"_[A-Za-z]", each)}
            for each in sorted(strange):
                yield f"{name}:{getattr(node, 'lineno', 0)}: {each} is another file's own"


def _on_self(node: ast.Attribute) -> bool:
    value = node.value
    return (isinstance(value, ast.Name) and value.id in ("self", "cls")) or _called(value) == "super"


def libraries(house: House) -> Iterator[str]:
    """Libraries are imported in their rooms alone: others can be loaded without them."""
    for name, tree in house.trees.items():
        for node in _nodes(tree):
            wanted = set(_loaded_by_name(node))
            if isinstance(node, ast.Import):
                wanted = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                wanted = {node.module or ""}
            for library in {each.split(".")[0] for each in wanted} & LIBRARIES.keys():
                if not any(_within(name, room) for room in LIBRARIES[library]):
                    yield f"{name} imports {library}, which only {', '.join(LIBRARIES[library]) or 'tests'} may"


#: Rule -> a file and lines that break it, and what is then reported.
BREAKS: list[tuple[Callable[[House], Iterator[str]], str, str, str]] = [
    (
        circles,
        "runtime/files/reading.py",
        "from ..sound.sound import Sound",
        "files.reading imports runtime.sound.sound",
    ),
    (circles, "runtime/engines/device/loop.py", "def f():\n    from ..tensorrt import engine", "device.loop imports"),
    (upward, "runtime/engines/__init__.py", "from ..model import Model", "runtime.engines imports runtime.model"),
    (upward, "runtime/vocabulary.py", "import importlib\nimportlib.import_module('ualm.runtime.model')", "vocabulary"),
    (upward, "runtime/engines/timing.py", "from ..audio import pacing", "runtime.audio is above runtime.engines"),
    (
        upward,
        "runtime/sound/limits.py",
        "if TYPE_CHECKING:\n    from ..bundle.bundle import Bundle",
        "above runtime.sound",
    ),
    (tops, "runtime/sampling.py", "from ualm.export import bundle", "runtime is below export"),
    (tops, "export/run/recipe.py", "import ualm.bench.compare", "export is below bench"),
    (tops, "runtime/terminal/live.py", "importlib.import_module(f'ualm.bench.{name}')", "runtime is below bench"),
    (forbidden, "runtime/conversation/loop.py", "from ..engines.onnxruntime import cpu", "not an engine"),
    (forbidden, "runtime/conversation/resources.py", "from ..engines.registry import choose", "not an engine"),
    (forbidden, "runtime/engines/tensorrt/body.py", "from ..onnxruntime import codec", "engines/device"),
    (forbidden, "export/formats/store.py", "from ...runtime.model import Model", "computes no model"),
    (private, "runtime/conversation/turn.py", "def f(engine):\n    engine._anything = 1", "_anything"),
    (private, "runtime/conversation/turn.py", "getattr(engine, '_running')", "_running"),
    (private, "runtime/model.py", "from .engines.registry import _Candidate", "_Candidate"),
    (libraries, "runtime/engines/tables.py", "import_module('torch')", "imports torch"),
    (libraries, "runtime/bundle/quality.py", "def f():\n    import scipy.stats", "imports scipy"),
    (libraries, "bench/meters/memory.py", "from onnx import helper", "imports onnx"),
    (libraries, "export/bundle.py", "import onnxruntime", "imports onnxruntime"),
]


@pytest.fixture(scope="module")
def house() -> House:
    return House.read()


@pytest.mark.parametrize("rule", [circles, upward, tops, forbidden, private, libraries])
def test_the_rules_are_kept(house: House, rule: Callable[[House], Iterator[str]]) -> None:
    broken = list(rule(house))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("rule", "file", "lines", "told"), BREAKS)
def test_what_breaks_a_rule_is_found(rule: Callable[[House], Iterator[str]], file: str, lines: str, told: str) -> None:
    assert (ROOT / file).is_file()
    assert any(told in problem for problem in rule(House.read({file: lines})))


@pytest.mark.parametrize("top", [*TOPS, "tests"])
def test_a_folder_holds_few_files(top: str) -> None:
    counts = Counter(file.parent for file in (ROOT / top).rglob("*.py") if file.stem != "__init__")
    for folder, count in counts.items():
        most = MOST_SUPPORT if folder == ROOT / "tests" / "support" else MOST_MODULES
        assert count <= most, f"{folder.relative_to(ROOT)} holds {count} modules, {most} at most: find their rooms"


def crowded(files: list[Path]) -> Iterator[str]:
    """A prefix that three siblings share is a folder; the prefix itself is one of them."""
    names: dict[tuple[Path, str], list[str]] = {}
    for file in files:
        prefix = file.stem.removeprefix("test_").partition("_")[0]
        if file.stem != "__init__" and prefix:
            names.setdefault((file.parent, prefix), []).append(file.name)
    for (folder, prefix), found in names.items():
        if len(found) >= 3:
            yield f"{folder}: {', '.join(sorted(found))} are a folder {prefix}/"


@pytest.mark.parametrize("top", [*TOPS, "tests", "csrc"])
def test_a_prefix_that_three_siblings_share_is_a_folder(top: str) -> None:
    suffixes = (".cpp", ".cu") if top == "csrc" else (".py",)
    assert not list(crowded([file for file in (ROOT / top).rglob("*") if file.suffix in suffixes]))
    assert list(crowded([Path("a/chat.py"), Path("a/chat_view.py"), Path("a/chat_x.py")]))


def test_the_core_includes_nothing_above_it() -> None:
    """csrc/core is compiled for host and device: it knows neither of them, and nobody but python/ knows Python."""
    for file in (ROOT / "csrc").rglob("*.*"):
        room = file.relative_to(ROOT / "csrc").parts[0]
        for included in re.findall(r'^#include [<"]([^>"]+)', file.read_text(encoding="utf-8"), re.MULTILINE):
            above = {"core": ("cpu/", "cuda/", "probe/", "python/", "cuda_runtime", "pybind11"), "python": ()}
            wrong = above.get(room, ("python/", "pybind11"))
            assert not included.removeprefix("../").startswith(wrong), f"{file}: includes {included}"


def test_the_house_is_seen(house: House) -> None:
    """No rule is empty: there are rooms, and imports between them, at the top of files, in functions, by name."""
    assert len({house.room_of(name) for name in house.trees}) > 40 and len(house.arrows) > 100
    assert ("runtime.model", "runtime.conversation") in house.arrows
    assert (
        house.room_of("runtime.errors") == "runtime.errors" and house.room_of("runtime.text.stream") == "runtime.text"
    )
    assert "runtime.engines.onnxruntime.cuda" in house.imports_of("runtime.engines.registry")
    assert "bench" in house.imports_of("runtime.cli.verbs.bench.measuring")
