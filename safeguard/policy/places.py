"""Paths in a policy: they are those of the policy's own file, wherever the command is run, and move with no digest.

A relative path is resolved against the folder of the policy when the file is read, so that what lies in a working
directory never counts, and a policy written elsewhere carries absolute paths, hub ids and shipped names only. The
digest of a policy has the last name of an absolute path: what lies there has a digest of its own in every report.
Folders of images in a suite are those of the suite's file, likewise.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeguard.policy.methods import used_methods
from safeguard.policy.reading import FieldPath
from safeguard.policy.schema import Policy

SETTINGS = ("checkpoint", "weights", "path", "file")
"""Settings of methods that may name a place on disk."""
EMBEDDED = "reference"
"""The embedded model and its detector, whatever lies beside the policy."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def located(data: Any, policy: Policy, folder: Path) -> Any:
    """A policy as it was read, with relative paths resolved against its folder.

    Args:
        data: what was read.
        policy: the same, checked.
    """
    found = copy.deepcopy(data)
    for field, text in _places(policy):
        place = _resolved(field, text, folder)
        if place is not None:
            _put(found, field, str(place))
    return found


def portable(policy: Policy) -> Any:
    """The policy as data in which an absolute path is its last name."""
    data = policy.model_dump(mode="json")
    for field, text in _places(policy):
        if Path(text).is_absolute():
            _put(data, field, Path(text).name)
    return data


def image_folders(data: Any, field: FieldPath = ()) -> Iterator[FieldPath]:
    """Fields that name a folder of somebody's own images, which stands beside what these show; at any depth."""
    if isinstance(data, dict):
        if isinstance(data.get("folder"), str) and "shows" in data:
            yield (*field, "folder")
        for key, inner in data.items():
            yield from image_folders(inner, (*field, key))
    elif isinstance(data, list):
        for index, inner in enumerate(data):
            yield from image_folders(inner, (*field, index))


def located_folders(data: Any, folder: Path) -> Any:
    """A suite as it was read, with the folders of images resolved against its own."""
    found = copy.deepcopy(data)
    for field in image_folders(data):
        _put(found, field, str((folder / Path(at(data, field)).expanduser()).resolve()))
    return found


def portable_folders(data: Any) -> Any:
    """The same in which a folder is its last name: what lies there has a digest of its own."""
    found = copy.deepcopy(data)
    for field in image_folders(data):
        _put(found, field, Path(at(data, field)).name)
    return found


def at(data: Any, field: FieldPath) -> Any:
    """What stands in a field."""
    for step in field:
        data = data[step]
    return data


def _places(policy: Policy) -> Iterator[tuple[FieldPath, str]]:
    """Every field that may hold a path."""
    yield ("model",), policy.model
    yield ("certification", "suite"), policy.certification.suite
    for path, method in used_methods(policy):
        for name in SETTINGS:
            text = method.settings.get(name)
            if isinstance(text, str):
                yield (*path, name), text


def _resolved(field: FieldPath, text: str, folder: Path) -> Path | None:
    """Where a path leads; none: it is absolute already, or no path."""
    if text == EMBEDDED or not text or Path(text).expanduser().is_absolute():
        return None
    beside = (folder / text).resolve()
    if text.startswith(("./", "../")) or _is_path(field, text):
        return beside
    return beside if field != ("certification", "suite") and beside.exists() else None


def _is_path(field: FieldPath, text: str) -> bool:
    """Whether it cannot be anything else: a name with a slash or a dot of a suite, of a model no ``owner/name``."""
    if field == ("certification", "suite"):
        return "/" in text or "." in text
    return field == ("model",) and _HUB_ID.fullmatch(text) is None


def _put(data: Any, field: FieldPath, value: str) -> None:
    at(data, field[:-1])[field[-1]] = value
