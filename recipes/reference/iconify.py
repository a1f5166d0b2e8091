"""Emoji sets of Iconify: one JSON file of SVG bodies whose icons have names and no code points.

Names are matched by their letters and digits with the Unicode names and short names of ``emoji-datasource`` and with
the annotations of OpenMoji. What matches nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def letters(name: str) -> str:
    """A name without anything but its letters and digits, in lower case."""
    return "".join(character for character in name.lower() if character.isalnum())


def code_points(unicode_table: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, str]:
    """Letters of every known name -> its code points as the tables write them; the first table wins.

    Args:
        unicode_table: rows of ``emoji.json`` of ``emoji-datasource`` (``name``, ``short_names``, ``unified``).
        annotations: rows of ``openmoji.json`` (``annotation``, ``hexcode``).
    """
    named = [(name, row["unified"]) for row in unicode_table for name in (row["name"] or "", *row["short_names"])]
    named += [(row["annotation"], row["hexcode"]) for row in annotations]
    found: dict[str, str] = {}
    for name, code in named:
        found.setdefault(letters(name), code)
    found.pop("", None)
    return found


def icons(table: dict[str, Any], codes: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Code points and SVG of every icon of a set whose name, or alias, is known."""
    aliases = {name: entry["parent"] for name, entry in table.get("aliases", {}).items()}
    done: set[str] = set()
    for name, parent in [*((name, name) for name in table["icons"]), *aliases.items()]:
        code, icon = codes.get(letters(name)), table["icons"].get(parent)
        if code is None or icon is None or code in done:
            continue
        done.add(code)
        width = icon.get("width", table.get("width", 16))
        height = icon.get("height", table.get("height", 16))
        left, top = icon.get("left", 0), icon.get("top", 0)
        yield code, f'{_HEAD} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'.encode()
