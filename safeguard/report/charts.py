"""What all charts share, and those of the hardening record: Matplotlib draws, the page colours (:mod:`.svg`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from safeguard.report.series import Series
from safeguard.report.svg import UNIT, drawing, inline, palette, plain
from safeguard.wording import declared, number, plural


@dataclass(frozen=True)
class Size:
    """A figure and the margins around its plot, in user units of the SVG."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    text: float = 13

    @property
    def plot(self) -> tuple[float, float]:
        """Width and height of the plot."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom


TRACE = Size(340, 210, 54, 12, 12, 44)
SPARK = Size(240, 64, 5, 5, 6, 6)


def panel(size: Size) -> tuple[Figure, Axes]:
    """An empty plot without a frame."""
    figure = Figure(figsize=(size.width / UNIT, size.height / UNIT), dpi=UNIT)
    figure.patch.set_visible(False)
    width, height = size.plot
    place = size.left / size.width, size.bottom / size.height, width / size.width, height / size.height
    axes = figure.add_axes(place)
    quiet(axes, size)
    return figure, axes


def quiet(axes: Axes, size: Size) -> None:
    """No frame, and small words at the ticks."""
    axes.set_frame_on(False)
    axes.tick_params(length=0, pad=9, labelsize=size.text, labelcolor=palette()["muted"])


def efforts_axis(axes: Axes, efforts: Iterable[int]) -> None:
    """Checkpoints along x: logarithmic above the first effort, linear to zero; so 0, 10, 25, 50 … stay apart."""
    ticks = sorted(set(efforts))
    axes.set_xscale("symlog", linthresh=next((effort for effort in ticks if effort), 1), linscale=0.4)
    axes.minorticks_off()
    axes.set_xlim(ticks[0], ticks[-1])
    axes.set_xticks(ticks, [f"{effort:,}" for effort in ticks])
    axes.tick_params(axis="x", length=5, pad=5, color=palette()["muted"])
    labels = axes.get_xticklabels()
    taken: list[Bbox] = []
    for label in dict.fromkeys([*labels[:1], *labels[-1:], *labels]):  # the ends first: they stay
        box = label.get_window_extent().padded(3)
        if box.count_overlaps(taken):
            label.set_visible(False)
        else:
            taken.append(box)


def grid(axes: Axes, along: Literal["x", "y"]) -> None:
    """Quiet lines behind everything."""
    axes.grid(axis=along, color=palette()["rule"], linewidth=1)
    axes.set_axisbelow(True)


def shares_axis(axes: Axes, top: float, along: Literal["x", "y"]) -> None:
    """Round shares along ``x`` or ``y``, with a grid."""
    ticks = [top * part / 5 for part in range(6)]
    {"x": axes.set_xticks, "y": axes.set_yticks}[along](ticks, [declared(tick) for tick in ticks])
    grid(axes, along)


def axis_line(axes: Axes, along: Literal["x", "y"]) -> None:
    """The line at zero of ``x`` or ``y``."""
    draw = {"x": axes.axvline, "y": axes.axhline}[along]
    draw(0, color=palette()["muted"], linewidth=1, zorder=1)


def name_x(axes: Axes, name: str, size: Size) -> None:
    """Say what lies along x."""
    axes.set_xlabel(plain(name), color=palette()["muted"], fontsize=size.text)


def smooth(values: Sequence[float | None], most: int = 160) -> tuple[list[float], list[float]]:
    """Steps and means of at most ``most`` equal stretches of a series, counted from 1.

    Steps without a value are passed over; where no value of a stretch is finite the mean is NaN, which is a gap.
    """
    logged = np.array([(step, value) for step, value in enumerate(values, start=1) if value is not None]).reshape(-1, 2)
    parts = np.array_split(logged, min(most, len(logged))) if len(logged) else []
    finite = [part[np.isfinite(part[:, 1]), 1] for part in parts]
    means = [float((values / len(values)).sum()) if len(values) else math.nan for values in finite]
    return [float(part[:, 0].mean()) for part in parts], means


@drawing()
def trace(anchor: str, series: Series) -> Markup:
    """A logged quantity against outer steps, from the first that has a value, with zero in sight."""
    steps, means = smooth(series.values)
    first = next(step for step, value in enumerate(series.values, start=1) if value is not None)
    last = len(series.values)
    figure, axes = panel(TRACE)
    axis_line(axes, "y")
    axes.plot(steps, means, color=palette()["hardened"], linewidth=2.5, solid_capstyle="round", zorder=2)
    axes.set_xlim(first, last)
    places = sorted({first, (first + last) // 2, last})
    axes.set_xticks(places, [f"{step:,}" for step in places])
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")
    finite = [mean for mean in means if math.isfinite(mean)]
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(min(0.0, *finite), max(0.0, *finite))
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_yticks(ticks, [number(tick) for tick in ticks])
    grid(axes, "y")
    name_x(axes, "outer steps", TRACE)
    span = f"from {number(series.finite[0])} to {number(series.finite[-1])}"
    return inline(figure, anchor, f"{series.name} during hardening", f"{plural(last - first + 1, 'step')}, {span}")


@drawing()
def spark(anchor: str, series: Series) -> Markup:
    """A logged quantity as a small line, with a dot on the last value."""
    steps, means = smooth(series.values)
    colour = palette()["hardened"]
    figure, axes = panel(SPARK)
    axes.set_axis_off()
    axes.plot(steps, means, color=colour, linewidth=1.75, solid_capstyle="round")
    known = [(step, mean) for step, mean in zip(steps, means, strict=True) if math.isfinite(mean)]
    if known:
        axes.plot(*known[-1], "o", color=colour, markersize=7, markeredgecolor=palette()["card"], markeredgewidth=1.5)
    span = f", from {number(series.finite[0])} to {number(series.finite[-1])}" if series.finite else ""
    return inline(figure, anchor, f"{series.name}: {plural(series.count, 'value')}{span}", css="spark")
