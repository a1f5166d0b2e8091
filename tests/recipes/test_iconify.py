"""Emoji sets whose icons have names and no code points."""

import pytest

from recipes.reference.iconify import code_points, icons, letters

UNICODE = [
    {"name": "CROSSED SWORDS", "short_names": ["crossed_swords"], "unified": "2694-FE0F"},
    {"name": "HOCHO", "short_names": ["hocho", "knife"], "unified": "1F52A"},
    {"name": None, "short_names": ["axe"], "unified": "1FA93"},
]
NAMED = [{"annotation": "kitchen knife", "hexcode": "1F52A"}, {"annotation": "knife", "hexcode": "0000"}]


def test_names_are_compared_by_letters_and_the_first_table_wins():
    codes = code_points(UNICODE, NAMED)
    assert codes[letters("Crossed-Swords")] == "2694-FE0F"
    assert codes["knife"] == codes["kitchenknife"] == "1F52A" and codes["axe"] == "1FA93"
    assert "" not in codes


def test_icons_are_found_by_name_or_alias_once_each_and_unknown_ones_left_out():
    body = '<path d="M0 0"/>'
    table = {
        "width": 128,
        "height": 64,
        "icons": {"kitchen-knife": {"body": body}, "axe": {"body": body, "width": 32}, "unheard-of": {"body": body}},
        "aliases": {
            "hocho": {"parent": "kitchen-knife"},
            "crossed-swords": {"parent": "axe"},
            "lost": {"parent": "no"},
        },
    }
    found = dict(icons(table, code_points(UNICODE, NAMED)))
    assert list(found) == ["1F52A", "1FA93", "2694-FE0F"]
    assert b'viewBox="0 0 128 64"' in found["1F52A"] and b'viewBox="0 0 32 64"' in found["1FA93"]
    assert all(svg.endswith(b"</svg>") and body.encode() in svg for svg in found.values())


@pytest.mark.parametrize(("name", "same"), [("T-Shirt", "tshirt"), ("jack-o-lantern", "jackolantern"), ("…", "")])
def test_letters(name, same):
    assert letters(name) == same
