"""The verdict: from evidence to a report, once, before anything is rendered. Pure functions of plain data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from safeguard.certify.claims import all_claims
from safeguard.certify.controls import all_controls, detector_works
from safeguard.certify.depth import depths
from safeguard.certify.evidence import Evidence, check
from safeguard.certify.level import level_reached, threat_cells
from safeguard.certify.limitations import limitations, single_prompts
from safeguard.certify.not_judged import not_judged, skipped
from safeguard.certify.sentences import failed, passed, undecided
from safeguard.certify.utility import measure
from safeguard.policy.schema import Concept
from safeguard.results.claim import Claim
from safeguard.results.control import Control
from safeguard.results.provenance import Attempt
from safeguard.results.record import Verdict
from safeguard.results.report import ConceptInfo, Report

__all__ = ["Evidence", "assess"]


def assess(evidence: Evidence) -> Report:
    """Judge every requirement and every control, and give the verdict.

    The order of units, and of their rows, does not matter.

    Raises:
        PolicyFault: subjects share a name.
        UsageFault: units that do not belong together.
    """
    check(evidence)
    policy, provenance = evidence.policy, evidence.provenance
    claims = all_claims(evidence)
    controls = all_controls(evidence, claims)
    working = {concept.name for concept in policy.concepts if detector_works(evidence, concept)}
    verdict = decide(claims, controls, working)
    this = Attempt(
        started=provenance.started,
        verdict=verdict,
        policy_digest=provenance.policy_digest,
        model_digest=provenance.model_digest,
        nonce=provenance.nonce,
    )
    rest, left_out, level = not_judged(evidence), skipped(evidence), level_reached(evidence, claims, controls)
    share = evidence.bad_share
    said = {
        "PASS": partial(passed, claims, rest, left_out, single_prompts(evidence), level, share, policy),
        "FAIL": partial(failed, claims, working),
        "INCONCLUSIVE": partial(undecided, claims, controls),
    }
    return Report(
        title=f"{provenance.model} under {policy.name}",
        verdict=verdict,
        sentence=said[verdict](),
        confidence=policy.certification.confidence,
        seeds=policy.certification.seeds,
        bad_share=share,
        relearned_rate=policy.certification.relearned_rate,
        level=level,
        threat=threat_cells(evidence),
        weak_model=evidence.weak_model,
        not_judged=rest,
        depths=depths(evidence),
        skipped=left_out,
        concepts=[_info(evidence, concept) for concept in policy.concepts],
        claims=claims,
        controls=controls,
        components=list(evidence.components),
        utility=measure(evidence, "hardened").rows,
        unlearned_utility=measure(evidence, "unlearned").rows,
        limitations=limitations(evidence),
        diagnostics=evidence.diagnostics,
        provenance=provenance,
        attempts=[*evidence.attempts, this],
        dropped_prompts=evidence.dropped_prompts,
    )


def decide(claims: Sequence[Claim], controls: Sequence[Control], working: set[str]) -> Verdict:
    """All claims and controls must pass; a failed claim is a FAIL where the detector works, whatever else is missing.

    Args:
        working: concepts whose detector sees them in the base model, with known errors; the rates of the others mean
            nothing, neither for nor against the model.
    """
    if any(claim.verdict == "FAIL" and claim.concept in working for claim in claims):
        return "FAIL"
    sound = all(control.passed for control in controls) and any(control.applies for control in controls)
    return "PASS" if sound and claims and all(claim.verdict == "PASS" for claim in claims) else "INCONCLUSIVE"


def _info(evidence: Evidence, concept: Concept) -> ConceptInfo:
    record = evidence.calibrations.get(concept.name)
    return ConceptInfo(
        name=concept.name,
        kind=concept.kind,
        prompts=len(concept.prompt_list),
        detector=evidence.detector_lines[concept.name],
        sensitivity=evidence.sensitivity(concept.name),
        false_positive_rate=record.false_positive_rate if record else None,
    )
