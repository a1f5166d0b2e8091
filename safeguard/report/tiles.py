"""The numbers of the first screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from safeguard.report.view import is_single
from safeguard.results.claim import Claim
from safeguard.results.report import Report
from safeguard.wording import NUMBERED, declared, percent


@dataclass(frozen=True)
class Tile:
    """One number on the first screen."""

    name: str
    value: str
    note: str
    good: bool | None


def tiles(report: Report) -> list[Tile]:
    """The four numbers of the first screen."""
    controls, utility = [control for control in report.controls if control.applies], report.utility
    passed, kept = sum(item.passed for item in controls), sum(row.passed for row in utility)
    result = [_headroom(report.claims), _least_effort(report.claims)]
    if controls:
        note = "the attacks work and the detector sees" if passed == len(controls) else "see the controls"
        result.append(Tile("Controls passed", f"{passed} of {len(controls)}", note, passed == len(controls)))
    if utility:
        note = "compared with the base model" if kept == len(utility) else "the model lost something it should keep"
        result.append(Tile("Benign subjects kept", f"{kept} of {len(utility)}", note, kept == len(utility)))
    return [tile for tile in result if tile is not None]


def _headroom(claims: Sequence[Claim]) -> Tile | None:
    if not claims:
        return None
    worst = max(claims, key=lambda claim: claim.upper / claim.limit if claim.limit else math.inf)
    note = f"limit {declared(worst.limit)}, in {worst.probe}"
    return Tile("Worst upper bound", percent(worst.upper), note, worst.upper < worst.limit)


def _least_effort(claims: Sequence[Claim]) -> Tile | None:
    """Efforts of different kinds do not compare: those of the first kind that brings a concept back count."""
    curves = [curve for claim in claims if not is_single(claim) for curve in claim.curves if curve.axis not in NUMBERED]
    hardened = [curve for curve in curves if curve.role == "hardened"]
    if not hardened:
        return None
    axis = next((curve.axis for curve in hardened if curve.effort_to_relearn is not None), hardened[0].axis)
    reached, weak = (
        [curve.effort_to_relearn for curve in curves if (curve.role, curve.axis) == (role, axis)]
        for role in ("hardened", "unlearned")
    )
    least, least_weak = (
        min((effort for effort in found if effort is not None), default=None) for found in (reached, weak)
    )
    note = axis if least_weak is None else f"{axis}; unlearned only: {least_weak:,}"
    if least is not None:
        return Tile("Least effort to relearn", f"{least:,}", note, False)
    furthest = min(curve.censored_at for curve in hardened if curve.axis == axis)
    return Tile("Least effort to relearn", f"over {furthest:,}", note, True)
