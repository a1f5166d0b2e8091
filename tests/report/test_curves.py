"""Geometry: scales that keep order, labels that keep apart, figures for every shape of a curve."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from safeguard.report import curves
from tests.report import reports


def test_steps_stay_readable_and_in_order() -> None:
    steps = [0, 10, 25, 50, 100, 200]
    x = curves.step_scale(steps, 0, 600)
    places = [x(step) for step in steps]
    assert places[0] == 0 and places[-1] == pytest.approx(600)
    assert min(b - a for a, b in itertools.pairwise(places)) > 70


@pytest.mark.parametrize("steps", [[0], [5], [0, 1], [0, 0], [100, 200], [0, 1_000_000]])
def test_any_steps_have_a_scale(steps: list[int]) -> None:
    x = curves.step_scale(steps, 10, 110)
    assert all(10 <= x(step) <= 110.001 for step in steps)


def test_spread_keeps_order_gap_and_edges() -> None:
    dice = random.Random(3)
    for _ in range(200):
        wanted = [dice.uniform(0, 100) for _ in range(5)]
        placed = curves.spread(wanted, gap=12, low=0, high=100)
        by_wish = [place for _, place in sorted(zip(wanted, placed, strict=True))]
        assert all(b - a >= 11.8 for a, b in itertools.pairwise(by_wish))
        assert min(placed) >= 0 and max(placed) <= 100
    assert curves.spread([10, 50, 90], gap=12, low=0, high=100) == [10, 50, 90]


def test_crowded_ticks_lose_their_text_but_not_their_ends() -> None:
    ticks = curves.thin([curves.Tick(at, str(at)) for at in (0, 5, 40, 80, 95, 100)], gap=20)
    assert [tick.text for tick in ticks] == ["0", "", "40", "80", "", "100"]


def test_ceiling_holds_every_rate() -> None:
    assert [curves.rate_ceiling([top]) for top in (0, 0.1, 0.11, 0.5, 0.51, 1)] == [0.1, 0.1, 0.25, 0.5, 1.0, 1.0]


def test_curve_figure_places_rates_between_their_bounds() -> None:
    claim = reports.failing().claims[4]
    for frame in (curves.WIDE, curves.PHONE):
        figure = curves.curve_figure(claim, 0.5, frame)
        assert [series.role for series in figure.series] == ["hardened", "unlearned", "base"]
        for series in figure.series:
            for mark, pair in zip(series.marks, series.line.split(), strict=True):
                x, y = map(float, pair.split(","))
                assert mark.top - 0.1 <= y <= mark.bottom + 0.1
                assert frame.left <= x <= frame.x1 and frame.top <= y <= frame.y1
        assert {flag.role: flag.text for flag in figure.flags} == {"hardened": "100 steps", "unlearned": "25 steps"}
        assert figure.budget_x is not None and frame.left < figure.budget_x < frame.x1


def test_higher_rate_is_drawn_higher() -> None:
    claim = reports.failing().claims[4]
    figure = curves.curve_figure(claim, 0.5)
    last = {series.role: float(series.line.split(",")[-1]) for series in figure.series}
    assert last["base"] < last["unlearned"] < last["hardened"] < figure.limit_y


def test_released_claim_is_drawn_as_intervals() -> None:
    claim = reports.passing().claims[0]
    assert curves.is_single(claim)
    figure = curves.interval_figure(claim)
    assert [row.role for row in figure.rows] == ["hardened", "unlearned", "base"]
    assert figure.rows[0].right < figure.limit_x < figure.rows[2].left
    assert figure.when == "as released"
    late = reports.claim("only-late", [reports.curve("hardened", {100: 2})])
    assert curves.interval_figure(late).when == "after 100 steps"


def test_bullets_share_one_scale() -> None:
    bars = curves.bullets(reports.failing().claims)
    assert len({bar.limit for bar in bars}) == 1
    assert all(bar.left <= bar.rate <= bar.right <= bar.width for bar in bars)
    outcome = [bar.left > bar.limit for bar in bars]
    assert outcome == [claim.verdict == "FAIL" for claim in reports.failing().claims]


def test_sparkline_counts_and_skips_what_is_not_finite() -> None:
    spark = curves.sparkline([1.0, math.nan, 2.0, 3.0, math.inf])
    assert (spark.low, spark.high, spark.not_finite, spark.count) == (1.0, 3.0, 2, 5)
    assert len(spark.lines) == 2 and "nan" not in "".join(spark.lines)


def test_sparkline_passes_over_steps_without_a_value() -> None:
    spark = curves.sparkline([1.0, None, None, 2.0, None], width=110)
    assert (spark.low, spark.high, spark.not_finite, spark.count) == (1.0, 2.0, 0, 2)
    assert [[pair.split(",")[0] for pair in line.split()] for line in spark.lines] == [["5.0", "80.0"]]


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [math.nan], [None, None], list(map(float, range(5000)))])
def test_sparkline_of_any_length(values: list[float | None]) -> None:
    spark = curves.sparkline(values, width=240, height=64, most=160)
    numbers = [float(part) for line in spark.lines for pair in line.split() for part in pair.split(",")]
    assert len(numbers) <= 2 * 160
    assert all(0 <= number <= 240 for number in numbers)


def test_a_trace_begins_with_its_phase() -> None:
    trace = curves.traces({"gradient norm term": [None] * 180 + [1.0] * 61})[0]
    assert [tick.text for tick in trace.x_ticks] == ["181", "211", "241"]


def test_traces_are_drawn_inside_their_frame_from_zero() -> None:
    diagnostics = reports.diagnostics()
    drawn = curves.traces(diagnostics.series)
    assert [trace.name for trace in drawn] == list(curves.TRACES)
    for trace in drawn:
        places = [tuple(map(float, pair.split(","))) for line in trace.lines for pair in line.split()]
        assert all(trace.frame.left <= x <= trace.frame.x1 + 0.1 for x, _ in places)
        assert all(trace.frame.top - 0.1 <= y <= trace.frame.y1 + 0.1 for _, y in places)
        assert [tick.text for tick in trace.x_ticks] == ["1", "151", "300"]
        assert {tick.text: tick.at for tick in trace.y_ticks}["0"] == trace.zero_y
    norm, angle = drawn
    assert norm.zero_y == norm.frame.y1 and angle.zero_y < angle.frame.y1


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [None, 1.0],
        [None, 1.0, None, 2.0],
        [math.nan, 1.0],
        [math.nan] * 4,
        [0.0, 0.0],
        [-3.0, -3.0],
        [1e-9, 1e9],
        [1.0, math.inf, 2.0],
    ],
)
def test_a_trace_of_any_values(values: list[float | None]) -> None:
    drawn = curves.traces({"gradient angle term": values, "anything else": [1.0, 2.0]})
    assert len(drawn) == (sum(value is not None and math.isfinite(value) for value in values) > 1)
    for trace in drawn:
        assert 2 <= len(trace.y_ticks) <= 7
        assert "nan" not in "".join(trace.lines) and "inf" not in "".join(trace.lines)


@pytest.mark.parametrize(
    ("low", "high", "steps"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.3, 4, [-1, 0, 1, 2, 3, 4]),
        (0, 0, [0, 0.2]),
        (-30, 0, [-30, -20, -10, 0]),
    ],
)
def test_steps_of_an_axis_are_round(low: float, high: float, steps: list[float]) -> None:
    assert curves._round_steps(low, high) == pytest.approx(steps)
