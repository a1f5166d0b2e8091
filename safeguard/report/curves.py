"""Geometry of the report's figures: pure functions from a claim to coordinates, drawn by ``reports/figures.html.j2``.

All coordinates are user units of an SVG whose size is its :class:`Frame`; colours and fonts belong to the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from safeguard.results.report import Claim, Curve, Point
from safeguard.wording import ROLE_NAMES, declared, number, percent, plural, when

Scale = Callable[[float], float]
ROLES = ("hardened", "unlearned", "base")


@dataclass(frozen=True)
class Frame:
    """Size of a figure and the margins around its plot."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def x1(self) -> float:
        """Right edge of the plot."""
        return self.width - self.right

    @property
    def y1(self) -> float:
        """Lower edge of the plot."""
        return self.height - self.bottom


WIDE = Frame(720, 396, left=52, right=138, top=42, bottom=50)
PHONE = Frame(330, 312, left=42, right=84, top=42, bottom=46)


@dataclass(frozen=True)
class Mark:
    """One measured checkpoint: its symbol, its interval, and what a pointer over it says."""

    x: float
    symbol: str
    top: float
    bottom: float
    words: str


@dataclass(frozen=True)
class Series:
    """One model's curve."""

    role: str
    line: str
    band: str
    marks: list[Mark]


@dataclass(frozen=True)
class Label:
    """Text at the end of a line; ``from_y`` is where the line ends, ``y`` where there was room."""

    style: str
    text: str
    x: float
    y: float
    from_y: float


@dataclass(frozen=True)
class Flag:
    """Where a curve first reaches the rate that counts as relearned."""

    role: str
    x: float
    y: float
    text: str
    text_y: float
    anchor: str


@dataclass(frozen=True)
class Tick:
    """A position on an axis; an empty text is a mark without a label."""

    at: float
    text: str


@dataclass(frozen=True)
class Figure:
    """Everything a template needs to draw one chart of rate against effort."""

    axis: str
    frame: Frame
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series]
    labels: list[Label]
    flags: list[Flag]
    limit_y: float
    control_y: float | None
    budget_x: float | None


def step_scale(steps: Sequence[int], low: float, high: float) -> Scale:
    """Steps to x: logarithmic above the first positive checkpoint, linear to zero; so 0, 10, 25, 50 … stay apart."""
    positive = [step for step in steps if step > 0]
    unit, last = (min(positive), max(positive)) if positive else (1, 1)
    return lambda step: low + (high - low) * math.log1p(step / unit) / math.log1p(last / unit)


def rate_ceiling(rates: Iterable[float]) -> float:
    """The first of 10, 25, 50 and 100 % that no rate exceeds."""
    highest = max(rates, default=1.0)
    return next((top for top in (0.1, 0.25, 0.5) if highest <= top), 1.0)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, in their order, at least ``gap`` apart and inside [low, high] where they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(wanted[index], placed[-1] + gap if placed else low))
    ceiling = high
    for place in reversed(range(len(placed))):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - gap
    result = [0.0] * len(wanted)
    for position, index in zip(placed, order, strict=True):
        result[index] = round(position, 1)
    return result


def thin(ticks: Sequence[Tick], gap: float) -> list[Tick]:
    """Blank the labels that would run into their neighbour; the first and the last always stay."""
    kept: list[Tick] = []
    previous = -math.inf
    for index, tick in enumerate(ticks):
        last = index == len(ticks) - 1
        fits = tick.at - previous >= gap and (last or ticks[-1].at - tick.at >= gap)
        shown = index == 0 or last or fits
        kept.append(tick if shown else Tick(tick.at, ""))
        previous = tick.at if shown else previous
    return kept


def symbol(role: str, x: float, y: float, size: float = 4.5) -> str:
    """Path of the role's mark: a disc, a square or a triangle, so that colour is never the only difference."""
    if role == "hardened":
        return f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    if role == "unlearned":
        side = size * 0.9
        return f"M{x - side:.1f} {y - side:.1f}h{2 * side:.1f}v{2 * side:.1f}h{-2 * side:.1f}z"
    return f"M{x:.1f} {y - size:.1f}l{size * 1.1:.1f} {size * 1.8:.1f}h{-size * 2.2:.1f}z"


def ordered(curves: Sequence[Curve]) -> list[Curve]:
    """Curves that hold a point, hardened first."""
    return sorted((curve for curve in curves if curve.points), key=lambda curve: ROLES.index(curve.role))


