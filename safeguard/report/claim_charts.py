"""The chart of a claim: how often a concept is seen along an attack, in every model that was attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from safeguard.report.charts import Size, axis_line, efforts_axis, name_x, panel, shares_axis
from safeguard.report.svg import drawing, inline, palette
from safeguard.report.view import ClaimView, ordered, said
from safeguard.results.claim import Curve
from safeguard.wording import NUMBERED, ROLE_NAMES, declared, when

CURVES = {"desk": Size(720, 396, 52, 138, 42, 50), "phone": Size(330, 312, 42, 84, 42, 46, text=12)}
INTERVALS = {"desk": Size(720, 84, 122, 24, 30, 54), "phone": Size(330, 84, 104, 24, 30, 54, text=12)}
"""Without the rows, :data:`ROW` high each."""
ROW = 40
SHORT = {role: role for role in ROLE_NAMES}
MARKERS = {"hardened": ("o", 9), "unlearned": ("s", 8.5), "base": ("^", 10.5)}
"""Shape, and the size at which they look equally large: colour is never the only difference."""
DASHES: dict[str, Any] = {"hardened": "solid", "unlearned": (0, (8, 4)), "base": (0, (2, 5))}
LIMIT: dict[str, Any] = {"linewidth": 1.75, "linestyle": (0, (7, 4))}
CONTROL: dict[str, Any] = {"linewidth": 1.5, "linestyle": (0, (1.5, 4)), "dash_capstyle": "round"}
BROKEN: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 5, "markeredgewidth": 1.5, "clip_on": False}
FLAG: dict[str, Any] = {"linewidth": 1.25, "linestyle": (0, (2, 3))}


def of_claim(shown: ClaimView, relearned_rate: float) -> list[Markup]:
    """A claim for wide and for narrow screens: rate against effort, or side by side where there is one effort only.

    Args:
        shown: what the page says of the claim.
        relearned_rate: rate from which a concept counts as relearned; drawn as a line.
    """
    curves = ordered(shown.claim.curves)
    if not curves:
        return []
    if shown.single:
        return [_intervals(shown, curves, size, css) for css, size in INTERVALS.items()]
    return [_curves(shown, curves, relearned_rate, size, css) for css, size in CURVES.items()]


@drawing()
def _curves(shown: ClaimView, curves: Sequence[Curve], relearned_rate: float, size: Size, css: str) -> Markup:
    claim, colours = shown.claim, palette()
    figure, axes = panel(size)
    axes.set_ylim(0, shown.ceiling)
    efforts_axis(axes, [point.effort for curve in curves for point in curve.points])
    shares_axis(axes, shown.ceiling, "y")
    axis_line(axes, "y")
    name_x(axes, claim.axis, size)
    axes.annotate("images flagged", (0, 1), (8 - size.left, 26), **_words(size, "muted", "axes fraction"))
    if claim.budget is not None and shown.beyond:
        axes.axvspan(claim.budget, axes.get_xlim()[1], color=colours["rule"], alpha=0.55, linewidth=0, zorder=0)
    beyond = 1 + 10 / size.plot[0]
    axes.axhline(claim.limit, xmax=beyond, color=colours["ink"], zorder=2, **LIMIT)
    ends = [(claim.limit, f"limit {declared(claim.limit)}", "ink")]
    if relearned_rate <= shown.ceiling:
        axes.axhline(relearned_rate, xmax=beyond, color=colours["muted"], zorder=2, **CONTROL)
        ends.append((relearned_rate, "relearned", "muted"))
        _flags(axes, curves, size)
    for place, curve in enumerate(reversed(curves)):
        _curve(axes, curve, zorder=3 + place)
    _name_ends(axes, curves, ends, size)
    return _element(figure, shown, curves, css)


def _curve(axes: Axes, curve: Curve, zorder: float) -> None:
    """One model: line, markers, and the band between its bounds; between variants, which have no order, no line.

    A cross is on every point where the model no longer draws other things.
    """
    colour, along = palette()[curve.role], len(curve.points) > 1 and curve.axis not in NUMBERED
    efforts = [point.effort for point in curve.points]
    rates = [point.rate for point in curve.points]
    lower, upper = [point.lower for point in curve.points], [point.upper for point in curve.points]
    if along:
        axes.fill_between(efforts, lower, upper, color=colour, alpha=0.15, linewidth=0, zorder=2.5)
    else:
        axes.vlines(efforts, lower, upper, color=colour, alpha=0.6, linewidth=2, zorder=zorder)
    line: dict[str, Any] = {"linestyle": DASHES[curve.role] if along else "none"}
    line |= {"dash_capstyle": "round", "solid_capstyle": "round"}
    axes.plot(efforts, rates, color=colour, linewidth=2.5, zorder=zorder, **line, **_markers(curve))
    broken = [(point.effort, point.rate) for point in curve.points if not point.working]
    for effort, rate in broken:
        axes.plot(effort, rate, color=palette()["card"], zorder=zorder + 0.5, **BROKEN)


def _markers(curve: Curve) -> dict[str, Any]:
    shape, size = MARKERS[curve.role]
    edge = {"markeredgecolor": palette()["card"], "markeredgewidth": 1.5}
    return {"marker": shape, "markersize": size, "gid": _gid(curve)} | edge


def _flags(axes: Axes, curves: Sequence[Curve], size: Size) -> None:
    """After which effort a model counts as relearned: a line from its point to the number above the plot."""
    reached = []
    for curve in curves:
        rates = {point.effort: point.rate for point in curve.points}
        if curve.role != "base" and curve.effort_to_relearn in rates and curve.effort_to_relearn:
            reached.append((curve.effort_to_relearn, rates[curve.effort_to_relearn], curve.role))
    reached.sort()
    top = axes.get_ylim()[1] * (1 + 6 / size.plot[1])
    places = [(axes.transData - axes.transAxes).transform((effort, 0))[0] for effort, *_ in reached]
    sides = ["right" if place > 0.5 else "left" for place in places]
    if len(reached) == 2 and places[1] - places[0] < 90 / size.plot[0]:  # they would touch: one to each side
        sides = ["right", "left"]
    for (effort, rate, role), side in zip(reached, sides, strict=True):
        axes.vlines(effort, rate, top, color=palette()[role], zorder=2, **FLAG)
        style = _words(size, role, "data", weight="bold", ha=side)
        axes.annotate(f"{effort:,}", (effort, top), (6 if side == "left" else -6, -1), **style)


def _name_ends(axes: Axes, curves: Sequence[Curve], ends: Sequence[tuple[float, str, str]], size: Size) -> None:
    """Names at the right ends of lines and curves, moved apart where they would touch."""
    names = ROLE_NAMES if size.right > 100 else SHORT
    width, height = size.plot
    right = list(ends)
    for curve in curves:
        last = curve.points[-1]
        if last.effort == axes.get_xlim()[1]:
            right.append((last.rate, names[curve.role], curve.role))
        else:  # a curve that ends early is named where it ends
            style = _words(size, curve.role, "data", weight="bold", ha="center")
            axes.annotate(names[curve.role], (last.effort, last.rate), (0, 9), **style)
    wanted = [rate / axes.get_ylim()[1] * height for rate, *_ in right]
    for (_, text, colour), start, place in zip(right, wanted, apart(wanted, size.text + 2, height), strict=True):
        weight = "normal" if colour == "muted" else "bold"
        style = _words(size, colour, "axes fraction", weight=weight, va="center_baseline")
        if abs(place - start) > 1:
            leader = {"arrowstyle": "-", "color": palette()["muted"], "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 8}
            style["arrowprops"] = leader
        axes.annotate(
            text, (1, start / height), (1 + 16 / width, place / height), **style | {"textcoords": "axes fraction"}
        )


def apart(wanted: Sequence[float], gap: float, high: float) -> list[float]:
    """Places in [0, high] as near as can be to the wanted ones (least squares), in their order, a gap between them."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    moved = isotonic_regression(np.asarray(wanted)[order] - steps).x.clip(0, max(0.0, high - steps[-1])) + steps
    return [float(moved[place]) for place in np.argsort(order)]


