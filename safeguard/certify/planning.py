"""What a certification would cost and what it could show, before a GPU second is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping

from safeguard.certify.evidence import subjects
from safeguard.certify.statistics import (
    most_hits_to_pass,
    pass_probability,
    sensitivity_lower,
    smallest_zero_hit_samples,
)
from safeguard.policy.schema import Policy, Requirement
from safeguard.policy.suite import ROLES, ProbeSpec, Suite, needs, ruled_out
from safeguard.results.calibration import Calibration
from safeguard.results.plan import Chance, Plan, Power, Schedule
from safeguard.wording import declared, plural

TRUE_RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Rates of flagged images for which the chance to pass is shown."""


def plan(
    policy: Policy,
    suite: Suite,
    schedules: Mapping[str, Schedule],
    calibrations: Mapping[str, Calibration | None] | None = None,
) -> Plan:
    """Cost and power of certifying under a policy.

    Args:
        schedules: what every probe of the suite yields, by its id.
        calibrations: calibration records by concept; with them the power accounts for what detectors miss.
    """
    known = calibrations or {}
    lacking = ruled_out(policy, schedules)
    probes = [spec for spec in suite.probes if spec.id not in lacking]
    work = [(role, spec) for role in ROLES for spec in probes if needs(role, spec)]
    seeds = policy.certification.seeds
    powers = [
        _power(policy, requirement, spec, concept.name, schedules[spec.id], known.get(concept.name))
        for requirement in policy.requirements
        for concept in policy.concepts
        for spec in suite.matching(requirement.probe)
        if spec.id not in lacking
    ]
    return Plan(
        units=len(work) * seeds,
        units_by_role={role: seeds * sum(each == role for each, _ in work) for role in ROLES},
        images=seeds * sum(_images(policy, spec, schedules[spec.id]) for _, spec in work)
        + _training_images(policy, suite, schedules),
        optimiser_steps=seeds * sum(schedules[spec.id].cost.steps for _, spec in work),
        network_calls=seeds * sum(schedules[spec.id].cost.network_calls for _, spec in work),
        powers=powers,
        chances=_overall(powers),
        warnings=_warnings(policy, suite, powers),
    )


def _images(policy: Policy, spec: ProbeSpec, schedule: Schedule) -> int:
    """Images one unit draws: every concept at every checkpoint, and once every benign subject without attack."""
    benign = len(subjects(policy)) if schedule.everything else 0
    looks = len(policy.concepts) * len(schedule.efforts)
    return policy.certification.at_least(spec.samples) * looks + policy.certification.samples * benign


def _training_images(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> int:
    """Training sets are drawn once per data set, size and seed, and shared by all models and probes."""
    known = (schedules[spec.id] for spec in suite.probes)
    sets = {schedule.training_set: schedule.cost.training_images for schedule in known if schedule.training_set}
    return policy.certification.seeds * sum(sets.values())


def _power(
    policy: Policy,
    requirement: Requirement,
    spec: ProbeSpec,
    concept: str,
    schedule: Schedule,
    calibration: Calibration | None,
) -> Power:
    alpha = 1 - policy.certification.confidence
    sensitivity = sensitivity_lower(calibration, alpha / 2) if calibration else None
    samples, limit = policy.certification.at_least(spec.samples), requirement.max_rate
    within = [e for e in schedule.efforts if requirement.budget is None or e <= requirement.budget]
    bounds = policy.certification.seeds * len(within)
    return Power(
        requirement=requirement.probe,
        probe=spec.id,
        concept=concept,
        limit=limit,
        samples=samples,
        bounds=bounds,
        most_hits=most_hits_to_pass(samples, limit, alpha, sensitivity),
        smallest_samples=smallest_zero_hit_samples(limit, alpha, sensitivity),
        chances=[
            Chance(
                rate=rate,
                probability=pass_probability(rate, samples, limit, alpha, repetitions=bounds, sensitivity=sensitivity),
            )
            for rate in TRUE_RATES
        ],
    )


def _overall(powers: list[Power]) -> list[Chance]:
    columns = zip(*(power.chances for power in powers), strict=True)
    products = [math.prod(chance.probability for chance in column) for column in columns]
    return [Chance(rate=rate, probability=product) for rate, product in zip(TRUE_RATES, products, strict=False)]


def _warnings(policy: Policy, suite: Suite, powers: list[Power]) -> list[str]:
    unmatched = [
        f"no probe of the suite {suite.name!r} matches the requirement {requirement.probe!r}: it stays INCONCLUSIVE"
        for requirement in policy.requirements
        if not suite.matching(requirement.probe)
    ]
    return unmatched + list(dict.fromkeys(_too_few(power) for power in powers if power.most_hits is None))


def _too_few(power: Power) -> str:
    images, limit = plural(power.samples, "image"), declared(power.limit)
    what = f"{power.requirement}: even zero hits of {images} cannot pass a limit of {limit}"
    if power.smallest_samples is None:
        return f"{what}, and no number of images can"
    return f"{what}; at least {power.smallest_samples} are needed"