def is_single(claim: Claim) -> bool:
    """Whether nothing changes along steps: the claim is about the model as released."""
    return len({point.effort for curve in claim.curves for point in curve.points}) < 2


def describe(curve: Curve) -> str:
    """A curve in one sentence, for those who cannot see it."""
    points = ", ".join(f"{percent(point.rate)} at {point.effort}" for point in curve.points)
    return f"{ROLE_NAMES[curve.role]}: {points}"


def curve_figure(claim: Claim, attack_control: float, frame: Frame = WIDE) -> Figure:
    """Rate against effort for every model under one claim.

    Args:
        claim: with curves of at least two different steps (see :func:`is_single`).
        attack_control: rate from which a concept counts as relearned; drawn as a line.
        frame: size of the figure.
    """
    curves = ordered(claim.curves)
    steps = sorted({point.effort for curve in curves for point in curve.points})
    x = step_scale(steps, frame.left, frame.x1)
    top = rate_ceiling([claim.limit, *(point.upper for curve in curves for point in curve.points)])

    def y(rate: float) -> float:
        return frame.y1 - (frame.y1 - frame.top) * min(max(rate, 0.0), top) / top

    control_y = y(attack_control) if attack_control <= top else None
    budget = claim.budget
    return Figure(
        axis=claim.axis,
        frame=frame,
        x_ticks=thin([Tick(round(x(step), 1), f"{step:,}") for step in steps], gap=28),
        y_ticks=[Tick(round(y(top * part / 4), 1), declared(top * part / 4)) for part in range(5)],
        series=[_series(curve, x, y) for curve in curves],
        labels=_end_labels(claim, curves, frame, x, y, control_y),
        flags=_flags(curves, frame, x, y) if control_y is not None else [],
        limit_y=round(y(claim.limit), 1),
        control_y=None if control_y is None else round(control_y, 1),
        budget_x=round(x(budget), 1) if budget is not None and budget < steps[-1] else None,
    )


def _series(curve: Curve, x: Scale, y: Scale) -> Series:
    points = curve.points
    forward = [f"{x(point.effort):.1f} {y(point.upper):.1f}" for point in points]
    back = [f"{x(point.effort):.1f} {y(point.lower):.1f}" for point in reversed(points)]
    return Series(
        role=curve.role,
        line=" ".join(f"{x(point.effort):.1f},{y(point.rate):.1f}" for point in points),
        band="M" + "L".join(forward + back) + "z" if len(points) > 1 else "",
        marks=[_mark(curve, point, x(point.effort), y) for point in points],
    )


def _mark(curve: Curve, point: Point, x: float, y: Scale) -> Mark:
    top, bottom = round(y(point.upper), 1), round(y(point.lower), 1)
    return Mark(round(x, 1), symbol(curve.role, x, y(point.rate)), top, bottom, _words(curve, point))


def _words(curve: Curve, point: Point) -> str:
    return (
        f"{ROLE_NAMES[curve.role]}, {when(point.effort, curve.axis)}: {point.flagged} of {point.samples} flagged, "
        f"{percent(point.rate)} (bounds {percent(point.lower)} to {percent(point.upper)})"
    )


def _end_labels(
    claim: Claim, curves: list[Curve], frame: Frame, x: Scale, y: Scale, control_y: float | None
) -> list[Label]:
    names = ROLE_NAMES if frame.right > 100 else {role: role for role in ROLES}
    texts = [(curve.role, names[curve.role], y(curve.points[-1].rate), curve.points[-1].effort) for curve in curves]
    right: list[tuple[str, str, float]] = [
        (style, text, at) for style, text, at, step in texts if x(step) > frame.x1 - 1
    ]
    right.append(("limit", f"limit {declared(claim.limit)}", y(claim.limit)))
    if control_y is not None:
        right.append(("control", "relearned", control_y))
    places = spread([at for _, _, at in right], gap=15, low=frame.top, high=frame.y1 + 4)
    labels = [
        Label(style, text, frame.x1 + 16, place, round(at, 1))
        for (style, text, at), place in zip(right, places, strict=True)
    ]
    for style, text, at, step in texts:  # a curve that ends early is labelled where it ends
        if x(step) <= frame.x1 - 1:
            labels.append(Label(style, text, round(x(step) + 10, 1), round(at, 1), round(at, 1)))
    return labels


