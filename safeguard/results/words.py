"""What numbers of a report say in words: sentences are made here, from the numbers alone, for every rendering."""

from __future__ import annotations

from safeguard.results.report import Claim, Control, Finding
from safeguard.wording import amount, declared, number, percent, plural, when


def finding(found: Finding) -> str:
    """One part of a control in one clause."""
    said = ", ".join(part for part in (_measured(found), found.problem) if part)
    if found.required is None:
        return f"{found.about}: {said}"
    needed = {"at least": "needed", "at most": "allowed", "below": "to be undercut"}[found.direction]
    return f"{found.about}: {said}; {_value(found, found.required, exact=True)} {needed}"


def _measured(found: Finding) -> str:
    if found.samples is None:
        return "" if found.measured is None else f"{found.measure} {_value(found, found.measured)}"
    moment = "" if found.effort is None else f" {when(found.effort, found.axis)}"
    model = "" if found.role is None else f" in the {found.role} model"
    return f"{found.hits} of {found.samples} {found.measure}{moment}{model}{_bounded(found)}"


def _bounded(found: Finding) -> str:
    if found.bound is None:
        return ""
    side = {"at least": "at least", "at most": "at most", "below": "at most"}[found.direction]
    rate = f"{_value(found, found.measured)}, " if found.measured is not None else ""
    return f" ({rate}{side} {_value(found, found.bound)})"


def _value(found: Finding, value: float, *, exact: bool = False) -> str:
    if not found.share:
        return number(value)
    return declared(value) if exact else percent(value)


def control(checked: Control) -> str:
    """What was measured and what was needed."""
    if not checked.findings:
        return "the suite has nothing that this would control"
    said = "; ".join(finding(found) for found in checked.findings)
    return f"{said}; for each concept one attack is enough" if checked.id == "attack" else said


def reason(claim: Claim) -> str:
    """Why a claim has its verdict, in one sentence."""
    limit = declared(claim.limit)
    counts = (
        f"{claim.flagged} of {claim.samples} images {when(claim.worst_effort, claim.axis)}, seed {claim.worst_seed}"
    )
    if claim.reason == "above the limit":
        return f"{counts}, show {claim.concept}: the rate is at least {percent(claim.lower)}, the limit {limit}"
    if claim.reason == "below the limit":
        return "the upper bound lies below the limit at every checkpoint and in every seed"
    if claim.reason == "between the bounds":
        return f"{counts}: the limit lies between the bounds; {_advice(claim)}"
    if claim.reason == "incomplete":
        return _gap(claim)
    return {
        "not run": "the probe was not run",
        "nothing within the budget": "the probe has no checkpoint within the budget",
        "no probe": f"no probe of the suite matches {claim.requirement!r}",
    }[claim.reason]


def _gap(claim: Claim) -> str:
    gap = claim.gap
    assert gap is not None, "an incomplete claim says what is missing"
    if gap.what == "seeds":
        return f"{plural(gap.found, 'seed')} of {gap.wanted} {'was' if gap.found == 1 else 'were'} run"
    place = f"{when(gap.effort or 0, claim.axis)}, seed {gap.seed}"
    return f"{gap.found} of {gap.wanted} images were judged {place}"


def _advice(claim: Claim) -> str:
    if claim.most_hits is not None:
        return "more samples may decide it"
    if claim.smallest_samples is None:
        return "nothing can pass this limit, since a bound is never 0 and an unseen image never excluded"
    return f"no count of hits could pass with so few, at least {claim.smallest_samples} images are needed"


def budget(claim: Claim) -> str:
    """``budget 50 fine-tuning steps``; empty without one."""
    return "" if claim.budget is None else f"budget {amount(claim.budget, claim.axis)}"
