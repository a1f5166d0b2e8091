"""What a certification would cost and what it could show, before a GPU second is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from safeguard.certify.evidence import subjects
from safeguard.certify.statistics import (
    most_hits_to_pass,
    pass_probability,
    sensitivity_lower,
    smallest_zero_hit_samples,
)
from safeguard.policy.schema import Policy, Requirement
from safeguard.policy.suite import ProbeSpec, Suite
from safeguard.registry import probes
from safeguard.results.calibration import Calibration
from safeguard.results.record import Role
from safeguard.wording import declared, plural

TRUE_RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Rates of flagged images for which the chance to pass is shown."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Chance(_Record):
    """How likely a model passes if this is its rate of flagged images everywhere."""

    rate: float
    probability: float


class Power(_Record):
    """One requirement on one probe and one concept."""

    requirement: str
    """The pattern of the requirement."""
    probe: str
    concept: str
    limit: float
    samples: int
    """Images per seed and checkpoint."""
    bounds: int
    """Seeds times checkpoints within the budget: how many bounds must lie below the limit."""
    most_hits: int | None
    """Flagged images that each of them may have; none: not even zero pass."""
    smallest_samples: int | None
    """Fewest samples at which zero hits pass; none: no number does."""
    chances: list[Chance]
    """Seeds and checkpoints taken as independent, which understates the chance."""


class Plan(_Record):
    """A whole certification, not yet run."""

    units: int
    """Probe × seed × model."""
    units_by_role: dict[str, int]
    images: int
    """Images to draw, training sets included."""
    finetuning_steps: int
    powers: list[Power]
    chances: list[Chance]
    """Of the whole policy: every requirement must pass, so power multiplies."""
    warnings: list[str]


def roles(policy: Policy) -> list[Role]:
    """Models to examine, controls first; unlearning alone is a control only where hardening does more than that."""
    return ["base", "hardened"] if policy.harden.resilience.name == "none" else ["base", "unlearned", "hardened"]


def needs(policy: Policy, suite: Suite, role: Role, spec: ProbeSpec) -> bool:
    """Whether a probe is run on a model: the base is attacked only when no unlearned model shows that attacks work."""
    if role == "hardened" or spec.kind == "released":
        return True
    if role == "unlearned":
        return spec.control
    shown = any(other.data == "concept" and other.control for other in suite.probes if other.kind != "released")
    return spec.data == "concept" and not (shown and "unlearned" in roles(policy))


def plan(policy: Policy, suite: Suite, calibrations: Mapping[str, Calibration | None] | None = None) -> Plan:
    """Cost and power of certifying under a policy.

    Args:
        calibrations: calibration records by concept; with them the power accounts for what detectors miss.

    Raises:
        UsageFault: a probe kind nobody registered.
    """
    known = calibrations or {}
    work = [(role, spec) for role in roles(policy) for spec in suite.probes if needs(policy, suite, role, spec)]
    seeds = policy.certification.seeds
    settings = {spec.id: _settings(spec) for spec in suite.probes}
    powers = [
        _power(policy, requirement, spec, concept.name, settings[spec.id], known.get(concept.name))
        for requirement in policy.requirements
        for concept in policy.concepts
        for spec in suite.matching(requirement.probe)
    ]
    return Plan(
        units=len(work) * seeds,
        units_by_role={role: seeds * sum(each == role for each, _ in work) for role in roles(policy)},
        images=seeds * sum(_images(policy, spec, settings[spec.id]) for _, spec in work)
        + _training_images(policy, suite, settings),
        finetuning_steps=seeds * sum(int(getattr(settings[spec.id], "steps", 0)) for _, spec in work),
        powers=powers,
        chances=_overall(powers),
        warnings=_warnings(policy, suite, powers),
    )


def _settings(spec: ProbeSpec) -> Any:
    """The probe's settings with its defaults; imports the probe."""
    return probes.get(spec.kind).Config(**spec.settings)


def _checkpoints(settings: Any) -> list[int]:
    """Steps at which the concepts are looked for; step 0 always is."""
    return [0, *getattr(settings, "checkpoints", [])]


def _images(policy: Policy, spec: ProbeSpec, settings: Any) -> int:
    """Images one unit draws: every concept at every checkpoint, and once every benign subject without attack."""
    benign = len(subjects(policy)) if spec.kind == "released" else 0
    looks = len(policy.concepts) * len(_checkpoints(settings))
    return _samples(policy, settings) * looks + policy.certification.samples * benign


def _samples(policy: Policy, settings: Any) -> int:
    """Images per concept and checkpoint: the policy's number, or more where the probe asks for more."""
    return policy.certification.at_least(getattr(settings, "samples", None))


def _training_images(policy: Policy, suite: Suite, settings: Mapping[str, Any]) -> int:
    """Training sets are drawn once per data set, size and seed, and shared by all models and probes."""
    sets = {(spec.data, int(getattr(settings[spec.id], "images", 0))) for spec in suite.probes if spec.data != "none"}
    return policy.certification.seeds * sum(count for _, count in sets)


def _power(
    policy: Policy,
    requirement: Requirement,
    spec: ProbeSpec,
    concept: str,
    settings: Any,
    calibration: Calibration | None,
) -> Power:
    alpha = 1 - policy.certification.confidence
    sensitivity = sensitivity_lower(calibration, alpha / 2) if calibration else None
    samples, limit = _samples(policy, settings), requirement.max_rate
    within = [step for step in _checkpoints(settings) if requirement.budget is None or step <= requirement.budget]
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
