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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_header(path: Path) -> dict[str, TensorSlot]:
    """The tensors of a safetensors file, checked: known dtypes, and bytes that fill the file without gap or overlap.

    Raises:
        ModelFault: the file is broken, truncated, or not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if prefix == b"version ":
            raise _broken(
                path, "this is a Git LFS pointer, not the weights", "run 'git lfs pull' in the model repository"
            )
        if len(prefix) < 8 or length > min(MAX_HEADER, size - 8):
            raise _broken(path, f"its header claims {length} bytes of a file of {size}")
        header = parse_json(file.read(length), str(path))
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    slots = {name: _slot(path, name, entry, 8 + length) for name, entry in header.items()}
    position = 8 + length
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop)):
        if slot.start != position:
            raise _broken(path, f"tensor {name!r} starts at byte {slot.start}, not {position}: a gap or an overlap")
        position = slot.stop
    if position != size:
        raise _broken(path, f"its tensors end at byte {position} of {size}")
    return slots


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


def check_finite(directory: Path) -> None:
    """Read all weights of all safetensors files below a directory once, and refuse infinite ones and NaN.

    Floating-point numbers of 16 (both kinds), 32 and 64 bits are looked at; a few MiB of memory are used at a time.

    Raises:
        ModelFault: a tensor is not finite (file and tensor are named), or a file is broken.
    """
    for path in sorted(directory.rglob("*.safetensors")):
        for name, slot in read_header(path).items():
            if slot.dtype in _EXPONENT and not _finite(path, slot):
                raise ModelFault(
                    f"tensor {name!r} holds NaN or infinite values",
                    fix="this model is broken: train it again, or go back to a checkpoint that is not",
                    where=str(path),
                )


def _finite(path: Path, slot: TensorSlot) -> bool:
    import numpy as np

    kind, exponent = _EXPONENT[slot.dtype]
    mask = np.array(exponent, kind)
    with path.open("rb") as file:
        file.seek(slot.start, os.SEEK_SET)
        remaining = (slot.stop - slot.start) // mask.itemsize
        while remaining:
            bits = np.fromfile(file, kind, min(remaining, _CHUNK))
            if len(bits) == 0:
                raise _broken(path, "it became shorter while it was read")
            if ((bits & mask) == mask).any():
                return False
            remaining -= len(bits)
    return True
