"""The docstrings of the public names: in one form, in agreement with the signatures, and with examples that run."""

from __future__ import annotations

import ast
import builtins
import doctest
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import ualm
import ualm.runtime

#: Sections in the order of numpydoc; the entries of these name something.
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "Examples")
NAMING = ("Parameters", "Attributes", "Raises")
#: Examples that ran at least, and docstrings that they belong to: the test cannot pass empty.
LEAST_EXAMPLES, LEAST_DOCSTRINGS = 180, 80

NAMES = [name for name in ualm.runtime.__all__ if name != "__version__"]


# ---- a docstring ----


@dataclass(frozen=True)
class Entry:
    """An entry of a section: ``name : type, default value`` and the lines below it, which describe it."""

    name: str
    type: str
    about: str

    @property
    def default(self) -> object:
        """The default that it states; ``inspect.Parameter.empty`` where it states none."""
        stated = re.search(r"\bdefault (.+)$", self.type)
        if stated is None:
            return inspect.Parameter.empty
        return math.inf if stated[1] == "inf" else ast.literal_eval(stated[1])


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts: ``summary``, the first paragraph, and the ``sections`` with their texts, in order."""

    summary: str
    sections: dict[str, str]

    @classmethod
    def of(cls, text: str) -> Docstring:
        head, *rest = re.split(r"^(\S.*)\n-{3,}$\n?", inspect.cleandoc(text), flags=re.MULTILINE)
        titles = [title.strip() for title in rest[::2]]
        assert len(titles) == len(set(titles)), f"a section is there twice: {titles}"
        return cls(head.split("\n\n")[0].strip(), dict(zip(titles, rest[1::2], strict=True)))

    def entries(self, section: str) -> list[Entry]:
        """The entries of a section; none where it is missing."""
        found = []
        for part in re.split(r"^(?=\S)", self.sections.get(section, ""), flags=re.MULTILINE):
            head, _, about = part.partition("\n")
            if head.strip():
                name, _, kind = head.partition(" : ")
                found.append(Entry(name.strip(), kind.strip(), textwrap.dedent(about).strip()))
        return found


# ---- what has one ----


@dataclass(frozen=True)
class Public:
    """A public class, or a method or property of one. ``owner``: the class that defines it."""

    name: str
    object: Any
    owner: type

    @property
    def text(self) -> str | None:
        """Its own docstring: neither a base's, nor the signature that ``dataclass`` writes in its place."""
        text: str | None = vars(self.object).get("__doc__") if self.is_class else self.object.__doc__
        generated = self.is_class and text is not None and text.startswith(f"{self.object.__name__}(")
        return None if generated else text

    @property
    def is_class(self) -> bool:
        return isinstance(self.object, type)

    @property
    def is_error(self) -> bool:
        return self.is_class and issubclass(self.object, BaseException)

    @property
    def is_property(self) -> bool:
        return isinstance(self.object, property)

    @property
    def is_dataclass(self) -> bool:
        return self.is_class and is_dataclass(self.object)


def publics() -> Iterator[Public]:
    """Every public class, and every public method and property that it has from a class of ours."""
    for name in NAMES:
        kind = getattr(ualm.runtime, name)
        yield Public(name, kind, kind)
        for attribute in sorted({each for base in ours(kind) for each in vars(base) if not each.startswith("_")}):
            owner = next(base for base in kind.__mro__ if attribute in vars(base))
            member = vars(owner)[attribute]
            found = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if isinstance(found, property) or inspect.isfunction(found):
                yield Public(f"{name}.{attribute}", found, owner)


def ours(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "ualm"]


PUBLICS = list(publics())


def parameters(public: Public) -> dict[str, object]:
    """What its section "Parameters" describes, with the defaults; ``*`` and ``**`` as in the signature."""
    function: Any = public.object
    if public.is_property or public.is_dataclass:  # fields are attributes
        return {}
    if public.is_class:
        function = vars(function).get("__init__") or vars(function).get("__new__")
        if function is None:
            return {}
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = list(inspect.signature(function).parameters.values())
    return {stars.get(each.kind, "") + each.name: each.default for each in found if each.name not in ("self", "cls")}


