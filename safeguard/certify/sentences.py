"""The verdict in one sentence, for people: what was shown, about whom, and how far it reaches. Never more than that.

*Is flagged*, not *draws*: a detector said so. Nothing here says irreversible, tamper-proof, erased from the weights, or
certified safe.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeguard.policy.schema import Policy
from safeguard.results import words
from safeguard.results.claim import Claim
from safeguard.results.control import Control
from safeguard.results.report import LevelReached, Measured, NotRun
from safeguard.wording import amount, declared, percent, plural, when


def passed(
    claims: Sequence[Claim],
    rest: Sequence[Measured],
    left_out: Sequence[NotRun],
    unnoticed: Sequence[str],
    level: LevelReached,
    bad_share: float,
    policy: Policy,
) -> str:
    """Of a PASS: the claim nearest to its limit, the coverage over seeds, what it hides, and the level.

    Args:
        unnoticed: why a single prompt that is not erased at all would not be noticed.
    """
    worst = max(claims, key=lambda claim: claim.upper / claim.limit)
    names = " or ".join(f"“{name}”" for name in dict.fromkeys(claim.concept for claim in claims))
    probes = plural(len({claim.probe for claim in claims}), "required probe")
    confidence, seeds = declared(policy.certification.confidence), policy.certification.seeds
    each = f"in each of {seeds} seeds" if seeds > 1 else "in the one seed that was run"
    said = [
        f"Under {probes} {names} is flagged less often than the policy allows {each}, at {confidence} "
        f"confidence; closest to its limit comes {worst.probe}, below {percent(worst.upper)} of images where "
        f"{declared(worst.limit)} are allowed.",
        f"Of all seeds that an attacker could draw, at most {percent(bad_share)} bring it above a limit, at "
        f"{confidence} confidence."
        if bad_share < 1
        else "It says nothing of other seeds that an attacker could draw.",
    ]
    said += [sentence for claim in claims for sentence in words.coverage(claim)]
    strictest = min(claim.limit for claim in claims)
    if lenient := [claim for claim in claims if claim.rate > strictest]:
        said.append(f"A lenient limit allows that {'; '.join(_allowed(claim) for claim in lenient)}.")
    if left_out:
        said.append(f"Not tried: {'; '.join(f'{each.probe} ({each.why})' for each in left_out)}.")
    said += unnoticed
    if above := [each for each in rest if each.above]:
        said.append(f"Not judged: {'; '.join(_seen(each) for each in above)}.")
    return " ".join([*said, f"{_level(level)}."])


def _allowed(claim: Claim) -> str:
    counts = f"{claim.flagged} of {claim.samples} images {when(claim.worst_effort, claim.axis)}"
    return f"in {claim.probe} “{claim.concept}” is flagged in {counts}, where {declared(claim.limit)} are allowed"


def _seen(each: Measured) -> str:
    why = "which is beyond the budget" if each.why == "beyond the budget" else "which no requirement names"
    counts = f"{each.flagged} of {each.samples} images {when(each.effort, each.axis)}"
    return f"in {each.probe} “{each.concept}” is flagged in {counts}, {why}"


def _level(level: LevelReached) -> str:
    if not level.number:
        return f"This is a PASS under a policy weaker than level 1, which asks for {_listed(level.lacks)} besides"
    above = f"; level {level.number + 1} asks for {_listed(level.lacks)} besides" if level.lacks else ""
    return f"It reaches assurance level {level.number}, {level.name}{above}"


def _listed(lacks: Sequence[str]) -> str:
    shown = ", ".join(lacks[:3])
    return shown if len(lacks) <= 3 else f"{shown} and {plural(len(lacks) - 3, 'thing')} more"


def failed(claims: Sequence[Claim], working: set[str]) -> str:
    """Of a FAIL: the claim that exceeds its limit most."""
    broken = [claim for claim in claims if claim.verdict == "FAIL" and claim.concept in working]
    worst = max(broken, key=lambda claim: (claim.reason == "above the limit", claim.lower - claim.limit))
    rest = f"; {plural(len(broken) - 1, 'more claim fails', 'more claims fail')}" if len(broken) > 1 else ""
    if worst.reason == "one prompt above its limit":
        group = worst.groups[0]
        return (
            f"In {worst.probe} “{group.name}” is flagged in {group.flagged} of {group.samples} images "
            f"{when(group.effort, worst.axis)}, where no prompt may be in {declared(worst.prompt_limit)}{rest}."
        )
    spent = f"after {amount(worst.worst_effort, worst.axis)} of {worst.probe}"
    where = spent if worst.worst_effort else f"in {worst.probe}"
    return (
        f"“{worst.concept}” is flagged {where} in {worst.flagged} of {worst.samples} images: a rate of at least "
        f"{percent(worst.lower)} where {declared(worst.limit)} are allowed{rest}."
    )


def undecided(claims: Sequence[Claim], controls: Sequence[Control]) -> str:
    """Of an INCONCLUSIVE: the controls that failed, and the first claim that is open."""
    broken = [f"the control “{control.title}” failed" for control in controls if not control.passed]
    open_claims = [claim for claim in claims if claim.verdict == "INCONCLUSIVE"]
    if open_claims:
        broken.append(f"{open_claims[0].probe} on {open_claims[0].concept}: {words.reason(open_claims[0])}")
    if len(open_claims) > 1:
        broken.append(f"{plural(len(open_claims) - 1, 'more claim is', 'more claims are')} undecided")
    if not claims:
        broken.append("nothing was required")
    return f"The evidence does not decide whether the model meets its policy: {'; '.join(broken)}."
