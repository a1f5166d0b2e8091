"""Checks data from a file against a pydantic model, and says where in the file each problem stands."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safeguard.errors import PolicyFault
from safeguard.policy.reading import FieldPath, Positions
from safeguard.registry import suggest

MAX_LISTED = 50
_TYPES = {"an object": "a mapping", "a valid array": "a list", "a valid string": "text"}
"""What pydantic calls a type, in YAML's words."""
_WRONG_SHAPE = {
    "list_type",
    "model_type",
    "dict_type",
    "string_type",
    "float_type",
    "int_type",
    "bool_type",
    "literal_error",
    "none_required",
}
"""Errors that say another of a field's types was meant."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and which field it is about."""

    path: FieldPath
    what: str
    at_key: bool = False
    """The key itself is wrong, not its value."""
    also: FieldPath | None = None
    """The other field that it is about."""

    def line(self, positions: Positions | None = None) -> str:
        """``concepts[0].kind: …``, with the other field and where that stands."""
        text = f"{field_name(self.path)}: {self.what}" if self.path else self.what
        if self.also is None:
            return text
        if positions is None:
            return f"{text} (see {field_name(self.also)})"
        line, column = positions.find(self.also)
        return f"{text} (see {field_name(self.also)}, {positions.file}:{line}:{column})"


def field_name(path: FieldPath) -> str:
    """``concepts[0].prompts``."""
    return "".join(f".{part}" if str(part).isidentifier() else f"[{part!r}]" for part in path).lstrip(".")


def validate(model: type[M], data: Any, positions: Positions) -> M:
    """The data as that model, without conversions between types: ``"3"`` and ``true`` are no integers.

    Raises:
        PolicyFault: lists every problem with ``file:line:column``.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise fault(problems_of(error, model, data), positions) from error


def fault(problems: Sequence[Problem], positions: Positions | None) -> PolicyFault:
    """One error that lists all problems, in the order of the file if there is one."""
    if positions is None:
        placed = [("", problem.line()) for problem in problems]
    else:
        ordered = sorted((positions.find(p.path, key=p.at_key), p.line(positions)) for p in problems)
        placed = [(f"{positions.file}:{place.line}:{place.column}", line) for place, line in ordered]
    where, first = placed[0]
    lines = [first, *(f"{place}: {line}" if place else line for place, line in placed[1:MAX_LISTED])]
    if len(placed) > MAX_LISTED:
        lines.append(f"… and {len(placed) - MAX_LISTED} more")
    many = f"these {len(placed)} fields" if len(placed) > 1 else "this field"
    return PolicyFault("\n".join(lines), fix=f"correct {many}", where=where)


def problems_of(error: ValidationError, model: type[BaseModel], data: Any) -> list[Problem]:
    """What pydantic found, in the terms of the file.

    A field that may be one of several types yields errors for each; only those of the type that was meant are kept.
    """
    problems: list[Problem] = []
    shapes: dict[FieldPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        path, in_union = _path(details["loc"], data, absent=details["type"] == "missing")
        if in_union and details["type"] in _WRONG_SHAPE:
            shapes.setdefault(path, []).append(details)
        else:
            problems.append(_problem(path, details, model))
    for path, alternatives in shapes.items():
        if not any(problem.path[: len(path)] == path for problem in problems):
            expected = " or ".join(_expected(details) for details in alternatives)
            problems.append(Problem(path, f"should be {expected}, not {_shown(alternatives[0])}"))
    return problems


def _problem(path: FieldPath, details: ErrorDetails, model: type[BaseModel]) -> Problem:
    kind, message = details["type"], details["msg"]
    if kind == "extra_forbidden":
        known = _known_fields(model, details["loc"][:-1])
        advice = suggest(str(path[-1]), known) if known else "there is nothing to set"
        return Problem(path, f"unknown field; {advice}", at_key=True)
    if kind == "missing":
        return Problem(path, "this field is required")
    if kind == "value_error":
        return Problem(path, str(details["ctx"]["error"]))
    if kind == "too_short":
        return Problem(path, f"should have {details['ctx']['min_length']} or more entries, not {len(details['input'])}")
    if message.startswith("Input should be "):
        message = f"should be {_expected(details)}"
    return Problem(path, f"{message[0].lower()}{message[1:]}, not {_shown(details)}")


def _expected(details: ErrorDetails) -> str:
    expected = details["msg"].removeprefix("Input should be ")
    return _TYPES.get(expected, expected)


def _shown(details: ErrorDetails) -> str:
    value = details["input"]
    return {dict: "a mapping", list: "a list", type(None): "empty"}.get(type(value)) or reprlib.repr(value)


def _path(location: FieldPath, data: Any, *, absent: bool) -> tuple[FieldPath, bool]:
    """The part of an error's location that is in the data (or just not), and whether it ends in a type of a union."""
    path: FieldPath = ()
    in_union = False
    for part in location[:-1] if absent else location:
        in_union = not _has(data, part)
        if not in_union:
            path, data = (*path, part), data[part]
    return ((*path, location[-1]), False) if absent else (path, in_union)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _known_fields(model: type[BaseModel], location: FieldPath) -> list[str]:
    """Field names of the models that may stand at a location."""
    models = [model]
    for part in location:
        fields = [owner.model_fields[str(part)] for owner in models if part in owner.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or models
    return sorted({name for found in models for name in found.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
