"""Strict readers for the only two formats a model directory may hold its meaning in: JSON and safetensors.

Both read bytes that nobody vouches for, so both are bounded in size, refuse what two parsers could read differently
(duplicate keys, overlapping tensors) and import neither torch nor diffusers.

A safetensors file is eight bytes (length of the header, little-endian), the header (JSON: tensor name -> dtype, shape,
byte offsets) and the bytes of all tensors, in that order, without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from safeguard.errors import ModelFault

MAX_JSON = 32 * 2**20
"""Bytes; the largest honest file is a tokenizer.json of some 4 MB."""
MAX_HEADER = 100 * 10**6
"""Bytes; the limit of the safetensors format."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per number of every dtype accepted; the quantised ones are not."""

_EXPONENT = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}
"""Bits of the exponent, all of them set exactly when the number is infinite or not a number (IEEE 754)."""
_CHUNK = 2**22
"""Numbers checked at a time."""

_AGAIN = "fetch the model again from a source you trust"


class Digest(Protocol):
    """A hash that is being computed, of :mod:`hashlib`."""

    def update(self, data: bytes | bytearray, /) -> None:
        """Go on with these bytes."""

    def hexdigest(self) -> str:
        """What it comes to so far, in hexadecimal."""


@dataclass(frozen=True)
class TensorSlot:
    """Where one tensor lies in its file.

    Attributes:
        dtype: as safetensors spells it, ``"F16"``.
        shape: sizes of all dimensions.
        start: first byte, counted from the start of the file.
        stop: the byte after the last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_json(data: bytes, where: str) -> Any:
    """The value of strict JSON: UTF-8, no duplicate keys, of sane depth.

    Raises:
        ModelFault: it is not; ``where`` says which file.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"duplicate key {key!r}")
            found[key] = value
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelFault(f"invalid JSON ({reason})", fix=_AGAIN, where=where) from error


def load_json(path: Path) -> Any:
    """The JSON value in a file of at most 32 MiB.

    Raises:
        ModelFault: too large, or invalid.
    """
    with path.open("rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ModelFault(f"JSON larger than {MAX_JSON >> 20} MiB", fix=_AGAIN, where=str(path))
    return parse_json(data, str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 32 MiB.

    Raises:
        ModelFault: too large, invalid, or not an object.
    """
    value = load_json(path)
    if not isinstance(value, dict):
        raise ModelFault(f"expected a JSON object, found {type(value).__name__}", fix=_AGAIN, where=str(path))
    return value


def open_weights(path: Path) -> BinaryIO:
    """The one way a weight file is opened, so that what is read of it can be counted."""
    return path.open("rb")


def read_header(path: Path) -> dict[str, TensorSlot]:
    """The tensors of a safetensors file, checked: known dtypes, and bytes that fill the file without gap or overlap.

    Raises:
        ModelFault: the file is broken, truncated, or not safetensors.
    """
    with open_weights(path) as file:
        return _header(file, path)[0]


def read_tensors(path: Path, digest: Digest) -> Iterator[tuple[str, TensorSlot, bytearray]]:
    """Every tensor of a safetensors file: its name, slot and bytes, in the order of the file, one at a time.

    The file is read once, from its first byte to its last: what is yielded, what enters the digest and what is checked
    are the same bytes.

    Args:
        path: the file.
        digest: fed with the whole file, header included; complete when the iteration has ended.

    Raises:
        ModelFault: the file is broken, or a number is infinite or NaN (file and tensor are named).
    """
    with open_weights(path) as file:
        slots, header = _header(file, path)
        digest.update(header)
        for name, slot in _in_order(slots):
            data = bytearray(slot.stop - slot.start)
            if file.readinto(data) != len(data):  # type: ignore[attr-defined]  # a BufferedReader has it
                raise _broken(path, "it became shorter while it was read")
            digest.update(data)
            if slot.dtype in _EXPONENT and not _finite(data, slot.dtype):
                raise ModelFault(
                    f"tensor {name!r} holds NaN or infinite values",
                    fix="this model is broken: train it again, or go back to a checkpoint that is not",
                    where=str(path),
                )
            yield name, slot, data


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, TensorSlot], bytes]:
    """The slots, and the bytes in front of the first tensor."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if prefix == b"version ":
        raise _broken(path, "this is a Git LFS pointer, not the weights", "run 'git lfs pull' in the model repository")
    if len(prefix) < 8 or length > min(MAX_HEADER, size - 8):
        raise _broken(path, f"its header claims {length} bytes of a file of {size}")
    text = file.read(length)
    header = parse_json(text, str(path))
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    slots = {name: _slot(path, name, entry, 8 + length) for name, entry in header.items()}
    position = 8 + length
    for name, slot in _in_order(slots):
        if slot.start != position:
            raise _broken(path, f"tensor {name!r} starts at byte {slot.start}, not {position}: a gap or an overlap")
        position = slot.stop
    if position != size:
        raise _broken(path, f"its tensors end at byte {position} of {size}")
    return slots, prefix + text


def _in_order(slots: Mapping[str, TensorSlot]) -> list[tuple[str, TensorSlot]]:
    return sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop))


def _slot(path: Path, name: str, entry: Any, base: int) -> TensorSlot:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [start, stop, *shape]
        honest = all(type(number) is int and number >= 0 for number in numbers)
        honest = honest and stop - start == math.prod(shape) * ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"tensor {name!r} has a malformed entry or an unsupported dtype") from error
    if not honest:
        raise _broken(path, f"the shape of tensor {name!r} does not agree with its bytes")
    return TensorSlot(dtype, tuple(shape), base + start, base + stop)


def _broken(path: Path, reason: str, fix: str = _AGAIN) -> ModelFault:
    return ModelFault(f"broken safetensors file: {reason}", fix=fix, where=str(path))


def _finite(data: bytearray, dtype: str) -> bool:
    import numpy as np

    kind, exponent = _EXPONENT[dtype]
    mask, numbers = np.array(exponent, kind), np.frombuffer(data, kind)
    chunks = (numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK))
    return not any(((bits & mask) == mask).any() for bits in chunks)
