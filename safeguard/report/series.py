"""The series that hardening logged: what there is to say about each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TRACES: Mapping[str, str] = {
    "gradient norm term": (
        "Squared length of the gradient with which a fine-tune on the concept begins: near zero it learns nothing"
    ),
    "gradient angle term": (
        "Inner product of that gradient with the benign one: below zero, learning the concept costs benign knowledge"
    ),
}
"""Logged quantities that say how resilience came about, and what they mean (arXiv 2410.12777, Eq. 4 and Fig. 6)."""


@dataclass(frozen=True)
class Series:
    """A logged quantity over outer steps; ``finite`` are the values that there are and that are numbers."""

    name: str
    values: Sequence[float | None]
    count: int
    finite: list[float]

    @property
    def meaning(self) -> str:
        """Why it is drawn large; empty: it is not."""
        return TRACES.get(self.name, "") if len(self.finite) > 1 else ""


def read(logged: Mapping[str, Sequence[float | None]]) -> list[Series]:
    """All series of a record; those of :data:`TRACES` in its order, the others as they were logged."""
    known = [name for name in TRACES if name in logged]
    return [_series(name, logged[name]) for name in dict.fromkeys([*known, *logged])]


def _series(name: str, values: Sequence[float | None]) -> Series:
    there = [value for value in values if value is not None]
    return Series(name, values, len(there), [value for value in there if math.isfinite(value)])