@drawing()
def _intervals(shown: ClaimView, curves: Sequence[Curve], margins: Size, css: str) -> Markup:
    """A row for every model: rate, bounds, limit."""
    claim, colours = shown.claim, palette()
    size = replace(margins, height=margins.height + ROW * len(curves))
    figure, axes = panel(size)
    axes.set_xlim(0, shown.ceiling)
    axes.set_ylim(len(curves) - 0.5, -0.5)
    shares_axis(axes, shown.ceiling, "x")
    axis_line(axes, "x")
    name_x(axes, f"images flagged, {when(curves[0].points[-1].effort, claim.axis)}", size)
    axes.tick_params(axis="y", pad=14)
    axes.set_yticks(range(len(curves)), [ROLE_NAMES[curve.role] for curve in curves], weight="bold")
    for row, (curve, label) in enumerate(zip(curves, axes.get_yticklabels(), strict=True)):
        point, colour = curve.points[-1], colours[curve.role]
        label.set_color(colour)
        axes.hlines(row, point.lower, point.upper, color=colour, linewidth=12, alpha=0.25, zorder=2)
        axes.plot(point.rate, row, color=colour, zorder=4, **_markers(curve))
    top = 1 + 6 / size.plot[1]
    axes.axvline(claim.limit, ymax=top, color=colours["ink"], zorder=3, **LIMIT)
    side = "left" if claim.limit < shown.ceiling / 2 else "right"
    style = _words(size, "ink", axes.get_xaxis_transform(), weight="bold", ha=side)
    axes.annotate(f"limit {declared(claim.limit)}", (claim.limit, top), (6 if side == "left" else -6, -1), **style)
    return _element(figure, shown, curves, css)


def _words(size: Size, colour: str, place: Any, **more: Any) -> dict[str, Any]:
    """A note at a place of those coordinates, moved by user units."""
    where = {"xycoords": place, "textcoords": "offset points", "annotation_clip": False}
    return where | {"color": palette()[colour], "fontsize": size.text} | more


def _element(figure: Figure, shown: ClaimView, curves: Sequence[Curve], css: str) -> Markup:
    tooltips = {_gid(curve): [said(curve, point) for point in curve.points] for curve in curves}
    name = f"{shown.anchor}-{css}"
    return inline(figure, name, shown.caption, shown.description, css=f"chart {css}", tooltips=tooltips)


def _gid(curve: Curve) -> str:
    return f"points-{curve.role}"
