"""What an ONNX file declares: its inputs, its outputs, and its weights in another file.

Only these are read from the protobuf message (onnx.proto3 has the numbers of its fields); operators are skipped, so it
takes milliseconds, needs no library, and shows what a graph expects before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..files.reading import first_line

#: Bytes of the largest graph that is read: its weights lie elsewhere, and those of 100 layers are below a megabyte.
MOST_BYTES = 64 << 20
#: Fields of all graphs of a bundle together, a microsecond or more each; a layer of a body takes some 300.
MOST_FIELDS = 700_000

#: Names of element types, as in numpy and ml_dtypes.
_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    10: "float16",
    16: "bfloat16",
    17: "float8_e4m3fn",
    21: "uint4",
    22: "int4",
}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_EXTERNAL = 1
#: The highest field number that protobuf allows.
_MOST_NUMBER = (1 << 29) - 1

_Value = int | memoryview


@dataclass(frozen=True)
class Declared:
    """An input or output: its element type, and its sizes, None where one varies."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OutsideWeight:
    """A weight that lies in the file ``location``, ``length`` bytes from ``offset`` on."""

    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class GraphHeader:
    """What a graph declares, by name. ``fields``: of the message, how many were read for it."""

    inputs: Mapping[str, Declared]
    outputs: Mapping[str, Declared]
    weights: Mapping[str, OutsideWeight]
    fields: int


def read_graph_header(path: Path, most_fields: int = MOST_FIELDS) -> GraphHeader:
    """The header of an ONNX file; :class:`BundleError` if it is not one, or has too many fields."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        return _Message(most_fields).header(memoryview(content))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a readable ONNX graph ({first_line(error)}); export the run again") from error


class _Message:
    """Reads a message field by field, ``most`` of them."""

    def __init__(self, most: int) -> None:
        self._most, self._read = most, 0

    def header(self, message: memoryview) -> GraphHeader:
        """Of a ModelProto: graph 7."""
        graphs = [_bytes(value) for number, value in self._fields(message) if number == 7]
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs in it")
        return self._graph(graphs[0])

    def _graph(self, message: memoryview) -> GraphHeader:
        inputs: dict[str, Declared] = {}
        outputs: dict[str, Declared] = {}
        weights: dict[str, OutsideWeight] = {}
        for number, value in self._fields(message):
            if number in (11, 12):
                name, declared = self._declared(_bytes(value))
                side = inputs if number == 11 else outputs
                if name in side:
                    raise ValueError(f"{name!r} is declared twice")
                side[name] = declared
            elif number == 5:
                name, weight = self._weight(_bytes(value))
                if weight is not None:
                    weights[name] = weight
        return GraphHeader(inputs, outputs, weights, self._read)

    def _declared(self, message: memoryview) -> tuple[str, Declared]:
        """ValueInfoProto: name 1, type 2; of the type tensor_type 1: elem_type 1, shape 2, of which each dim is 1."""
        fields = self._last(message)
        name, tensor = _text(fields.get(1)), self._last(_bytes(self._last(_bytes(fields.get(2))).get(1)))
        sizes: list[int | None] = []
        if 2 not in tensor:
            raise ValueError(f"{name!r} has no shape")
        for number, value in self._fields(_bytes(tensor[2])):
            if number == 1:
                size = self._last(_bytes(value)).get(1)
                sizes.append(None if size is None else _integer(size))
        return name, Declared(_type(tensor.get(1)), tuple(sizes))

    def _weight(self, message: memoryview) -> tuple[str, OutsideWeight | None]:
        """TensorProto: dims 1, data_type 2, name 8, external_data 13, data_location 14."""
        fields = self._last(message)
        name = _text(fields.get(8))
        if fields.get(14, 0) != _EXTERNAL:
            return name, None
        sizes: list[int] = []
        about: dict[str, str] = {}
        for number, value in self._fields(message):
            if number == 1:  # one by one, or all in one
                sizes += [value] if isinstance(value, int) else list(self._varints(value))
            elif number == 13:
                entry = self._last(_bytes(value))
                about[_text(entry.get(1))] = _text(entry.get(2))
        if not {"location", "offset", "length"} <= set(about):
            raise ValueError(f"weight {name!r} does not say where it is")
        offset, length = (int(about[key]) if about[key].isdecimal() else -1 for key in ("offset", "length"))
        return name, OutsideWeight(_type(fields.get(2)), tuple(sizes), about["location"], offset, length)

    def _fields(self, message: memoryview) -> Iterator[tuple[int, _Value]]:
        """Number and value of each field in turn; ValueError where a message is cut or malformed."""
        at = 0
        while at < len(message):
            self._count()
            if (key := message[at]) < 0x80:  # one byte, as nearly always
                at += 1
            else:
                key, at = _varint(message, at)
            number, kind = key >> 3, key & 7
            if not 0 < number <= _MOST_NUMBER:
                raise ValueError("a field without a number")
            if kind == _VARINT:
                value, at = _varint(message, at)
                yield number, value
                continue
            if kind == _BYTES:
                length, at = _varint(message, at)
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                length = 8 if kind == _EIGHT_BYTES else 4
            else:
                raise ValueError(f"a field of kind {kind}")
            if length > len(message) - at:
                raise ValueError("it is cut off")
            yield number, message[at : at + length]
            at += length

    def _varints(self, message: memoryview) -> Iterator[int]:
        at = 0
        while at < len(message):
            self._count()
            value, at = _varint(message, at)
            yield value

    def _last(self, message: memoryview) -> dict[int, _Value]:
        """Fields by number; of a repeated one the last counts, as in protobuf."""
        return dict(self._fields(message))

    def _count(self) -> None:
        self._read += 1
        if self._read > self._most:
            raise ValueError(f"more than the {MOST_FIELDS} fields that the graphs of a bundle may have in all")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value, shift, end = 0, 0, min(len(message), at + 10)
    for place in range(at, end):
        byte = message[place]
        if byte < 0x80:
            return value | byte << shift, place + 1
        value |= (byte & 0x7F) << shift
        shift += 7
    raise ValueError("it is cut off" if end < at + 10 else "a number of more than 64 bits")


def _bytes(value: _Value | None) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a field is missing or of another kind")
    return value


def _integer(value: _Value) -> int:
    if not isinstance(value, int):
        raise ValueError("a size is not a number")
    return value


def _text(value: _Value | None) -> str:
    return bytes(_bytes(value)).decode("utf-8")


def _type(value: _Value | None) -> str:
    if not isinstance(value, int) or value not in _TYPES:
        shown = value if isinstance(value, int) else "missing"
        raise ValueError(f"element type {shown} is none that is used here")
    return _TYPES[value]
