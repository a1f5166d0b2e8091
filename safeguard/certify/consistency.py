"""Where a report contradicts its own numbers: counts, bounds, verdicts of claims, the verdict.

Bounds are compared with those that the counts alone give (Clopper and Pearson 1934, one-sided). What a certification
adds, errors of the detector and corrections for many bounds, widens them and never narrows them, so that a bound inside
the plain one was not computed from the counts beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from safeguard.certify.statistics import lower_bound, upper_bound
from safeguard.results.claim import Claim, Point
from safeguard.results.control import Control, Finding
from safeguard.results.report import Report

ROUNDING = 1e-9
"""What two machines may differ by."""


def contradictions(report: Report) -> list[str]:
    """Each in words; empty: the report agrees with itself."""
    told = [f"{claim.probe} on {claim.concept}: {what}" for claim in report.claims for what in _claim(report, claim)]
    told += [f"the control “{control.title}”: {what}" for control in report.controls for what in _control(control)]
    return [*told, *_verdict(report)]


def _verdict(report: Report) -> Iterator[str]:
    claims, failed = report.claims, [control.title for control in report.controls if not control.passed]
    undecided = [claim for claim in claims if claim.verdict != "PASS"]
    if report.verdict == "PASS":
        for claim in undecided:
            yield f"the verdict is PASS, and {claim.probe} on {claim.concept} is {claim.verdict}"
        if failed:
            yield f"the verdict is PASS, and the control “{failed[0]}” failed"
        if not claims or not report.controls:
            yield "the verdict is PASS, and there is no claim or no control"
    elif report.verdict == "FAIL" and not any(claim.verdict == "FAIL" for claim in claims):
        yield "the verdict is FAIL, and no claim failed"
    elif report.verdict == "INCONCLUSIVE" and claims and report.controls and not undecided and not failed:
        yield "the verdict is INCONCLUSIVE, and every claim and every control passed"


def _control(control: Control) -> Iterator[str]:
    """It passed when all of its findings did, and none of them did against its own bound."""
    failed = [found.about for found in control.findings if not found.passed]
    if control.passed and failed:
        yield f"it passed, and it does not hold of {failed[0]}"
    elif not control.passed and not failed:
        yield "it failed, and every one of its findings holds"
    for found in control.findings:
        if found.passed and not _holds(found):
            yield f"{found.about} passed, and its bound {found.bound} is not {found.direction} {found.required}"


def _holds(found: Finding) -> bool:
    if found.bound is None or found.required is None:
        return True
    if found.direction == "at most":
        return found.bound <= found.required + ROUNDING
    return found.bound > found.required if found.direction == "above" else found.bound >= found.required - ROUNDING


def _claim(report: Report, claim: Claim) -> Iterator[str]:
    yield from _counted(report, claim)
    if claim.verdict == "PASS" and not claim.upper < claim.limit:
        yield f"it passed, and its upper bound {claim.upper} is not below the limit {claim.limit}"
    if claim.verdict == "PASS" and claim.power and not claim.power.passed:
        yield "it passed, and the same attack does not bring the concept back in the weakly erased model"
    if claim.verdict == "FAIL" and not claim.groups and not claim.lower > claim.limit:
        yield f"it failed, and its lower bound {claim.lower} is not above the limit {claim.limit}"
    for curve in claim.curves:
        for point in curve.points:
            where = f"{curve.role} at {point.effort}"
            yield from (f"{where}: {what}" for what in _counted(report, point))
            within = claim.budget is None or point.effort <= claim.budget
            if claim.verdict == "PASS" and curve.role == "hardened" and within:
                yield from (f"it passed, and {what}" for what in _of_pass(claim, point))


def _of_pass(claim: Claim, point: Point) -> Iterator[str]:
    if not point.upper < claim.limit:
        yield f"the upper bound {point.upper} after {point.effort} is not below {claim.limit}"
    if point.effort and not point.working and point.trial is None:
        yield f"the attacked model did not work after {point.effort}"


def _counted(report: Report, found: Claim | Point) -> Iterator[str]:
    """Whether rate and bounds can be those of the counts."""
    k, n, alpha = found.flagged, found.samples, 1 - report.confidence
    if not 0 <= k <= n:
        yield f"{k} of {n} images are flagged"
    elif n:
        if abs(found.rate - k / n) > ROUNDING:
            yield f"the rate is {found.rate}, of {k} in {n} it is {k / n}"
        if found.lower > lower_bound(k, n, alpha) + ROUNDING:
            yield f"the lower bound is {found.lower}, of {k} in {n} it is at most {lower_bound(k, n, alpha)}"
        if found.upper < upper_bound(k, n, alpha) - ROUNDING:
            yield f"the upper bound is {found.upper}, of {k} in {n} it is at least {upper_bound(k, n, alpha)}"
