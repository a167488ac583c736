"""Protocol buffers on the wire, as little of them as reading a SavedModel takes.

TensorFlow's own message classes come only with `import tensorflow`, which the loader
and the check must not do, and TensorFlow Serving's need one more package. Field
numbers are those of `saved_model.proto`, `meta_graph.proto`, `graph.proto`,
`function.proto`, `attr_value.proto` and TensorFlow Serving's `prediction_log.proto`.
https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator

Value = int | memoryview


def fields(message: bytes | memoryview) -> Iterator[tuple[int, Value]]:
    """Yields (field number, value) of a message, nested messages as memoryviews.

    Varints come as unsigned integers, fixed-size numbers as memoryviews.

    Raises:
        ValueError: The bytes are no protocol buffer.
    """
    view, position = memoryview(message), 0
    while position < len(view):
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        if kind == 2:
            size, position = _varint(view, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if position + size > len(view):
            raise ValueError(f"cut off at byte {len(view)}")
        yield number, view[position : position + size]
        position += size


def first(message: bytes | memoryview, number: int, default: Value = b"") -> Value:
    """The last value of a field that is not repeated, or `default`."""
    found = default
    for field, value in fields(message):
        if field == number:
            found = value
    return found


def every(message: bytes | memoryview, number: int) -> list[Value]:
    """All values of a repeated field."""
    return [value for field, value in fields(message) if field == number]


def text(value: bytes | memoryview) -> str:
    """A string field."""
    return bytes(value).decode("utf-8", "replace")


def entries(message: bytes | memoryview, number: int) -> dict[str, memoryview]:
    """A `map<string, Message>` field."""
    return {text(first(e, 1)): first(e, 2) for e in every(message, number)}


def signed(value: int) -> int:
    """An int64 field, which the wire carries as an unsigned varint."""
    return value - (1 << 64) if value >> 63 else value


def field(number: int, value: int | bytes | str) -> bytes:
    """Writes one field: an unsigned integer, or bytes (a message, a string)."""
    if isinstance(value, int):
        return _to_varint(number << 3) + _to_varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _to_varint(number << 3 | 2) + _to_varint(len(value)) + value


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(view) or shift > 63:
            raise ValueError(f"broken number at byte {position}")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