def attributes(kind: type) -> dict[str, object]:
    """What its section "Attributes" describes: the fields of a dataclass, else the attributes that the class sets
    itself, without defaults."""
    if is_dataclass(kind):
        none = inspect.Parameter.empty
        return {field.name: none if field.default is MISSING else field.default for field in fields(kind)}
    names = dict.fromkeys(vars(kind).get("__annotations__", ()))
    if "__init__" in vars(kind):
        tree = ast.parse(textwrap.dedent(inspect.getsource(vars(kind)["__init__"])))
        stores = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
        stores.sort(key=lambda node: (node.lineno, node.col_offset))
        names |= dict.fromkeys(node.attr for node in stores if not node.attr.startswith("_"))
    return dict.fromkeys(names, inspect.Parameter.empty)


# ---- the form ----


def problems(public: Public) -> list[str]:
    """What is wrong with a docstring, each in a line; nothing where all is well."""
    if not (public.text or "").strip():
        return ["has no docstring"]
    doc = Docstring.of(public.text or "")
    return [*problems_of_form(public, doc), *problems_of_names(public, doc), *problems_of_results(public, doc)]


def problems_of_form(public: Public, doc: Docstring) -> Iterator[str]:
    if "\n" in doc.summary or not doc.summary.endswith("."):
        yield f"the summary is one line and ends with a full stop, not {doc.summary!r}"
    titles = list(doc.sections)
    if titles != [title for title in SECTIONS if title in titles]:
        yield f"the sections are {titles}; known, in this order: {', '.join(SECTIONS)}"
    for section in titles:
        entries = doc.entries(section) if section not in ("Notes", "Examples") else []
        if not doc.sections[section].strip():
            yield f"{section} is empty"
        yield from (f"{section}: {each.name} is not described" for each in entries if not each.about)
        if section in ("Parameters", "Attributes"):
            yield from (f"{section}: {each.name} has no type" for each in entries if not each.type)


def problems_of_names(public: Public, doc: Docstring) -> Iterator[str]:
    """Parameters and attributes are those of the code, in its order and with its defaults; errors exist."""
    expected = {"Parameters": parameters(public)}
    # an error also repeats an attribute of its base where that holds something; other classes list all they have
    if public.is_class and not public.is_error:
        expected["Attributes"] = attributes(public.object)
    for section, wanted in expected.items():
        found = doc.entries(section)
        names = [each.name for each in found]
        yield from (f"{section} lacks {name}" for name in wanted if name not in names)
        yield from (f"{section}: there is no {name}" for name in names if name not in wanted)
        if sorted(names) == sorted(wanted) and names != list(wanted):
            yield f"{section}: {', '.join(names)}, but the order is {', '.join(wanted)}"
        for each in found:
            if each.name in wanted and each.default != wanted[each.name]:
                yield f"{section}: {each.name} : {each.type}, but the default is {wanted[each.name]!r}"
    if public.is_error:
        known = {name for base in ours(public.object) for name in attributes(base)}
        named = {each.name for each in doc.entries("Attributes")}
        yield from (f"Attributes: there is no {name}" for name in named - known)
        yield from (f"Attributes lacks {name}" for name in attributes(public.object).keys() - named)
    for each in doc.entries("Raises"):
        error = getattr(ualm.runtime, each.name, None) or getattr(builtins, each.name, None)
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            yield f"Raises: there is no error {each.name}"


def problems_of_results(public: Public, doc: Docstring) -> Iterator[str]:
    if not public.is_class and not public.is_property:
        result = public.object.__annotations__.get("return", "None")
        gives = sorted({"Returns", "Yields"} & doc.sections.keys())
        if (result in ("None", None)) == bool(gives):
            yield f"returns {result}, but the sections are {list(doc.sections)}"
    if "Raises" not in doc.sections and (error := re.search(r":class:`\w*Error`", public.text or "")):
        yield f"mentions {error[0]}, but has no section Raises"
    if not public.is_property and not public.is_error and ">>> " not in doc.sections.get("Examples", ""):
        yield "has no Examples"