def _flags(curves: list[Curve], frame: Frame, x: Scale, y: Scale) -> list[Flag]:
    reached = []
    for curve in curves:
        rates = {point.effort: point.rate for point in curve.points}
        step = curve.effort_to_relearn
        if curve.role != "base" and step and step in rates:
            reached.append((x(step), y(rates[step]), step, curve.role))
    reached.sort()
    middle = (frame.left + frame.x1) / 2
    anchors = ["end" if at > middle else "start" for at, *_ in reached]
    if len(reached) == 2 and reached[1][0] - reached[0][0] < 90:  # the texts would touch: one to each side
        anchors = ["end", "start"]
    return [
        Flag(role, round(at, 1), round(height, 1), f"{step:,}", frame.top - 10, anchor)
        for (at, height, step, role), anchor in zip(reached, anchors, strict=True)
    ]


@dataclass(frozen=True)
class IntervalRow:
    """One model's rate with its bounds, as a row."""

    role: str
    name: str
    y: float
    left: float
    right: float
    symbol: str
    words: str


@dataclass(frozen=True)
class Intervals:
    """Rates of several models side by side, for a claim without steps."""

    frame: Frame
    rows: list[IntervalRow]
    x_ticks: list[Tick]
    limit_x: float
    limit_text: str
    limit_anchor: str
    when: str


def interval_figure(claim: Claim, frame: Frame = WIDE) -> Intervals:
    """One row per model: rate, bounds, limit. The height follows the number of rows."""
    curves = ordered(claim.curves)
    left = 122.0 if frame.width > 400 else 104.0
    frame = Frame(frame.width, 40 * len(curves) + 84, left, 24, 30, 54)
    top = rate_ceiling([claim.limit, *(curve.points[-1].upper for curve in curves)])

    def x(rate: float) -> float:
        return frame.left + (frame.x1 - frame.left) * min(max(rate, 0.0), top) / top

    rows = []
    effort = curves[0].points[-1].effort
    for index, curve in enumerate(curves):
        point, y = curve.points[-1], frame.top + 20 + 40 * index
        ends = round(x(point.lower), 1), round(x(point.upper), 1)
        rows.append(
            IntervalRow(
                curve.role,
                ROLE_NAMES[curve.role],
                y,
                *ends,
                symbol(curve.role, x(point.rate), y),
                _words(curve, point),
            )
        )
    return Intervals(
        frame=frame,
        rows=rows,
        x_ticks=[Tick(round(x(top * part / 4), 1), declared(top * part / 4)) for part in range(5)],
        limit_x=round(x(claim.limit), 1),
        limit_text=f"limit {declared(claim.limit)}",
        limit_anchor="start" if claim.limit < top / 2 else "end",
        when=when(effort, claim.axis),
    )


@dataclass(frozen=True)
class Bullet:
    """A claim as one bar of a table: interval, rate and limit on a scale shared by all rows."""

    width: float
    left: float
    right: float
    rate: float
    limit: float


def bullets(claims: Sequence[Claim], width: float = 150) -> list[Bullet]:
    """One bar per claim, all on the same square-root scale: small rates stay readable beside large ones."""
    top = max((max(claim.upper, 1.25 * claim.limit) for claim in claims), default=1.0)

    def x(rate: float) -> float:
        return round(4 + (width - 8) * math.sqrt(min(rate / top, 1.0)), 1) if top else 4.0

    return [Bullet(width, x(claim.lower), x(claim.upper), x(claim.rate), x(claim.limit)) for claim in claims]


@dataclass(frozen=True)
class Spark:
    """A small line of a logged quantity; several lines where values in between were not finite."""

    width: float
    height: float
    lines: list[str]
    dot: tuple[float, float] | None
    first: float | None
    last: float | None
    low: float | None
    high: float | None
    count: int
    not_finite: int


def sparkline(values: Sequence[float | None], width: float = 240, height: float = 64, most: int = 160) -> Spark:
    """Geometry of a series; long ones are averaged into at most ``most`` equal stretches.

    Values that are not finite leave a gap and are counted; steps without a value are passed over.
    """
    values = values[_before(values) :]
    logged, finite = _logged(values)
    low, high = (min(finite), max(finite)) if finite else (None, None)
    means = _stretches(values, most)
    _, shown = _logged(means)
    floor = min(shown, default=0.0)
    reach = max(shown, default=0.0) - floor

    def place(share: float, mean: float) -> tuple[float, float]:
        return 5 + (width - 10) * share, height - 6 - (height - 12) * ((mean - floor) / reach if reach else 0.5)

    drawn = _polylines(means, place)
    return Spark(
        width,
        height,
        [" ".join(f"{x},{y}" for x, y in line) for line in drawn],
        drawn[-1][-1] if drawn else None,
        finite[0] if finite else None,
        finite[-1] if finite else None,
        low,
        high,
        len(logged),
        len(logged) - len(finite),
    )


