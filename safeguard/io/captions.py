"""A folder of images with captions that nobody vouches for, laid out as ``ImageFolder`` of Hugging Face ``datasets``.

``metadata.jsonl`` has an object per line, or ``metadata.csv`` a row, with ``file_name`` and ``text`` or ``caption``;
other columns are passed over, and so are files that it does not name. Nothing is read that lies outside the folder, no
link leads out of it, and only regular files are opened.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from safeguard.errors import UsageFault
from safeguard.io.pictures import MAX_FILES, read_bytes

NAMES = ("metadata.jsonl", "metadata.csv")
CAPTIONS = ("text", "caption")
MAX_BYTES, MAX_CAPTION = 16 * 2**20, 2_000
"""Of the file with the captions, and letters of one."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LAYOUT = 'one row per image: {"file_name": "axe.png", "text": "an axe"} in metadata.jsonl, or these columns in a CSV'


class Row(NamedTuple):
    """One image, not opened: its name in the folder, its caption, and where both stand."""

    file: str
    caption: str
    where: str


def read_rows(folder: Path) -> list[Row]:
    """The rows of a folder's metadata, in their order; no image is opened.

    Raises:
        UsageFault: there is no such folder or no metadata in it, or a row that is not understood, with its line.
    """
    path = _metadata(folder)
    rows, lines = [], dict[str, str]()
    for line, fields in (_json if path.suffix == ".jsonl" else _csv)(path, _text(path)):
        row = _row(fields, f"{path}:{line}")
        if row.file in lines:
            raise UsageFault(
                f"{row.file!r} is there twice, first at {lines[row.file]}", fix="name it once", where=row.where
            )
        lines[row.file] = row.where
        rows.append(row)
        if len(rows) > MAX_FILES:
            raise UsageFault(f"more than {MAX_FILES:,} rows", fix="take a sample of them", where=row.where)
    if not rows:
        raise UsageFault("no image is named", fix=_LAYOUT, where=str(path))
    return rows


def read_image(folder: Path, row: Row) -> bytes:
    """The content of a row's file, not decoded.

    Raises:
        UsageFault: it is no regular file inside the folder, or is too large.
    """
    inside = folder.resolve()
    path = (inside / row.file).resolve()
    if not path.is_relative_to(inside):
        raise UsageFault(f"{row.file!r} leads out of the folder", fix="put the image into it", where=row.where)
    if not path.is_file():
        raise UsageFault(f"there is no file {row.file!r}", fix="correct its name, or drop the row", where=row.where)
    return read_bytes(path)


def _metadata(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageFault("there is no such folder", fix="give a folder of images with captions", where=str(folder))
    found = [path for name in NAMES if (path := folder / name).is_file()]
    if len(found) != 1:
        what = "both metadata.jsonl and metadata.csv" if found else "neither metadata.jsonl nor metadata.csv"
        raise UsageFault(f"the folder has {what}", fix=f"give one of them, {_LAYOUT}", where=str(folder))
    if not found[0].resolve().is_relative_to(folder.resolve()):
        raise UsageFault("the file leads out of the folder", fix="put it there, not a link", where=str(found[0]))
    return found[0]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageFault(
                f"the file is larger than {MAX_BYTES // 2**20} MiB", fix="take a sample of the images", where=str(path)
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageFault("the file is not UTF-8", fix="save it as UTF-8", where=f"{path}:{line}") from error
    except OSError as error:
        raise UsageFault(f"cannot read the file: {error}", fix="check its permissions", where=str(path)) from error


def _json(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            fields = json.loads(written, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise UsageFault(f"not a line of JSON: {error}", fix=_LAYOUT, where=f"{path}:{line}") from error
        if not isinstance(fields, dict):
            raise UsageFault("the line is no JSON object", fix=_LAYOUT, where=f"{path}:{line}")
        yield line, fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader, columns = csv.reader(StringIO(text, newline=""), strict=True), list[str]()
    try:
        for values in reader:
            if not columns:
                columns = values
                _once([(name, None) for name in columns])
            elif len(values) not in (0, len(columns)):
                raise ValueError(f"{len(values)} values, and {len(columns)} columns")
            elif values:
                yield reader.line_num, dict(zip(columns, values, strict=True))
    except (ValueError, csv.Error) as error:
        raise UsageFault(f"not a row of CSV: {error}", fix=_LAYOUT, where=f"{path}:{reader.line_num}") from error


def _row(fields: dict[str, Any], where: str) -> Row:
    """A row's file and caption.

    Raises:
        UsageFault: one of them is missing or no text, or cannot be what it says.
    """
    file, captions = fields.get("file_name"), [fields[name] for name in CAPTIONS if name in fields]
    if not isinstance(file, str) or not file:
        raise UsageFault("the row names no file in 'file_name'", fix=_LAYOUT, where=where)
    if len(captions) != 1 or not isinstance(captions[0], str) or not captions[0].strip():
        raise UsageFault("the row needs one caption, in 'text' or 'caption'", fix=_LAYOUT, where=where)
    if len(captions[0]) > MAX_CAPTION:
        raise UsageFault(f"the caption is longer than {MAX_CAPTION} letters", fix="shorten it", where=where)
    if _SURROGATE.search(captions[0]):
        raise UsageFault("the caption has half a character (\\ud800 … \\udfff)", fix="write it out", where=where)
    relative = PurePosixPath(file)
    if _CONTROL.search(file) or "\\" in file or relative.is_absolute() or ".." in relative.parts:
        raise UsageFault(
            f"{file!r} is no name inside the folder", fix="name files below the folder, without '..'", where=where
        )
    return Row(str(relative), captions[0].strip(), where)
