"""What a verdict does not say, in plain words; every report carries these sentences."""

from __future__ import annotations

from safeguard.certify.bounds import noticed
from safeguard.certify.evidence import Evidence
from safeguard.certify.statistics import sensitivity_lower
from safeguard.policy.schema import Requirement
from safeguard.policy.suite import ProbeSpec
from safeguard.wording import amount, declared, percent, plural

MOST = 1000
"""Images of one prompt, beyond which nobody draws."""


def limitations(evidence: Evidence) -> list[str]:
    """What was attacked and with what, what the numbers cover, and what nobody looked at."""
    return [
        *_scope(evidence),
        *_numbers(evidence),
        *_detectors(evidence),
        *_history(evidence),
    ]


def _scope(evidence: Evidence) -> list[str]:
    lines = [
        "The verdict speaks about the attacks listed here and no others; it is not a guarantee against stronger "
        "attackers, larger budgets, other fine-tuning methods or other data.",
        "Attacked were: " + "; ".join(_attacked(evidence, spec) for spec in evidence.suite.probes) + ".",
    ]
    if evidence.erasers:
        lines.append(
            "The model was opened with its stored erasers. Plain diffusers and other software leave them out, and "
            "nothing said here holds for the model without them."
        )
    lines += [
        f"For {requirement.probe} only checkpoints up to {_budget(evidence, requirement)} count; what a longer attack "
        "does is shown in the curves and not judged."
        for requirement in evidence.policy.requirements
        if requirement.budget is not None
    ]
    if not evidence.probes("malicious"):
        lines.append("No malicious attack was tried: nothing is known about someone who wants the concept back.")
    return lines


def _budget(evidence: Evidence, requirement: Requirement) -> str:
    """``50 fine-tuning steps``; where the probes' axes differ, ``an effort of 50``."""
    probes = {spec.id for spec in evidence.suite.matching(requirement.probe, evidence.schedules)}
    along = {unit.axis for unit in evidence.units if unit.probe in probes and max(unit.efforts, default=0) > 0}
    return amount(requirement.budget or 0, *along) if len(along) == 1 else f"an effort of {requirement.budget:,}"


def _attacked(evidence: Evidence, spec: ProbeSpec) -> str:
    units = evidence.select("hardened", spec.id)
    if not units:
        return f"{spec.id} (not run)"
    last = max((effort for unit in units for effort in unit.evaluated()), default=0)
    how = f"{spec.title}, up to {amount(last, units[0].axis)}" if last else spec.title
    return f"{spec.id} ({how}, {plural(len(units), 'seed')})"


def _numbers(evidence: Evidence) -> list[str]:
    settings, confidence = evidence.policy.certification, declared(evidence.policy.certification.confidence)
    share = percent(evidence.bad_share)
    searched = any(point.prompts for unit in evidence.units for point in unit.checkpoints)
    prompts = sum(len(concept.prompt_list) for concept in evidence.policy.concepts)
    leave = "that all pass leave" if settings.seeds > 1 else "that passes leaves"
    return [
        f"{plural(settings.seeds, 'seed')} {leave}, at {confidence} confidence, up to {share} of all seeds "
        "that might not; an attacker may try more.",
        f"Rates hold for the {plural(prompts, 'declared prompt')}, drawn with "
        f"{plural(settings.sampler_steps, 'sampling step')} at guidance {settings.guidance:g}"
        f"{'' if searched else '; adversarial prompts were not searched for'}.",
        *single_prompts(evidence),
    ]


def single_prompts(evidence: Evidence) -> list[str]:
    """Whether the images suffice to notice one prompt that is not erased at all."""
    settings, lines = evidence.policy.certification, []
    limit = max(requirement.prompt_limit for requirement in evidence.policy.requirements)
    for concept in evidence.policy.concepts:
        prompts = len(concept.prompt_list)
        wanted = next((n for n in range(1, MOST) if noticed(evidence, n, n, limit, concept.name)), None)
        counts = [count for spec in evidence.suite.probes for count in _counts(evidence, spec, concept.name)]
        found = min(counts, default=0) * settings.seeds // prompts
        if limit >= 1:
            lines.append(f"The policy lets any single prompt of {concept.name} be flagged in every image.")
        elif wanted is None:
            lines.append(
                f"No number of images tells a single prompt of {concept.name} from the detector's false alarms."
            )
        elif found < wanted:
            has = f"has about {plural(found, 'image')}" if found else "has less than one image"
            lines.append(
                f"Each of the {plural(prompts, 'prompt')} of {concept.name} {has} at a checkpoint; {wanted} would be "
                "needed to notice a single one that is not erased at all."
            )
    return lines


def _counts(evidence: Evidence, spec: ProbeSpec, concept: str) -> list[int]:
    """Images of each seed and checkpoint of the certified model; planned looks may have ended early."""
    units = evidence.select("hardened", spec.id)
    return [unit.count(concept, effort)[1] for unit in units for effort in unit.evaluated()]


def _detectors(evidence: Evidence) -> list[str]:
    lines = []
    for concept in evidence.policy.concepts:
        record = evidence.calibrations.get(concept.name)
        if record is None:
            lines.append(
                f"The detector of {concept.name} is uncalibrated: the bounds are on flagged images, and how many it "
                "misses is unknown."
            )
            continue
        bound = percent(sensitivity_lower(record, evidence.alpha / 2))
        lines.append(
            f"The detector of {concept.name} finds at least {bound} of images like its calibration data "
            f"({record.data}), which the bounds account for; it may miss more in images unlike them."
        )
    return lines


def _history(evidence: Evidence) -> list[str]:
    lines = []
    if evidence.attempts:
        models = plural(len({attempt.model_digest for attempt in evidence.attempts}), "model")
        lines.append(
            f"On this base model and these concepts {plural(len(evidence.attempts), 'certification')} of {models} "
            "went before this one; trying until one passes weakens the confidence."
        )
    if evidence.dropped_prompts:
        lines.append(
            f"The content filter removed {plural(evidence.dropped_prompts, 'prompt')} before any image was drawn."
        )
    return lines + [f"{note}." for note in evidence.truncated]
