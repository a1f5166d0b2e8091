"""Is the model still good? Every related and retained subject, base against another model, on the released weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from safeguard.certify.comparisons import mean_difference_lower, ratio_lower_bound
from safeguard.certify.evidence import Evidence, pooled
from safeguard.policy.schema import MetricMethod, Subject
from safeguard.results.record import Role
from safeguard.results.report import UtilityRow
from safeguard.results.unit import UnitResult

Relation = Literal["related", "retained"]
DETECTION = "detection rate"
ROUNDING = 1e-9
"""A bound of exactly what is required holds, however binary fractions round."""


@dataclass(frozen=True)
class Utility:
    """What was measured, and the declared subjects that were not."""

    rows: list[UtilityRow]
    unmeasured: list[str]


def measure(evidence: Evidence, role: Role) -> Utility:
    """Compare a model with the base on every declared subject.

    Subjects with labels are compared by detection rate; those without, by the policy's metrics, and so are all retained
    subjects. What decides is a bound, never an estimate: non-inferiority (:mod:`safeguard.certify.comparisons`).
    """
    declared: list[tuple[Subject, Relation]] = [(subject, "related") for subject in evidence.policy.related]
    declared += [(subject, "retained") for subject in evidence.policy.retain]
    metrics = evidence.policy.utility.metrics
    rows: list[UtilityRow] = []
    unmeasured = []
    for subject, relation in declared:
        found = [_detection(evidence, role, subject, relation)] if subject.labels else []
        if not subject.labels or relation == "retained":
            found += [_metric(evidence, role, subject, relation, metric) for metric in metrics]
        rows += [row for row in found if row]
        if None in found or not found:
            unmeasured.append(subject.name)
    return Utility(rows, unmeasured)


def _detection(evidence: Evidence, role: Role, subject: Subject, relation: Relation) -> UtilityRow | None:
    (base_hits, base_images), (hits, images) = (
        pooled(evidence.released(each), subject.name) for each in ("base", role)
    )
    if not base_images or not images:
        return None
    base, rate, ratio = base_hits / base_images, hits / images, evidence.policy.utility.min_ratio
    spare = ratio_lower_bound(hits, images, base_hits, base_images, ratio, evidence.alpha)
    return UtilityRow(
        subject=subject.name,
        relation=relation,
        metric=DETECTION,
        base=base,
        hardened=rate,
        samples=images,
        required=ratio * base,
        bound=ratio * base + spare,
        # A subject the base model never draws would let any model pass.
        passed=base_hits > 0 and spare >= -ROUNDING,
    )


def _metric(
    evidence: Evidence, role: Role, subject: Subject, relation: Relation, metric: MetricMethod
) -> UtilityRow | None:
    base, found = (_values(evidence.released(each), subject.name, metric.name) for each in ("base", role))
    if not base or not found:
        return None
    info = evidence.metrics[metric.name]
    sign = 1 if info.higher_is_better else -1
    gains = {image: sign * (found[image] - base[image]) for image in sorted(base.keys() & found.keys())}
    lost = mean_difference_lower(_clusters(gains), evidence.alpha)
    return UtilityRow(
        subject=subject.name,
        relation=relation,
        metric=info.title,
        higher_is_better=info.higher_is_better,
        base=fmean(base.values()),
        hardened=fmean(found.values()),
        samples=len(found),
        required=fmean(base.values()) - sign * metric.margin,
        bound=fmean(base.values()) + sign * lost,
        passed=lost >= -metric.margin - ROUNDING,
    )


def _clusters(gains: dict[tuple[str, int], float]) -> list[list[float]]:
    """By prompt; where a subject has one prompt, the bound is about that prompt, and every image is for itself."""
    by_prompt: dict[str, list[float]] = {}
    for (prompt, _), gain in gains.items():
        by_prompt.setdefault(prompt, []).append(gain)
    return list(by_prompt.values()) if len(by_prompt) > 1 else [[gain] for gain in gains.values()]


def _values(units: Iterable[UnitResult], subject: str, metric: str) -> dict[tuple[str, int], float]:
    """By prompt and noise, which all models share."""
    rows = (row for unit in units for row in unit.rows if row.subject == subject and row.effort == 0)
    return {(row.prompt, row.seed): row.metrics[metric] for row in rows if metric in row.metrics}
