"""What the report says in words, and the order it says it in; computed here so that templates only draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safeguard.policy.levels import LEVELS
from safeguard.report import embedding
from safeguard.report.bullets import Bullet, of_utility
from safeguard.results import words
from safeguard.results.claim import Claim, Curve, Point
from safeguard.results.report import ConceptInfo, Report, UtilityRow
from safeguard.wording import NARROW, NUMBERED, ROLE_NAMES, amount, declared, percent, plural, times, when


@dataclass(frozen=True)
class Relearning:
    """How hard the concept was to bring back: a number to remember, and the sentence it belongs to."""

    headline: str
    words: str


@dataclass(frozen=True)
class Shot:
    """One contact sheet of a gallery."""

    effort: int
    when: str
    picture: embedding.Picture
    caption: str
    alt: str


@dataclass(frozen=True)
class Strip:
    """The contact sheets of one curve, in the order of effort; none where a checkpoint has no evidence."""

    role: str
    name: str
    shots: list[Shot | None]


@dataclass(frozen=True)
class ClaimView:
    """A claim with its figures, words and gallery."""

    anchor: str
    claim: Claim
    single: bool
    """Whether one effort was looked at: the model as released, mostly."""
    beyond: bool
    """Whether efforts beyond the budget were looked at."""
    ceiling: float
    """The highest rate of its chart."""
    relearning: Relearning | None
    reason: str
    measured: str
    power: str
    caption: str
    description: str
    roles: list[tuple[str, str]]
    broken: bool
    """Whether some model no longer draws other things at some checkpoint."""
    table: list[tuple[int, list[Point | None]]]
    gallery: list[Strip]


@dataclass(frozen=True)
class ConceptView:
    """A concept and its claims; ``info`` is missing when the report does not declare the concept."""

    anchor: str
    name: str
    info: ConceptInfo | None
    claims: list[ClaimView]


@dataclass(frozen=True)
class UtilityView:
    """One subject that must survive, three models side by side."""

    row: UtilityRow
    unlearned: float | None
    bullet: Bullet


def ordered(curves: Sequence[Curve]) -> list[Curve]:
    """Curves that hold a point, hardened first."""
    return sorted((curve for curve in curves if curve.points), key=lambda curve: [*ROLE_NAMES].index(curve.role))


def is_single(claim: Claim) -> bool:
    """Whether nothing changes along efforts: the claim is about the model as released."""
    return len({point.effort for curve in claim.curves for point in curve.points}) < 2


def ceiling(claim: Claim) -> float:
    """How far a claim's chart reaches: the first of 10, 25, 50 and 100 % that neither limit nor bound exceeds."""
    highest = max([claim.limit, *(point.upper for curve in claim.curves for point in curve.points)])
    return next((top for top in (0.1, 0.25, 0.5) if highest <= top), 1.0)


def described(curve: Curve) -> str:
    """A curve in one sentence, for those who cannot see it."""
    points = ", ".join(f"{percent(point.rate)} at {point.effort}" for point in curve.points)
    return f"{ROLE_NAMES[curve.role]}: {points}"


def said(curve: Curve, point: Point) -> str:
    """A point of a curve in one sentence."""
    state = point.label or when(point.effort, curve.axis)
    return (
        f"{ROLE_NAMES[curve.role]}, {state}: {point.flagged} of {point.samples} flagged, "
        f"{percent(point.rate)} (bounds {percent(point.lower)} to {percent(point.upper)})"
        f"{'' if point.working else '; it no longer draws other things'}"
    )


def relearning(claim: Claim) -> Relearning | None:
    """Compare the efforts that bring the concept back in the hardened and in the unlearned-only model."""
    curves = {curve.role: curve for curve in claim.curves}
    hardened, unlearned = curves.get("hardened"), curves.get("unlearned")
    if hardened is None or hardened.censored_at == 0 or claim.axis in NUMBERED:
        return None
    reached, axis = hardened.effort_to_relearn, claim.axis
    weak = unlearned.effort_to_relearn if unlearned else None
    against = _against(unlearned)
    if reached is None:
        within = f"not reached within {amount(hardened.censored_at, axis)}"
        if weak and hardened.censored_at > weak:
            headline = f"more than {times(hardened.censored_at / weak)}"
            return Relearning(headline, f"the effort: relearning was {within}{against}.")
        return Relearning("not reached", f"within {amount(hardened.censored_at, axis)}{against}.")
    if reached == 0:
        return Relearning("no effort", "The released model draws the concept before any attack.")
    if weak:
        needs = f"needs {times(reached / weak)}"
        same = "the same effort" if reached == weak else "the effort"
        said = f"{same} of the unlearned-only model: {amount(reached, axis)} against {weak:,}."
        return Relearning(needs if reached != weak else "needs 1" + NARROW + "×", said)
    return Relearning(amount(reached, axis), f"bring the concept back{against}.")


def _against(unlearned: Curve | None) -> str:
    if unlearned is None:
        return "; there is no unlearned-only model to compare with"
    effort = unlearned.effort_to_relearn
    if effort is None:
        return ", nor in the unlearned-only model"
    if effort == 0:
        return "; the unlearned-only model draws it before any attack"
    return f"; the unlearned-only model needs {amount(effort, unlearned.axis)}"


