"""Matplotlib's figures as SVG: text stays text, colours and fonts are the style sheet's, equal figures equal bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from safeguard.report.templates import visible
from safeguard.resources import resource_dir

UNIT = 72
"""User units of an SVG in an inch of Matplotlib's: a length in points is one in user units."""
MEASURED = "DejaVu Sans"
"""The font that Matplotlib brings along and measures with; shown is :data:`SHOWN`, which is narrower."""
SHOWN = "system-ui, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "safeguard",
    "text.parse_math": False,  # a probe may be called $x$
    "font.family": MEASURED,
    "lines.scale_dashes": False,
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.0,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_HREF = "{http://www.w3.org/1999/xlink}href"
_DECIMALS = re.compile(r"(\.\d\d)\d+")


@contextmanager
def drawing() -> Iterator[None]:
    """Figures are made in here: a user's own settings of Matplotlib do not count, and names are no formulas."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has fonts of its own
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


@cache
def palette() -> dict[str, str]:
    """Colours on light paper by name, ``#rrggbb``, as ``reports/report.css`` declares them first."""
    light = (resource_dir("reports") / "report.css").read_text(encoding="utf-8").partition("}")[0]
    return {name: to_hex(colour) for name, colour in re.findall(r"--([\w-]+): (#[0-9a-f]+);", light)}


def plain(text: str) -> str:
    """A name of a stranger as one line that XML can hold."""
    return " ".join(visible(text).split())


def document(figure: Figure) -> str:
    """A file of its own, in the colours of light paper, of a figure made within the same :func:`drawing`."""
    return _saved(figure).replace(f"'{MEASURED}'", SHOWN)


def inline(
    figure: Figure,
    name: str,
    title: str,
    description: str = "",
    *,
    css: str = "chart",
    tooltips: Mapping[str, Sequence[str]] | None = None,
) -> Markup:
    """An ``<svg>`` element for a page with that style sheet.

    Args:
        figure: made within the same :func:`drawing`, in colours of :func:`palette`, which become the variables of that
            name; nothing lies outside its axes but what is meant to.
        name: unique in the page; ids begin with it.
        title: what the figure is, for those who cannot see it.
        description: what it shows.
        css: classes of the element.
        tooltips: gid of a line -> what a pointer over each of its markers says.
    """
    drawn = ElementTree.fromstring(_saved(figure))
    for gid, words in (tooltips or {}).items():
        group = next(element for element in drawn.iter() if element.get("id") == gid)
        markers = [element for element in group.iter() if _HREF in element.attrib]
        for marker, text in zip(markers, words, strict=True):
            ElementTree.SubElement(marker, "title").text = visible(text)
    _adapt(drawn, name)
    labels = {tag: text for tag, text in (("title", title), ("desc", description)) if text}
    ids = " ".join(f"{name}-{tag}" for tag in labels)
    root = ElementTree.Element("svg", {"class": css, "viewBox": drawn.attrib["viewBox"], "role": "img"})
    root.set("aria-labelledby", ids)
    for tag, text in labels.items():
        ElementTree.SubElement(root, tag, id=f"{name}-{tag}").text = visible(text)
    root.extend(element for element in drawn if len(element))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _saved(figure: Figure) -> str:
    with io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
        return buffer.getvalue()


def _adapt(drawn: ElementTree.Element, name: str) -> None:
    """Make what Matplotlib drew a guest in the page: no rule for all elements, no id that another figure may have."""
    targets = {element.attrib[_HREF] for element in drawn.iter() if _HREF in element.attrib}
    for element in list(drawn.iter()):
        for child in list(element):
            if child.tag.endswith(("}style", "}clipPath")):
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
        old = element.attrib
        element.attrib = {
            key: _themed(value) if key == "style" else _DECIMALS.sub(r"\1", " ".join(value.split()))
            for key, value in old.items()
            if key not in (_HREF, "id", "clip-path") and not value.startswith("rotate(-0 ")
        }
        if f"#{old.get('id')}" in targets:
            element.set("id", f"{name}-{old['id']}")
        if _HREF in old:
            element.set("href", f"#{name}-{old[_HREF][1:]}")


def _themed(style: str) -> str:
    for name, colour in palette().items():
        style = style.replace(colour, f"var(--{name})")
    return style.replace(f"'{MEASURED}'", "var(--sans)")