@pytest.mark.parametrize("public", PUBLICS, ids=[public.name for public in PUBLICS])
def test_a_docstring_is_complete_and_agrees_with_the_signature(public: Public) -> None:
    assert problems(public) == [], f"{public.name}: " + "; ".join(problems(public))


def test_the_public_names_are_found() -> None:
    names = {public.name for public in PUBLICS}
    assert set(NAMES) < names
    assert {"Model.open", "Model.engine", "Turn.close", "Sound.from_file", "AudioSampling.from_mapping"} < names
    assert not any("._" in name for name in names) and "Answer.upper" not in names


#: What is found in the docstring below, and what brings it there.
SPOILT: dict[str, Callable[[str], str]] = {
    "has no docstring": lambda text: "",
    "Parameters lacks most": lambda text: re.sub(r"most : int.*\n.*\n", "", text),
    "Parameters: there is no least": lambda text: text.replace("most : int", "least : int"),
    "but the default is 5": lambda text: text.replace("default 5", "default 6"),
    "most is not described": lambda text: text.replace("    Most of it.\n", ""),
    "returns int, but": lambda text: re.sub(r"Returns\n.*\n.*\n.*\n", "", text),
    "has no section Raises": lambda text: text.replace("Raises\n------", "Notes\n-----"),
    "there is no error NoSuchError": lambda text: text.replace("\nOSError\n", "\nNoSuchError\n"),
    "has no Examples": lambda text: text.replace(">>> ", ""),
    "ends with a full stop": lambda text: text.replace("Summary.", "Summary"),
    "known, in this order": lambda text: text.replace("Examples\n--------", "Example\n-------"),
}


@pytest.mark.parametrize("problem", SPOILT)
def test_a_docstring_that_does_not_fit_the_code_is_found(problem: str) -> None:
    def function(self: object, most: int = 5) -> int:
        """Summary.

        Parameters
        ----------
        most : int, default 5
            Most of it.

        Returns
        -------
        int
            That.

        Raises
        ------
        OSError
            As :class:`InputError`.

        Examples
        --------
        >>> 1
        1
        """
        return most

    whole = inspect.cleandoc(function.__doc__ or "")
    assert problems(Public("function", function, object)) == []
    function.__doc__ = SPOILT[problem](whole)
    assert function.__doc__ != whole
    assert any(problem in found for found in problems(Public("function", function, object)))


# ---- the examples ----


def run(name: str, text: str, names: dict[str, Any]) -> tuple[int, str]:
    """Run the examples of a docstring with ``names``, which they may add to; the number, and a report of failures."""
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), names, name, None, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    return len(test.examples), "".join(report)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, as for a reader, and the packaged model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("UALM_BUNDLE", "UALM_ENGINE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("workplace")
def test_the_examples_run() -> None:
    """Those of ``ualm.runtime`` first: as its docstring says, all others go on from there, and each for itself."""
    names: dict[str, Any] = {"__name__": "__main__"}
    ran, reports = {}, []
    ran["ualm.runtime"], report = run("ualm.runtime", ualm.runtime.__doc__ or "", names)
    assert not report, report
    with names["model"]:
        # classes share what they inherit: it runs once
        texts = {public.text or "": public.name for public in PUBLICS} | {ualm.__doc__ or "": "ualm"}
        for text, name in texts.items():
            ran[name], report = run(name, text, dict(names))
            reports.append(report)
    assert not any(reports), "".join(reports)
    assert sum(ran.values()) >= LEAST_EXAMPLES and sum(map(bool, ran.values())) >= LEAST_DOCSTRINGS, ran
    assert ran["ualm.runtime"] and ran["ualm"]


def test_an_example_that_is_not_true_is_reported() -> None:
    number, report = run("sums", "Add.\n\n>>> 1 + 1\n2\n>>> 1 + 1\n3", {})
    assert number == 2 and "Expected:\n    3" in report and "Got:\n    2" in report
    assert run("sums", "Add.\n\n>>> 1 + 1\n2", {}) == (1, "")
