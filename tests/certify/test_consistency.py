"""A report alone is held to its own numbers: counts, bounds, verdicts of claims, the verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from safeguard.certify.consistency import contradictions
from safeguard.results.report import Report
from tests.report import reports

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
