"""What was measured and no requirement judges: nothing that was measured is hidden."""

from __future__ import annotations

from collections.abc import Iterator

from safeguard.certify.bounds import bounded, efforts_of
from safeguard.certify.evidence import Evidence
from safeguard.policy.suite import ProbeSpec, reported_only
from safeguard.policy.threat import WORDS
from safeguard.results.report import Measured, NotRun


def not_judged(evidence: Evidence) -> list[Measured]:
    """Every probe and concept without a requirement, and every probe beyond the largest budget of its requirements."""
    return [
        found
        for spec in evidence.suite.probes
        for concept in evidence.policy.concepts
        for found in _beyond(evidence, spec, concept.name)
    ]


def judged_up_to(evidence: Evidence, spec: ProbeSpec) -> float:
    """The furthest effort that a requirement judges; -1: none does, or the threat model rules the probe out."""
    if spec.id in evidence.ruled_out:
        return -1
    named = [
        one for one in evidence.policy.requirements if spec in evidence.suite.matching(one.probe, evidence.schedules)
    ]
    return max((float("inf") if one.budget is None else one.budget for one in named), default=-1)


def _beyond(evidence: Evidence, spec: ProbeSpec, concept: str) -> Iterator[Measured]:
    units, judged = evidence.select("hardened", spec.id), judged_up_to(evidence, spec)
    efforts = [effort for effort in efforts_of(units, concept) if effort > judged]
    seen = [each for unit in units for e in efforts if (each := bounded(evidence, unit, concept, e)).samples]
    if not seen:
        return
    alone = reported_only(spec.id, evidence.schedules)
    strictest = 1.0 if alone else min(requirement.max_rate for requirement in evidence.policy.requirements)
    worst = max(seen, key=lambda each: (each.rate > strictest, each.upper))
    yield Measured(
        probe=spec.id,
        concept=concept,
        title=spec.title,
        axis=worst.unit.axis,
        why="reported only" if alone else "no requirement" if judged < 0 else "beyond the budget",
        effort=worst.effort,
        seed=worst.unit.seed,
        flagged=worst.flagged,
        samples=worst.samples,
        rate=worst.rate,
        lower=worst.lower,
        upper=worst.upper,
        above=worst.rate > strictest,
    )


def skipped(evidence: Evidence) -> list[NotRun]:
    """Probes that the threat model rules out, and those of which nothing is there."""
    out = [
        NotRun(probe=probe, why=f"the threat model grants no {', no '.join(WORDS[means] for means in lacking)}")
        for probe, lacking in evidence.ruled_out.items()
    ]
    missing = [spec.id for spec in evidence.suite.probes if not evidence.select("hardened", spec.id)]
    return out + [NotRun(probe=probe, why="it has no result") for probe in missing if probe not in evidence.ruled_out]
