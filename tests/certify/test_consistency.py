"""A report alone is held to its own numbers: counts, bounds, verdicts of claims, the verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from safeguard.certify.consistency import contradictions
from safeguard.results.control import Finding
from safeguard.results.report import Report
from tests.report import reports

NO_POWER = Finding(about="weapons, malicious-full", measure="images flagged", passed=False)
MAKERS = [reports.passing, reports.failing, reports.inconclusive, reports.unsafe, reports.bare, reports.odd]


@pytest.mark.parametrize("make", MAKERS)
def test_what_was_computed_agrees(make: Callable[[], Report]) -> None:
    assert contradictions(make()) == []


def claim(report: Report, **changes: Any) -> Report:
    """With its first claim changed."""
    first, *rest = report.claims
    return report.model_copy(update={"claims": [first.model_copy(update=changes), *rest]})


def point(report: Report, role: str, **changes: Any) -> Report:
    """With the last point of a curve of its first claim changed."""
    curves = []
    for curve in report.claims[0].curves:
        *before, last = curve.points
        points = [*before, last.model_copy(update=changes)] if curve.role == role else curve.points
        curves.append(curve.model_copy(update={"points": points}))
    return claim(report, curves=curves)


def control(report: Report) -> Report:
    """With its first control failed."""
    first, *rest = report.controls
    return report.model_copy(update={"controls": [first.model_copy(update={"passed": False}), *rest]})


def finding(report: Report, **changes: Any) -> Report:
    """With the first finding of its first control changed."""
    first, *rest = report.controls
    found = first.model_copy(update={"findings": [first.findings[0].model_copy(update=changes), *first.findings[1:]]})
    return report.model_copy(update={"controls": [found, *rest]})


def verdict(report: Report, word: str) -> Report:
    return report.model_copy(update={"verdict": word})


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (verdict(reports.failing(), "PASS"), "the verdict is PASS, and"),
        (verdict(reports.inconclusive(), "PASS"), "the verdict is PASS, and"),
        (verdict(reports.bare(), "PASS"), "there is no claim or no control"),
        (verdict(reports.passing(), "FAIL"), "the verdict is FAIL, and no claim failed"),
        (verdict(reports.passing(), "INCONCLUSIVE"), "every claim and every control passed"),
        (control(reports.passing()), "failed"),
        (control(reports.passing()), "it failed, and every one of its findings holds"),
        (finding(reports.passing(), passed=False), "it passed, and it does not hold of"),
        (finding(reports.passing(), bound=0.01), "passed, and its bound 0.01 is not at least"),
        (finding(reports.passing(), bound=0.9, required=0.9, direction="above"), "its bound 0.9 is not above 0.9"),
        (finding(reports.passing(), bound=0.9, required=0.1, direction="at most"), "its bound 0.9 is not at most 0.1"),
        (claim(reports.passing(), power=NO_POWER), "the same attack does not bring the concept back"),
        (point(reports.passing(), "hardened", effort=50, working=False), "the attacked model did not work after 50"),
        (claim(reports.passing(), verdict="FAIL"), "is not above the limit"),
        (claim(reports.passing(), flagged=30), "the rate is"),
        (claim(reports.passing(), flagged=30, rate=0.3), "the upper bound is"),
        (claim(reports.passing(), upper=0.9), "is not below the limit"),
        (claim(reports.passing(), limit=0.0001), "is not below the limit"),
        (claim(reports.passing(), lower=0.5), "the lower bound is"),
        (claim(reports.passing(), flagged=101), "images are flagged"),
        (claim(reports.passing(), flagged=-1), "images are flagged"),
        (point(reports.passing(), "hardened", upper=0.9), "it passed, and the upper bound"),
        (point(reports.passing(), "base", flagged=0), "base at 0: the rate is"),
    ],
)
def test_a_contradiction_is_named(report: Report, says: str) -> None:
    told = contradictions(report)
    assert any(says in what for what in told), told