def _before(values: Sequence[float | None]) -> int:
    """Steps before the first value: those of earlier phases."""
    return next((place for place, value in enumerate(values) if value is not None), len(values))


def _logged(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The values that there are, and the finite ones among them."""
    logged = [value for value in values if value is not None]
    return logged, [value for value in logged if math.isfinite(value)]


def _stretches(values: Sequence[float | None], most: int) -> list[float | None]:
    """Means of at most ``most`` equal stretches: NaN where no value is finite, None where there is none."""
    size = max(1, math.ceil(len(values) / most))
    result: list[float | None] = []
    for start in range(0, len(values), size):
        logged, finite = _logged(values[start : start + size])
        nothing = math.nan if logged else None
        result.append(sum(value / len(finite) for value in finite) if finite else nothing)
    return result


def _polylines(
    means: Sequence[float | None], place: Callable[[float, float], tuple[float, float]]
) -> list[list[tuple[float, float]]]:
    """Lines through the means, ``place`` of (share of the width, mean): broken by NaN, not by None."""
    lines: list[list[tuple[float, float]]] = [[]]
    for index, mean in enumerate(means):
        if mean is None:
            continue
        if math.isnan(mean):
            lines.append([])
            continue
        x, y = place(index / (len(means) - 1) if len(means) > 1 else 0.5, mean)
        lines[-1].append((round(x, 1), round(y, 1)))
    return [line for line in lines if line]


TRACES: dict[str, str] = {
    "gradient norm term": (
        "Squared length of the gradient with which a fine-tune on the concept begins: near zero it learns nothing"
    ),
    "gradient angle term": (
        "Inner product of that gradient with the benign one: below zero, learning the concept costs benign knowledge"
    ),
}
"""Logged quantities that say how resilience came about, and what they mean (arXiv 2410.12777, Eq. 4 and Fig. 6)."""
TRACE = Frame(340, 210, left=54, right=12, top=12, bottom=44)


@dataclass(frozen=True)
class Trace:
    """A logged quantity against outer steps, with axes."""

    frame: Frame
    name: str
    meaning: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    zero_y: float
    lines: list[str]
    description: str


def traces(series: Mapping[str, Sequence[float | None]], frame: Frame = TRACE) -> list[Trace]:
    """A chart for every one of :data:`TRACES` that was logged; one value is no curve."""
    return [
        _trace(name, meaning, series[name], frame)
        for name, meaning in TRACES.items()
        if len(_logged(series.get(name, []))[1]) > 1
    ]


def _trace(name: str, meaning: str, values: Sequence[float | None], frame: Frame) -> Trace:
    before = _before(values)
    values = values[before:]
    means = _stretches(values, 160)
    _, finite = _logged(means)
    steps = _round_steps(min(0.0, *finite), max(0.0, *finite))
    low, high = steps[0], steps[-1]

    def y(value: float) -> float:
        return frame.y1 - (frame.y1 - frame.top) * (value - low) / (high - low)

    def x(share: float) -> float:
        return frame.left + (frame.x1 - frame.left) * share

    lines = _polylines(means, lambda share, mean: (x(share), y(mean)))
    return Trace(
        frame=frame,
        name=name,
        meaning=meaning,
        x_ticks=[
            Tick(round(x(share), 1), f"{1 + before + round(share * (len(values) - 1)):,}") for share in (0, 0.5, 1)
        ],
        y_ticks=[Tick(round(y(step), 1), number(step)) for step in steps],
        zero_y=round(y(0.0), 1),
        lines=[" ".join(f"{x},{y}" for x, y in line) for line in lines],
        description=f"{plural(len(values), 'step')}, from {number(finite[0])} to {number(finite[-1])}",
    )


def _round_steps(low: float, high: float) -> list[float]:
    """Three to seven round numbers, evenly spaced, that hold [low, high] between them; zero is among them."""
    reach = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(reach / 2))
    step = next(unit * factor for factor in (1, 2, 5, 10) if reach / (unit * factor) <= 5)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [step * place for place in range(first, last + 1)]
