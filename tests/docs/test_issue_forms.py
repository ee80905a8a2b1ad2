"""The issue forms follow GitHub's rules: it shows none that breaks them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / ".github" / "ISSUE_TEMPLATE"
FORMS = sorted(path for path in FOLDER.glob("*.yml") if path.name != "config.yml")
#: Type of an element -> attributes that it must have, and attributes that it may have.
ATTRIBUTES = {
    "markdown": ({"value"}, set()),
    "input": ({"label"}, {"description", "placeholder", "value"}),
    "textarea": ({"label"}, {"description", "placeholder", "value", "render"}),
    "dropdown": ({"label", "options"}, {"description", "multiple", "default"}),
    "checkboxes": ({"label", "options"}, {"description"}),
}


def form(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_requires(path: Path) -> None:
    found = form(path)
    assert {"name", "description", "body"} <= set(found) <= {"name", "description", "body", "title", "labels"}
    assert all(isinstance(found[key], str) and found[key].strip() for key in ("name", "description"))
    fields = [element for element in found["body"] if element["type"] != "markdown"]
    assert fields
    for element in found["body"]:
        needed, allowed = ATTRIBUTES[element["type"]]
        assert needed <= set(element["attributes"]) <= needed | allowed, element
        assert set(element) <= {"type", "id", "attributes", "validations"}
        assert set(element.get("validations", {})) <= {"required"}
        assert all(isinstance(element["attributes"][key], str) for key in needed - {"options"}), element
    for element in fields:
        assert re.fullmatch(r"[A-Za-z0-9_-]+", element["id"]), element
        options = element["attributes"].get("options", ["one"])
        labels = [option["label"] if isinstance(option, dict) else option for option in options]
        assert labels and len(set(labels)) == len(labels) and all(isinstance(label, str) for label in labels)
        assert "None" not in labels
    for values in ([element["id"] for element in fields], [element["attributes"]["label"] for element in fields]):
        assert len(set(values)) == len(values), values


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_what_the_doctor_says(path: Path) -> None:
    (doctor,) = (element for element in form(path)["body"] if element.get("id") == "doctor")
    assert re.fullmatch(r"ualm doctor (BUNDLE )?--json", doctor["attributes"]["label"])
    assert doctor["attributes"]["render"] == "json"
    assert doctor.get("validations", {}).get("required", False) == (path.stem != "feature")


def test_there_is_a_form_for_each_kind_and_names_differ() -> None:
    assert {path.stem for path in FORMS} == {"bug", "exactness", "feature", "performance"}
    assert len({form(path)["name"] for path in FORMS}) == len(FORMS)
    assert set(form(FOLDER / "config.yml")) <= {"blank_issues_enabled", "contact_links"}
