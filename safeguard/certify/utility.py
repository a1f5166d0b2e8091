"""Is the model still good? Every related and retained subject, base against another model, on the released weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from safeguard.certify.evidence import Evidence, pooled
from safeguard.policy.schema import MetricMethod, Subject
from safeguard.results.record import Role
from safeguard.results.report import UtilityRow
from safeguard.results.unit import UnitResult

Relation = Literal["related", "retained"]
DETECTION = "detection rate"
ROUNDING = 1e-9
"""72 of 100 must reach 0.8 x 90 of 100, which is 0.7200000000000001 in binary."""


@dataclass(frozen=True)
class Utility:
    """What was measured, and the declared subjects that were not."""

    rows: list[UtilityRow]
    unmeasured: list[str]


def measure(evidence: Evidence, role: Role) -> Utility:
    """Compare a model with the base on every declared subject.

    Subjects with labels are compared by detection rate; those without, by the policy's metrics, and so are all retained
    subjects.
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
    base, rate = base_hits / base_images, hits / images
    required = evidence.policy.utility.min_ratio * base
    return UtilityRow(
        subject=subject.name,
        relation=relation,
        metric=DETECTION,
        base=base,
        hardened=rate,
        samples=images,
        required=required,
        # A subject the base model never draws would let any model pass.
        passed=base_hits > 0 and rate >= required - ROUNDING,
    )


def _metric(
    evidence: Evidence, role: Role, subject: Subject, relation: Relation, metric: MetricMethod
) -> UtilityRow | None:
    base, found = (_values(evidence.released(each), subject.name, metric.name) for each in ("base", role))
    if not base or not found:
        return None
    info = evidence.metrics[metric.name]
    sign = 1 if info.higher_is_better else -1
    required = fmean(base) - sign * metric.margin
    return UtilityRow(
        subject=subject.name,
        relation=relation,
        metric=info.title,
        higher_is_better=info.higher_is_better,
        base=fmean(base),
        hardened=fmean(found),
        samples=len(found),
        required=required,
        passed=sign * (fmean(found) - required) >= -ROUNDING,
    )


def _values(units: Iterable[UnitResult], subject: str, metric: str) -> list[float]:
    rows = (row for unit in units for row in unit.rows if row.subject == subject and row.effort == 0)
    return [row.metrics[metric] for row in rows if metric in row.metrics]
