"""Charts: every number in its place, colours of the page, names that stay names, equal bytes for equal numbers."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from safeguard.report import charts, claim_charts, series, svg, view
from safeguard.report.bullets import bullets, of_utility
from safeguard.report.charts import efforts_axis, panel
from safeguard.resources import resource_dir
from safeguard.results.claim import Claim
from tests.report import reports

NARROW = "\N{NARROW NO-BREAK SPACE}"
BREAKS = reports.failing().claims[4]
"""Three roles, relearned in two of them, looked at beyond its budget."""
BAND = "fill-opacity: 0.15"


def shown(claim: Claim) -> view.ClaimView:
    [concept] = view.concepts(reports.report([claim]), Path("absent"))
    return concept.claims[0]


def drawn(claim: Claim, relearned_rate: float = 0.5) -> list[ElementTree.Element]:
    """The chart for wide and for narrow screens."""
    return [ElementTree.fromstring(chart) for chart in claim_charts.of_claim(shown(claim), relearned_rate)]


def points(chart: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """What a pointer over each point says, and where it is: y grows downwards."""
    marks = [(element.findtext("title"), element) for element in chart.iter("use")]
    return {words: (float(mark.attrib["x"]), float(mark.attrib["y"])) for words, mark in marks if words}


def texts(chart: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in chart.iter("text")]


def styles(chart: ElementTree.Element) -> str:
    return " ".join(element.get("style", "") for element in chart.iter())


def test_every_checkpoint_of_every_model_is_a_point_that_says_its_numbers() -> None:
    for chart in drawn(BREAKS):
        places = points(chart)
        assert set(places) == {view.said(curve, point) for curve in BREAKS.curves for point in curve.points}
        assert len(places) == 18
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        assert all(0 < x < width and 0 < y < height for x, y in places.values())


def test_a_higher_rate_is_drawn_higher_and_a_larger_effort_further_right() -> None:
    measured = [(point.effort, point.rate, view.said(c, point)) for c in BREAKS.curves for point in c.points]
    for chart in drawn(BREAKS):
        places = points(chart)
        for (effort, rate, words), (other, lower, less) in itertools.permutations(measured, 2):
            (x, y), (left, below) = places[words], places[less]
            assert rate <= lower or y < below
            assert effort <= other or x > left


def test_curves_carry_their_band_names_limit_and_budget() -> None:
    wide, narrow = drawn(BREAKS)
    assert styles(wide).count(BAND) == 3
    words = texts(wide)
    for text in ("hardened", "unlearned only", "base", f"limit 5{NARROW}%", "relearned", "fine-tuning steps"):
        assert words.count(text) == 1
    assert words.count("25") == 2 and words.count("100") == 2  # on the axis, and where a model has relearned
    assert words.count("200") == 1
    assert "unlearned" in texts(narrow) and "unlearned only" not in texts(narrow)
    assert "fill: var(--rule)" in styles(wide)  # beyond the budget
    unlimited = BREAKS.model_copy(update={"budget": None})
    assert "fill: var(--rule)" not in styles(drawn(unlimited)[0])


def test_what_lies_above_the_chart_is_left_out() -> None:
    held = reports.claim("p", [reports.curve("hardened", {0: 0, 10: 1})])
    assert "relearned" not in texts(drawn(held)[0])
    assert "relearned" in texts(drawn(held, relearned_rate=0.07)[0])


def test_one_point_has_a_whisker_and_no_band_and_a_short_curve_is_named_where_it_ends() -> None:
    claim = reports.claim(
        "p",
        [
            reports.curve("hardened", {0: 0, 100: 1}),
            reports.curve("unlearned", {0: 2, 10: 40}),
            reports.curve("base", {0: 97}),
        ],
    )
    wide, _ = drawn(claim)
    assert styles(wide).count(BAND) == 2 and styles(wide).count("stroke-opacity: 0.6") == 1
    at = {text.text: float(text.attrib["x"]) for text in wide.iter("text")}
    ends = {words.partition(",")[0]: x for words, (x, _) in points(wide).items()}
    assert at["hardened"] > ends["hardened"]
    assert at["unlearned only"] == pytest.approx(ends["unlearned only"], abs=0.1)
    assert at["base"] == pytest.approx(ends["base"], abs=0.1)


def test_a_point_at_which_the_model_is_broken_has_a_cross_and_says_so() -> None:
    hardened = reports.curve("hardened", {0: 0, 50: 1, 100: 1})
    whole = reports.claim("p", [hardened])
    broken = [point.model_copy(update={"working": point.effort != 100}) for point in hardened.points]
    claim = reports.claim("p", [hardened.model_copy(update={"points": broken})])
    assert not shown(whole).broken and shown(claim).broken
    for chart, other in zip(drawn(claim), drawn(whole), strict=True):
        (says,) = (words for words in points(chart) if words.endswith("it no longer draws other things"))
        assert says.startswith("hardened, after 100 fine-tuning steps")
        crosses = sum(1 for _ in chart.iter("use")) - sum(1 for _ in other.iter("use"))
        assert crosses == 1


def test_variants_have_no_order_and_no_line_between_them() -> None:
    claim = reports.claim("p", [reports.curve("hardened", {0: 0, 1: 2, 2: 1}, axis="variants")])
    wide, _ = drawn(claim)
    assert styles(wide).count(BAND) == 0 and styles(wide).count("stroke-opacity: 0.6") == 3
    label = [
        point.model_copy(update={"label": "weights in int8" if point.effort == 1 else ""})
        for point in claim.curves[0].points
    ]
    named = claim.model_copy(update={"curves": [claim.curves[0].model_copy(update={"points": label})]})
    assert view.measured(named).startswith("In variant 1, the worst (weights in int8), 2 of 100 images were flagged")


def test_a_released_model_is_drawn_as_intervals() -> None:
    claim = reports.passing().claims[0]
    for chart in drawn(claim):
        rows = sorted(points(chart).items(), key=lambda item: item[1][1])
        assert [words.partition(",")[0] for words, _ in rows] == ["hardened", "unlearned only", "base"]
        assert [x for _, (x, _) in rows] == sorted(x for _, (x, _) in rows)  # 0, 2 and 97 of 100
        assert "images flagged, as released" in texts(chart)
        assert styles(chart).count("stroke-opacity: 0.25") == 3
    late = reports.claim("late", [reports.curve("hardened", {100: 2}, axis="queries")])
    assert "images flagged, after 100 queries" in texts(drawn(late)[0])
    assert drawn(late.model_copy(update={"curves": []})) == []


def test_colours_and_fonts_are_those_of_the_page_on_light_and_on_dark() -> None:
    sheet = (resource_dir("reports") / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", sheet, flags=re.DOTALL)[:2]
    for claim in (BREAKS, reports.passing().claims[0]):
        for chart in drawn(claim):
            used = set(re.findall(r"var\(--([\w-]+)\)", styles(chart)))
            assert {"hardened", "unlearned", "base", "ink", "muted", "card", "rule", "sans"} == used
            for name in used:
                assert f"--{name}:" in light and (f"--{name}:" in dark or name == "sans")
            assert not re.search(r"#[0-9a-f]{3,}|DejaVu", styles(chart))
    assert len(set(svg.palette().values())) == len(svg.palette())  # else a colour would not tell which variable it is


def test_the_same_numbers_give_the_same_bytes_whatever_a_user_has_set() -> None:
    view_of = shown(BREAKS)
    first = claim_charts.of_claim(view_of, 0.5)
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        assert claim_charts.of_claim(view_of, 0.5) == first
        assert mpl.rcParams["font.size"] == 30
    assert not re.search(r"<metadata|<\?xml|<!DOCTYPE|xmlns|<style|\.\d{3}", "".join(first))


def test_ids_are_of_one_figure_only() -> None:
    ids = [element.attrib["id"] for chart in drawn(BREAKS) for element in chart.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    for chart, css in zip(drawn(BREAKS), ("desk", "phone"), strict=True):
        own = {element.attrib["id"] for element in chart.iter() if "id" in element.attrib}
        assert all(name.startswith(f"claim-1-{css}-") for name in own)
        assert {element.attrib["href"][1:] for element in chart.iter("use")} < own


def test_names_stay_names() -> None:
    odd = "$x^2$ <b>\\$ & \x00\u202e\uffff 漢字\n queries"
    lines = [curve.model_copy(update={"axis": odd}) for curve in BREAKS.curves]
    wide, _ = drawn(BREAKS.model_copy(update={"axis": odd, "curves": lines, "probe": odd}))
    assert "$x^2$ <b>\\$ & [U+0000][U+202E][U+FFFF] 漢字 queries" in texts(wide)
    assert "[U+0000]" in (wide.findtext("title") or "") and any("[U+202E]" in words for words in points(wide))


def tick_texts(
    efforts: Sequence[int], size: charts.Size = claim_charts.CURVES["desk"]
) -> tuple[list[float], list[str]]:
    with svg.drawing():
        _, axes = panel(size)
        efforts_axis(axes, efforts)
        places = [axes.transData.transform((effort, 0))[0] for effort in sorted(set(efforts))]
        return places, [label.get_text() for label in axes.get_xticklabels()]


def test_efforts_stay_readable_and_in_order() -> None:
    places, shown = tick_texts([0, 10, 25, 50, 100, 200])
    assert shown == ["0", "10", "25", "50", "100", "200"]
    assert min(b - a for a, b in itertools.pairwise(places)) > 70


@pytest.mark.parametrize("efforts", [[0, 1], [100, 200], [0, 1_000_000], [5, 0, 5]])
def test_any_efforts_have_a_scale(efforts: list[int]) -> None:
    places, _ = tick_texts(efforts)
    size = claim_charts.CURVES["desk"]
    assert places[0] == pytest.approx(size.left) and places[-1] == pytest.approx(size.left + size.plot[0])


def test_crowded_efforts_lose_their_text_but_not_their_ends() -> None:
    _, shown = tick_texts([0, 1000, 1010, 2000, 10_000, 99_000, 100_000])
    assert shown == ["0", "1,000", "2,000", "10,000", "100,000"]


def test_names_at_the_end_keep_order_gap_and_edges() -> None:
    dice = random.Random(3)
    for _ in range(200):
        wanted = [dice.uniform(0, 100) for _ in range(5)]
        placed = claim_charts.apart(wanted, gap=12, high=100)
        by_wish = [place for _, place in sorted(zip(wanted, placed, strict=True))]
        assert all(b - a >= 11.99 for a, b in itertools.pairwise(by_wish))
        assert min(placed) >= 0 and max(placed) <= 100
    assert claim_charts.apart([10, 50, 90], gap=12, high=100) == pytest.approx([10, 50, 90])
    assert claim_charts.apart([50, 50], gap=12, high=100) == pytest.approx([44, 56])


def line_of(name: str, values: Sequence[float | None]) -> series.Series:
    return next(item for item in series.read({name: values, "other": [1.0, 2.0]}) if item.name == name)


def test_a_series_is_told_from_its_finite_values() -> None:
    line = line_of("loss", [1.0, math.nan, None, 3.0, math.inf])
    assert (line.count, line.finite, line.meaning) == (4, [1.0, 3.0], "")
    names = [
        line.name for line in series.read({"loss": [1.0], **{name: [1.0, 2.0] for name in reversed(series.TRACES)}})
    ]
    assert names == [*series.TRACES, "loss"]


def test_a_line_breaks_where_values_are_not_finite_and_not_where_there_are_none() -> None:
    steps, means = charts.smooth([None, 1.0, None, math.nan, 2.0, math.inf])
    assert steps == [2, 4, 5, 6] and [math.isnan(mean) for mean in means] == [False, True, False, True]
    broken = charts.spark("spark-1", line_of("loss", [1.0, 2.0, math.nan, 2.0, 3.0]))
    assert re.search(r'd="M [^"]* M [^"]*"', broken) and "nan" not in broken
    assert not re.search(r'd="M [^"]* M [^"]*"', charts.spark("spark-1", line_of("loss", [1.0, None, 2.0, 3.0])))


def test_long_series_are_averaged() -> None:
    steps, means = charts.smooth([float(value) for value in range(5000)])
    assert len(steps) == 160 and steps == pytest.approx([mean + 1 for mean in means])
    assert charts.smooth([1e308, 1e308, 1e308], most=1)[1] == pytest.approx([1e308])


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [math.nan], [None, None], [1e-300, 1e300]])
def test_a_spark_of_any_values(values: list[float | None]) -> None:
    chart = ElementTree.fromstring(charts.spark("spark-1", line_of("loss", values)))
    assert (chart.findtext("title") or "").startswith(f"loss: {len([v for v in values if v is not None])} value")
    assert "nan" not in ElementTree.tostring(chart, encoding="unicode")


def test_a_trace_begins_with_its_phase_and_has_zero_in_sight() -> None:
    chart = ElementTree.fromstring(
        charts.trace("trace-1", line_of("gradient norm term", [None] * 180 + [0.9, 1.0] * 30))
    )
    words = texts(chart)
    assert words[:3] == ["181", "210", "240"] and {"0", "1", "outer steps"} <= set(words)
    below = texts(ElementTree.fromstring(charts.trace("trace-1", line_of("gradient angle term", [-3.0, -1.0]))))
    assert {"0", "\N{MINUS SIGN}3"} <= set(below)


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
    line = line_of("gradient angle term", values)
    assert bool(line.meaning) == (sum(value is not None and math.isfinite(value) for value in values) > 1)
    if line.meaning:
        chart = charts.trace("trace-1", line)
        assert "nan" not in chart and "inf" not in chart
        assert 5 <= len(texts(ElementTree.fromstring(chart))) <= 12


def test_bullets_share_one_scale() -> None:
    claims = reports.failing().claims
    bars = bullets(claims)
    assert len({bar.limit for bar in bars}) == 1
    assert all(bar.value is not None and 0 <= bar.low <= bar.value <= bar.high <= 1 for bar in bars)
    assert [bar.low > bar.limit for bar in bars] == [claim.verdict == "FAIL" for claim in claims]
    assert bullets([]) == []


def test_the_bullet_of_a_subject_is_its_share_of_the_base() -> None:
    row = reports.utility((0.48, 0.9, 0.3, 0.9))[0]  # base 0.96, 0.768 needed
    bar = of_utility(row)
    assert (bar.high, bar.limit) == (pytest.approx(0.5 / 1.25), pytest.approx(0.8 / 1.25))
    assert of_utility(row.model_copy(update={"base": 0.0})).high == 0.0
