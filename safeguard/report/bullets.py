"""A number of a table as a bar against its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from safeguard.results.claim import Claim
from safeguard.results.report import UtilityRow


@dataclass(frozen=True)
class Bullet:
    """A value with its bounds and its limit, as the bar of a table: places between 0 and 1."""

    low: float
    high: float
    limit: float
    value: float | None = None


def bullets(claims: Sequence[Claim]) -> list[Bullet]:
    """One per claim, all on the same square-root scale: small rates stay readable beside large ones."""
    top = max((max(claim.upper, 1.25 * claim.limit) for claim in claims), default=1.0)

    def place(rate: float) -> float:
        return math.sqrt(min(rate / top, 1.0)) if top else 0.0

    return [Bullet(*map(place, (claim.lower, claim.upper, claim.limit, claim.rate))) for claim in claims]


def of_utility(row: UtilityRow) -> Bullet:
    """The share of the base model's value that is left, and the share that must be."""

    def place(value: float) -> float:
        return min(max(value / row.base, 0.0), 1.25) / 1.25 if row.base > 0 else 0.0

    return Bullet(0.0, place(row.hardened), place(row.required))