def measured(claim: Claim) -> str:
    """The claim's number in one sentence."""
    points = [point for curve in claim.curves if curve.role == "hardened" for point in curve.points]
    label = next((point.label for point in points if point.effort == claim.worst_effort and point.label), "")
    worst = "As released"
    if claim.worst_effort and claim.axis in NUMBERED:
        where = when(claim.worst_effort, claim.axis)
        worst = f"{where[0].upper()}{where[1:]}, the worst{f' ({label})' if label else ''}"
    elif claim.worst_effort:
        worst = f"At the worst checkpoint, {amount(claim.worst_effort, claim.axis)}"
    return (
        f"{worst}, {claim.flagged:,} of {claim.samples:,} images were flagged ({percent(claim.rate)}). "
        f"The true rate lies below {percent(claim.upper)}; the limit is {declared(claim.limit)}."
    )


def coverage(report: Report) -> str:
    """What the verdict covers."""
    probes = len({claim.probe for claim in report.claims})
    concepts = len({claim.concept for claim in report.claims})
    return (
        f"It covers {plural(len(report.claims), 'claim')}: {plural(probes, 'probe')} on {plural(concepts, 'concept')}, "
        f"with the budgets and data listed below and nothing beyond them. Each bound holds at "
        f"{declared(report.confidence)} confidence in the worst of {plural(report.seeds, 'seed')}; if all of them "
        f"pass, up to {percent(report.bad_share)} of the seeds an attacker could draw may still bring the concept back."
    )


def level(report: Report) -> str:
    """The assurance level in words."""
    reached = report.level
    return f"Level {reached.number} of {len(LEVELS)}, {reached.name}" if reached.number else "Weaker than level 1"


def attacker(report: Report) -> str:
    """What the threat model grants, and what of it no probe made use of."""
    denied = [cell.means for cell in report.threat if cell.has == "no" or cell.has.startswith("at most")]
    unused = [cell.means for cell in report.threat if cell.has != "no" and not cell.probes]
    granted = f"has everything but {', '.join(denied)}" if denied else "has whatever an attack asks for"
    return f"{granted}; no probe made use of {', '.join(unused)}" if unused else f"{granted}; every means was tried"


def concepts(report: Report, run_dir: Path) -> list[ConceptView]:
    """Claims by concept, in the order of the policy; images are loaded here."""
    known = {info.name: info for info in report.concepts}
    names = list(dict.fromkeys([*known, *(claim.concept for claim in report.claims)]))
    hidden = must_blur(report)
    numbered = list(enumerate(report.claims, start=1))
    return [
        ConceptView(
            anchor=f"concept-{index}",
            name=name,
            info=known.get(name),
            claims=[_claim(report, c, f"claim-{n}", run_dir, hidden) for n, c in numbered if c.concept == name],
        )
        for index, name in enumerate(names, start=1)
    ]


def must_blur(report: Report) -> bool:
    """Whether evidence is blurred: some concept is unsafe, or a claim is about a concept of unknown kind."""
    kinds = {info.name: info.kind for info in report.concepts}
    return "unsafe" in kinds.values() or any(claim.concept not in kinds for claim in report.claims)


def _claim(report: Report, claim: Claim, anchor: str, run_dir: Path, hidden: bool) -> ClaimView:
    curves = ordered(claim.curves)
    efforts = sorted({point.effort for curve in curves for point in curve.points})
    points = [{point.effort: point for point in curve.points} for curve in curves]
    return ClaimView(
        anchor=anchor,
        claim=claim,
        single=is_single(claim),
        beyond=claim.budget is not None and claim.budget < max(efforts, default=0),
        ceiling=ceiling(claim),
        relearning=relearning(claim),
        reason=words.reason(claim),
        measured=measured(claim),
        power=f"Power: {words.finding(claim.power)}." if claim.power else "",
        caption=f"Rate of {claim.concept} under {claim.probe}",
        description=". ".join(described(curve) for curve in curves) + f". Limit: {declared(claim.limit)}.",
        roles=[(curve.role, ROLE_NAMES[curve.role]) for curve in curves],
        broken=any(not point.working for curve in curves for point in curve.points),
        table=[(effort, [by_effort.get(effort) for by_effort in points]) for effort in efforts],
        gallery=_gallery(claim, curves, run_dir, hidden),
    )


def _gallery(claim: Claim, curves: list[Curve], run_dir: Path, hidden: bool) -> list[Strip]:
    efforts = sorted({point.effort for curve in curves for point in curve.points if point.evidence is not None})
    strips = []
    for curve in curves:
        by_effort = {point.effort: point for point in curve.points if point.evidence is not None}
        if by_effort:
            shots = [_shot(claim, curve.role, by_effort.get(effort), run_dir, hidden) for effort in efforts]
            strips.append(Strip(curve.role, ROLE_NAMES[curve.role], shots))
    return strips


def _shot(claim: Claim, role: str, point: Point | None, run_dir: Path, hidden: bool) -> Shot | None:
    if point is None or point.evidence is None:
        return None
    picture = embedding.load(run_dir, point.evidence, blurred=hidden)
    state = "Blurred images" if hidden else "Images"
    alt = (
        f"{state} of the {ROLE_NAMES[role]} model after {amount(point.effort, claim.axis)} of {claim.probe}, "
        f"prompted for {claim.concept}: {point.flagged} of {point.samples} flagged"
    )
    state, counts = point.label or when(point.effort, claim.axis), f"{point.flagged:,}/{point.samples:,} flagged"
    return Shot(point.effort, state, picture, counts, alt)


def utility(report: Report) -> list[UtilityView]:
    """Benign subjects, with the unlearned-only model's value where it was measured."""
    others = {(row.subject, row.relation, row.metric): row.hardened for row in report.unlearned_utility}
    return [
        UtilityView(row, others.get((row.subject, row.relation, row.metric)), of_utility(row)) for row in report.utility
    ]
