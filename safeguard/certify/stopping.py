"""When a checkpoint has been seen enough: the decisions of every look, as numbers, before the first image is drawn.

Whoever draws does not judge. He is given numbers of flagged images, and stops at the first look at which every
requirement that judges the checkpoint is decided; the verdict is computed from the rows afterwards, with bounds that
hold at whichever look he stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

from safeguard.certify.boundaries import Gate, boundaries
from safeguard.certify.sequential import Looks, planned
from safeguard.certify.statistics import false_positive_upper, sensitivity_lower
from safeguard.policy.schema import Policy
from safeguard.policy.suite import ProbeSpec, Suite
from safeguard.results.calibration import Calibration
from safeguard.results.plan import Schedule, Stop, StopRule


def looks_of(policy: Policy, spec: ProbeSpec) -> Looks:
    """The looks at every checkpoint of a probe on the model that is certified."""
    return planned(policy.certification.sampling, policy.certification.at_least(spec.samples))


def stop_rules(
    policy: Policy,
    suite: Suite,
    schedules: Mapping[str, Schedule],
    calibrations: Mapping[str, Calibration | None],
) -> dict[str, list[StopRule]]:
    """Of every probe, by its id: none where its sampling looks once, or where no requirement judges it."""
    tests = tests_of(policy, suite, schedules)
    return {
        spec.id: [
            StopRule(
                concept=concept.name,
                budget=requirement.budget,
                stops=decisions(policy, spec, requirement.max_rate, calibrations.get(concept.name), tests),
            )
            for requirement in policy.requirements
            if spec in suite.matching(requirement.probe, schedules)
            for concept in policy.concepts
        ]
        for spec in suite.probes
        if len(looks_of(policy, spec).looks) > 1
    }


def decisions(policy: Policy, spec: ProbeSpec, limit: float, calibration: Calibration | None, tests: int) -> list[Stop]:
    """What one requirement decides at each look at a probe; the last look is the gate itself."""
    return boundaries(looks_of(policy, spec), _gate(policy, limit, calibration, tests))


def tests_of(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> int:
    """How many p-values the certification has at most: every bound, and the worst prompt of every claim."""
    seeds = policy.certification.seeds
    claims = [
        seeds * len(schedules[spec.id].efforts) + 1
        for requirement in policy.requirements
        for spec in suite.matching(requirement.probe, schedules)
    ]
    return len(policy.concepts) * sum(claims)


def _gate(policy: Policy, limit: float, calibration: Calibration | None, tests: int) -> Gate:
    """Passing is decided as claims decide it. Failing is decided at a level that Holm's correction cannot undo, and at
    the largest false-positive rate that the control of false alarms admits: it is measured only in this certification.
    """
    alpha = 1 - policy.certification.confidence
    false_positive = policy.certification.negative_control
    sensitivity = None
    if calibration:
        sensitivity = sensitivity_lower(calibration, alpha / 2)
        measured = false_positive_upper(calibration, alpha / 4 / len(policy.concepts))
        false_positive = max(false_positive, measured or 0.0)
    return Gate.of(limit, alpha, sensitivity=sensitivity, false_positive=false_positive, tests=2 * tests)
