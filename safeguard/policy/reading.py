"""Safe YAML: the part of YAML 1.2 that is also JSON, with a position for every node and limits against hostile files.

A file is read event by event, so a limit stops it before anything large is built. Only mappings with text keys, lists
and plain scalars exist: no tags (hence no objects), no merge keys, no dates (they stay text). ``no`` is a word and
``1e-5`` a number, as in YAML 1.2 and unlike YAML 1.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from safeguard.errors import PolicyFault

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_ALIASES = 64
MAX_NODES = 20_000
"""After aliases are expanded; pure Python reads that many in about two seconds."""

FieldPath = tuple[str | int, ...]
"""Keys and list indices from the top of a document to a node."""
Scalar = str | int | float | bool | None

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_DIGITS = 18


class Place(NamedTuple):
    """Line and column of a node, both counted from 1."""

    line: int
    column: int


@dataclass
class Positions:
    """Where everything in a file stands."""

    file: str
    values: dict[FieldPath, Place] = field(default_factory=dict)
    keys: dict[FieldPath, Place] = field(default_factory=dict)

    def find(self, path: FieldPath, *, key: bool = False) -> Place:
        """The place of a node (or of its key), or of the nearest node around it that the file has."""
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.values:
            path = path[:-1]
        return self.values[path]


@dataclass(frozen=True)
class _Node:
    value: Scalar | list[_Node] | dict[str, _Node]
    place: Place
    keys: dict[str, Place] = field(default_factory=dict)
    size: int = 1
    height: int = 0


def load_yaml(source: Path | str, *, name: str = "<text>") -> tuple[Any, Positions]:
    """Read one YAML document.

    Args:
        source: a file, or the text itself.
        name: what messages call the text; a file is called by its path.

    Returns:
        The data (dict, list, str, int, float, bool, None) and where everything in it stands.

    Raises:
        PolicyFault: unreadable, not YAML, beyond a limit, or outside the part of YAML that is read; with
            ``file:line:column``.
    """
    if isinstance(source, Path):
        name, text = str(source), _read(source)
    else:
        text = source
        if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise _too_large(name)
    root = _Composer(text, name).document()
    positions = Positions(name)
    return _expand(root, (), positions), positions


def plain_scalar(text: str) -> Scalar:
    """What an unquoted word means.

    Raises:
        ValueError: a number that is not finite or has more than 18 digits.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        if len(text.lstrip("+-0")) > _MAX_DIGITS:
            raise ValueError("the number is too large")
        return int(text)
    number = float(text) if _FLOAT.fullmatch(text) else None
    if _NOT_FINITE.fullmatch(text) or (number is not None and math.isinf(number)):
        raise ValueError("the number is not finite")
    return text if number is None else number


def _read(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyFault(
            f"cannot read the file: {error.strerror or error}",
            fix="check the path and its permissions",
            where=str(path),
        ) from error
    if len(content) > MAX_BYTES:
        raise _too_large(str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise PolicyFault("the file is not UTF-8", fix="save it as UTF-8", where=f"{path}:{line}:{column}") from error


def _too_large(name: str) -> PolicyFault:
    return PolicyFault(
        f"the file is larger than {MAX_BYTES // 2**20} MiB",
        fix="keep only the policy or suite in it",
        where=f"{name}:1:1",
    )


def _expand(node: _Node, path: FieldPath, positions: Positions) -> Any:
    """Data of a node, each alias as a copy of its own."""
    positions.values[path] = node.place
    if isinstance(node.value, list):
        return [_expand(item, (*path, index), positions) for index, item in enumerate(node.value)]
    if isinstance(node.value, dict):
        positions.keys |= {(*path, key): place for key, place in node.keys.items()}
        return {key: _expand(item, (*path, key), positions) for key, item in node.value.items()}
    return node.value


class _Composer:
    """Builds nodes from parser events and refuses whatever goes beyond the limits."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._anchors: dict[str, _Node] = {}
        self._aliases = 0
        self._nodes = 0
        self._events = self._parse()

    def document(self) -> _Node:
        """The only document of the text; an empty text is ``None``."""
        next(self._events)
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return _Node(None, Place(1, 1))
        root = self._node(next(self._events), depth=1)
        next(self._events)
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._refuse("a second document begins", "keep one document in the file", event)
        return root

    def _parse(self) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            before = self._text[: error.position]
            self._fault("unprintable character", "remove it", before.count("\n") + 1, len(before) - before.rfind("\n"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            what = "not valid YAML: " + ", ".join(part for part in (error.context, error.problem) if part)
            self._fault(what, "look at indentation, quotes and colons there and just before", line, column)

    def _node(self, event: yaml.Event, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", "flatten it", event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(
                f"tag {tag!r} is not allowed", "remove it; only text, numbers, lists, mappings are read", event
            )
        before = self._nodes
        self._count(1, event)
        node = self._content(event, depth)
        node = replace(node, size=self._nodes - before)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _content(self, event: yaml.Event, depth: int) -> _Node:
        if isinstance(event, yaml.ScalarEvent):
            return _Node(self._scalar(event), _place(event))
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(inner, depth + 1))
            return _Node(items, _place(event), height=_height(items))
        members: dict[str, _Node] = {}
        keys: dict[str, Place] = {}
        while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
            key = self._key(inner)
            if key in keys:
                self._refuse(f"key {key!r} appears twice, first in line {keys[key].line}", "remove one of them", inner)
            keys[key] = _place(inner)
            members[key] = self._node(next(self._events), depth + 1)
        return _Node(members, _place(event), keys, height=_height(members.values()))

    def _key(self, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
            self._refuse("a key must be plain text", "put it in quotes", event)
        key = self._scalar(event)
        if not isinstance(key, str):
            self._refuse(f"key {event.value!r} is not text", "put it in quotes", event)
        if key == "<<" and event.implicit[0]:
            self._refuse("merge keys (<<) are not read", "write the fields out", event)
        return key

    def _alias(self, event: yaml.AliasEvent, depth: int) -> _Node:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            self._refuse(f"more than {MAX_ALIASES} aliases", "write the values out", event)
        if event.anchor not in self._anchors:
            self._refuse(f"alias *{event.anchor} has no anchor before it", f"define &{event.anchor} first", event)
        node = self._anchors[event.anchor]
        if depth + node.height > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", "flatten it", event)
        self._count(node.size, event)
        return replace(node, place=_place(event))

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        text: str = event.value
        if found := _CONTROL.search(text):
            self._refuse(f"control character {found.group()!r}", "remove it", event)
        if not event.implicit[0]:
            return text
        try:
            return plain_scalar(text)
        except ValueError as error:
            self._refuse(str(error), "write a smaller number, or put it in quotes if it is text", event)

    def _count(self, nodes: int, event: yaml.Event) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            self._refuse(f"more than {MAX_NODES} values", "shorten it; an alias counts each time it is used", event)

    def _refuse(self, what: str, fix: str, event: yaml.Event) -> NoReturn:
        self._fault(what, fix, *_place(event))

    def _fault(self, what: str, fix: str, line: int, column: int) -> NoReturn:
        raise PolicyFault(what, fix=fix, where=f"{self._name}:{line}:{column}")


def _place(event: yaml.Event) -> Place:
    mark: Any = event.start_mark
    return Place(mark.line + 1, mark.column + 1)


def _height(nodes: Any) -> int:
    return 1 + max((node.height for node in nodes), default=0)
