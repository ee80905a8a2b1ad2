"""Reads configuration files; every refusal names the file, the field and the value found."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ...runtime.errors import ExportError
from ...runtime.files import reading
from ...runtime.files.reading import first_line, shown

#: The largest size that a configuration may ask for: the formats in a bundle hold sizes in 32 bits.
MOST_SIZE = 2**31 - 1


class Fields:
    """Reads nested fields of a configuration; every refusal names the field and the value found."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path, self.values, self.prefix = path, values, prefix

    def section(self, name: str, *, required: bool = True) -> Fields:
        value = self.values.get(name, None if required else {})
        if not isinstance(value, Mapping):
            self.refuse(name, "expected a section of fields")
        return Fields(self.path, value, f"{self.prefix}{name}.")

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def expect(self, name: str, wanted: Any, default: Any, fix: str) -> None:
        if self.get(name, default) != wanted:
            self.refuse(name, fix, default)

    def name(self, field: str, why: str, default: str | None = None) -> str:
        """A non-empty string; required if there is no default."""
        value = self.get(field, default)
        if not isinstance(value, str) or not value:
            self.refuse(field, why)
        return value

    def refuse(self, name: str, why: str, default: Any = None) -> NoReturn:
        field = name if name.isidentifier() else shown(name)
        raise ExportError(f"{self.path}: {self.prefix}{field} = {shown(self.values.get(name, default))}: {why}")

    def size(self, name: str, default: int | None = None, most: int = MOST_SIZE) -> int:
        """A positive whole number; ``default`` (if there is one) if the field is absent or null."""
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            self.refuse(name, "a positive whole number is expected", default)
        if value > most:
            self.refuse(name, f"at most {most} is supported", default)
        return value

    def positive(self, name: str, default: float) -> float:
        """A finite number greater than 0."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
            self.refuse(name, "a finite number greater than 0 is expected", default)
        return float(value)


def read_json(path: Path) -> Mapping[str, Any]:
    """The fields of a JSON file, within the limits of :mod:`runtime.files.reading`."""
    try:
        values = reading.read_json(path)
    except FileNotFoundError as error:
        raise ExportError(f"{path}: missing; copy the model's folder again") from error
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ExportError(f"{path}: not a readable JSON file ({reason}); copy the model's folder again") from error
    if not isinstance(values, Mapping):
        raise ExportError(f"{path}: holds no fields; expected a JSON object")
    return values
