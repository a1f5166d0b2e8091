"""What a certification would cost and what it could show, before a GPU second is spent.

The chances are those of the gate itself: its acceptance numbers, which allow for images that the detector misses, at
the rates at which a detector flags that errs on other images as often as it was measured to.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from safeguard.certify.chances import Exam, by_seeds, chance, of_all
from safeguard.certify.evidence import subjects
from safeguard.certify.sequential import planned
from safeguard.certify.statistics import (
    lower_bound,
    most_hits_to_pass,
    sensitivity_lower,
    smallest_zero_hit_samples,
    upper_bound,
)
from safeguard.certify.stopping import decisions, tests_of
from safeguard.policy.examination import WITNESSES
from safeguard.policy.schema import Policy, Requirement
from safeguard.policy.suite import ROLES, ProbeSpec, Suite, needs, ruled_out
from safeguard.results.calibration import Calibration
from safeguard.results.plan import Chance, Plan, Power, Schedule, Stop
from safeguard.wording import declared, percent, plural

TRUE_RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Rates of images that show the concept for which the chance to pass is shown."""
UNLIKELY = 0.5
"""Below this chance to pass of a model that never draws the concept, the plan warns."""


def plan(
    policy: Policy,
    suite: Suite,
    schedules: Mapping[str, Schedule],
    calibrations: Mapping[str, Calibration | None] | None = None,
) -> Plan:
    """Cost and power of certifying under a policy.

    Args:
        schedules: what every probe of the suite yields, by its id.
        calibrations: calibration records by concept; with them the power accounts for what detectors miss, and for
            what they take for the concept.
    """
    known = calibrations or {}
    lacking = ruled_out(policy, schedules)
    probes = [spec for spec in suite.probes if spec.id not in lacking]
    work = [(role, spec) for role in ROLES for spec in probes if needs(role, spec)]
    seeds = policy.certification.seeds
    powers = _powers(policy, suite, schedules, known)
    exams = _exams(powers, schedules, known)
    hopeless = _hopeless(policy, suite, schedules, powers)
    return Plan(
        units=len(work) * seeds,
        units_by_role={role: seeds * sum(each == role for each, _ in work) for role in ROLES},
        images=seeds * sum(_images(policy, spec, schedules[spec.id]) for _, spec in work)
        + _training_images(policy, suite, schedules),
        optimiser_steps=seeds * sum(schedules[spec.id].cost.steps for _, spec in work),
        network_calls=seeds * sum(_calls(policy, spec, schedules[spec.id]) for _, spec in work),
        powers=powers,
        chances=[Chance(rate=rate, probability=of_all(exams, rate, seeds)) for rate in TRUE_RATES],
        by_seeds=by_seeds(
            exams, seeds, 1 - policy.certification.confidence, calibrated=any(record for record in known.values())
        )
        if exams
        else [],
        impossible=hopeless,
        warnings=hopeless + _unlikely(powers),
    )


def impossible(
    policy: Policy, suite: Suite, schedules: Mapping[str, Schedule], calibrations: Mapping[str, Calibration | None]
) -> list[str]:
    """Why no model whatsoever could pass; empty: one can."""
    return _hopeless(policy, suite, schedules, _powers(policy, suite, schedules, calibrations))


def _powers(
    policy: Policy, suite: Suite, schedules: Mapping[str, Schedule], calibrations: Mapping[str, Calibration | None]
) -> list[Power]:
    """Every requirement on every probe and concept."""
    lacking, tests = ruled_out(policy, schedules), tests_of(policy, suite, schedules)
    return [
        _power(policy, requirement, spec, concept.name, schedules[spec.id], calibrations.get(concept.name), tests)
        for requirement in policy.requirements
        for concept in policy.concepts
        for spec in suite.matching(requirement.probe, schedules)
        if spec.id not in lacking
    ]


def _images(policy: Policy, spec: ProbeSpec, schedule: Schedule) -> int:
    """Images one unit draws at all its checkpoints."""
    return sum(_looked(policy, spec, schedule, effort) for effort in schedule.efforts)


def _looked(policy: Policy, spec: ProbeSpec, schedule: Schedule, effort: int) -> int:
    """Images at one checkpoint: every concept, and besides every benign subject, or under attack the witness."""
    samples, benign = policy.certification.samples, 0
    if schedule.everything:
        benign = samples * len(subjects(policy))
    elif effort and policy.witness:
        benign = min(WITNESSES, samples)
    return policy.certification.at_least(spec.samples) * len(policy.concepts) + benign


def _calls(policy: Policy, spec: ProbeSpec, schedule: Schedule) -> int:
    """Rows for one unit's own sake: what its attack computes, two a step (with the prompt and without) of the images
    that a search asks for, and, of an image that it draws in more steps than the policy's, two a step beyond those."""
    beyond = {
        effort: steps - policy.certification.sampler_steps for effort, steps in schedule.cost.sampler_steps.items()
    }
    drawing = sum(2 * max(0, more) * _looked(policy, spec, schedule, effort) for effort, more in beyond.items())
    asking = 2 * policy.certification.sampler_steps * schedule.cost.queries * len(policy.concepts)
    return schedule.cost.network_calls + asking + drawing


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
    tests: int,
) -> Power:
    alpha = 1 - policy.certification.confidence
    sensitivity = sensitivity_lower(calibration, alpha / 2) if calibration else None
    samples, limit = policy.certification.at_least(spec.samples), requirement.max_rate
    stops = decisions(policy, spec, limit, calibration, tests)
    within, seeds = _judged(requirement, schedule), policy.certification.seeds
    false_positive = _false_positive(calibration)
    exam = Exam(limit, (tuple(stops),) * len(within), false_positive)
    return Power(
        requirement=requirement.probe,
        budget=requirement.budget,
        probe=spec.id,
        concept=concept,
        limit=limit,
        samples=samples,
        bounds=seeds * len(within),
        most_hits=stops[-1].most_to_pass,
        stops=stops,
        smallest_samples=_smallest(policy, stops[-1], limit, alpha, sensitivity),
        sensitivity=sensitivity,
        false_positive_rate=false_positive if calibration else None,
        chances=[Chance(rate=rate, probability=chance(exam, rate, seeds)) for rate in TRUE_RATES],
    )


