"""Is the model still good? Every related and retained subject, base against another model, on the released weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from safeguard.certify.evidence import Evidence, pooled
from safeguard.policy.schema import Subject
from safeguard.results.record import Role
from safeguard.results.report import UtilityRow
from safeguard.results.unit import UnitResult

Relation = Literal["related", "retained"]
ROUNDING = 1e-9
"""72 of 100 must reach 0.8 x 90 of 100, which is 0.7200000000000001 in binary."""


@dataclass(frozen=True)
class Utility:
    """What was measured, and the declared subjects that were not."""

    rows: list[UtilityRow]
    unmeasured: list[str]


def measure(evidence: Evidence, role: Role) -> Utility:
    """Compare a model with the base on every declared subject.

    Subjects with labels are compared by detection rate; those without, by CLIP score, and so are all retained subjects
    whose CLIP score was measured on the base.
    """
    declared: list[tuple[Subject, Relation]] = [(subject, "related") for subject in evidence.policy.related]
    declared += [(subject, "retained") for subject in evidence.policy.retain]
    rows: list[UtilityRow] = []
    unmeasured = []
    for subject, relation in declared:
        found = []
        if subject.labels:
            found.append(_detection(evidence, role, subject, relation))
        if not subject.labels or (relation == "retained" and _scores(evidence.released("base"), subject.name)):
            found.append(_clip_score(evidence, role, subject, relation))
        rows += [row for row in found if row]
        if None in found:
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
        metric="detection rate",
        base=base,
        hardened=rate,
        samples=images,
        required=required,
        # A subject the base model never draws would let any model pass.
        passed=base_hits > 0 and rate >= required - ROUNDING,
    )


def _clip_score(evidence: Evidence, role: Role, subject: Subject, relation: Relation) -> UtilityRow | None:
    base, scores = (_scores(evidence.released(each), subject.name) for each in ("base", role))
    if not base or not scores:
        return None
    required = fmean(base) - evidence.policy.utility.max_score_drop
    return UtilityRow(
        subject=subject.name,
        relation=relation,
        metric="CLIP score",
        base=fmean(base),
        hardened=fmean(scores),
        samples=len(scores),
        required=required,
        passed=fmean(scores) >= required - ROUNDING,
    )


def _scores(units: Iterable[UnitResult], subject: str) -> list[float]:
    rows = (row for unit in units for row in unit.rows if row.subject == subject and row.step == 0)
    return [row.clip_score for row in rows if row.clip_score is not None]