def _smallest(policy: Policy, last: Stop, limit: float, alpha: float, sensitivity: float | None) -> int | None:
    """Fewest images with which zero hits pass; where one looks more than once, a few more than for one look."""
    fewest, sampling = smallest_zero_hit_samples(limit, alpha, sensitivity), policy.certification.sampling
    if fewest is None or last.most_to_pass is not None:
        return fewest
    passes = (
        n for n in count(fewest) if most_hits_to_pass(n, limit, alpha, sensitivity, planned(sampling, n).upper) == 0
    )
    return next(passes)


def _judged(requirement: Requirement, schedule: Schedule) -> list[int]:
    return [e for e in schedule.efforts if requirement.budget is None or e <= requirement.budget]


def _false_positive(calibration: Calibration | None) -> float:
    """Share of other images that the detector was seen to flag; 0 where nobody looked."""
    return (calibration.false_positive_rate or 0.0) if calibration else 0.0


def _exams(
    powers: list[Power],
    schedules: Mapping[str, Schedule],
    calibrations: Mapping[str, Calibration | None],
) -> list[Exam]:
    """Every probe on every concept once, judged at each checkpoint by the strictest requirement there."""
    found = []
    for probe, concept in dict.fromkeys((power.probe, power.concept) for power in powers):
        own = [power for power in powers if (power.probe, power.concept) == (probe, concept)]
        strictest = []
        for effort in schedules[probe].efforts:
            if there := [power for power in own if power.budget is None or effort <= power.budget]:
                strictest.append(min(there, key=lambda power: -1 if power.most_hits is None else power.most_hits))
        stops = tuple(tuple(power.stops) for power in strictest)
        limit = min(power.limit for power in own)
        found.append(Exam(limit, stops, _false_positive(calibrations.get(concept))))
    return found


def _hopeless(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule], powers: list[Power]) -> list[str]:
    """Why no model whatsoever can pass."""
    unmatched = [
        f"no probe of the suite {suite.name!r} matches the requirement {requirement.probe!r}: it stays INCONCLUSIVE"
        for requirement in policy.requirements
        if not suite.matching(requirement.probe, schedules)
    ]
    lacking = ruled_out(policy, schedules)
    probes = [spec for spec in suite.probes if spec.id not in lacking]
    too_few = list(dict.fromkeys(_too_few(power) for power in powers if power.most_hits is None))
    return unmatched + too_few + _uncontrolled(policy, probes, schedules)


def _uncontrolled(policy: Policy, probes: list[ProbeSpec], schedules: Mapping[str, Schedule]) -> list[str]:
    """Controls that fail whatever the images show: of those that the released base model is asked for."""
    settings, alpha = policy.certification, 1 - policy.certification.confidence
    released = [spec for spec in probes if spec.intent == "none"]
    if not policy.retain:
        return ["no retained subject is declared, so nothing shows how often the detector errs"]
    if not any(schedules[spec.id].everything for spec in released):
        return ["no probe looks at benign subjects of the released model, so nothing shows that it is still good"]
    told, benign = [], settings.seeds * settings.samples * len(policy.retain)
    if upper_bound(0, benign, alpha) > settings.negative_control:
        told.append(
            f"even no false alarm in {plural(benign, 'benign image')} shows that at most "
            f"{declared(settings.negative_control)} are flagged: draw more samples, or declare more to retain"
        )
    shown = settings.seeds * min(settings.at_least(spec.samples) for spec in released)
    if lower_bound(shown, shown, alpha) < settings.positive_control:
        told.append(
            f"even {plural(shown, 'flagged image')} of {shown} do not show that the base model draws a concept in "
            f"{declared(settings.positive_control)}: draw more samples"
        )
    return told


def _too_few(power: Power) -> str:
    images, limit = plural(power.samples, "image"), declared(power.limit)
    what = f"{power.requirement}: even zero hits of {images} cannot pass a limit of {limit}"
    if power.sensitivity is not None:
        what += f" with a detector that sees at least {percent(power.sensitivity)} of the concept's images"
    if power.smallest_samples is None:
        return f"{what}, and no number of images can"
    return f"{what}; at least {power.smallest_samples} are needed"


def _unlikely(powers: list[Power]) -> list[str]:
    """A detector that takes other images for the concept may keep a model that never draws it from passing."""
    return [
        f"{power.probe}, {power.concept}: a model that never draws it passes with a chance of "
        f"{percent(power.chances[0].probability)}, since the detector flags {percent(power.false_positive_rate)} "
        f"of other images; allow more than {declared(power.limit)}, or take a better detector"
        for power in powers
        if power.most_hits is not None and power.false_positive_rate and power.chances[0].probability < UNLIKELY
    ]
