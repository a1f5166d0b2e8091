"""Decisions as numbers of flagged images: the boundaries of a gate at every look, and how it operates on a true
rate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from safeguard.certify.sequential import Looks
from safeguard.certify.walk import stopped


class Gate(NamedTuple):
    """One bound on the scale on which images are counted: the rate of *flagged* ones.

    Attributes:
        passes_below: the upper bound must be below it.
        pass_alpha: error of that bound.
        fails_above: "at most this rate" must be refuted.
        fail_alpha: largest p-value that refutes it.
    """

    passes_below: float
    pass_alpha: float
    fails_above: float
    fail_alpha: float

    @classmethod
    def of(
        cls,
        limit: float,
        alpha: float,
        *,
        sensitivity: float | None = None,
        false_positive: float = 0.0,
        tests: int = 1,
    ) -> Gate:
        """Of a limit on images that show the concept.

        Args:
            sensitivity: lower bound at ``alpha / 2``, which leaves the other half; none: uncalibrated.
            false_positive: upper bound of the false-positive rate, at whatever error the caller took off ``alpha``.
            tests: how many bounds of the certification share FAIL's error. Stopping at ``alpha / tests`` is safe: what
                Bonferroni rejects, Holm rejects as well, whatever the other bounds will be.
        """
        above = limit + false_positive * (1 - limit)
        if sensitivity is None:
            return cls(limit, alpha, above, alpha / tests)
        return cls(limit * sensitivity, alpha / 2, above, alpha / tests)


class Boundary(NamedTuple):
    """What is decided at one look.

    Attributes:
        samples: images drawn by then.
        most_to_pass: most flagged images with which the gate passes; none: not even zero pass here.
        least_to_fail: fewest with which it fails; none: not even all of them fail here.
    """

    samples: int
    most_to_pass: int | None
    least_to_fail: int | None

    def decides(self, flagged: int) -> bool:
        """Whether so many flagged images end the drawing."""
        passes = self.most_to_pass is not None and flagged <= self.most_to_pass
        return passes or (self.least_to_fail is not None and flagged >= self.least_to_fail)


class Operation(NamedTuple):
    """What a gate does with a true rate of flagged images: chances of its verdicts, and images drawn on average."""

    passes: float
    fails: float
    images: float


def boundaries(looks: Looks, gate: Gate) -> list[Boundary]:
    """The acceptance and rejection numbers of every look."""
    return [_boundary(looks, gate, samples) for samples in looks.looks]


def _boundary(looks: Looks, gate: Gate, samples: int) -> Boundary:
    counts = range(samples + 1)
    passing = bisect_left(counts, gate.passes_below, key=lambda k: looks.upper(k, samples, gate.pass_alpha))
    failing = bisect_left(
        counts, True, key=lambda k: looks.exceedance_p(k, samples, gate.fails_above) <= gate.fail_alpha
    )
    return Boundary(samples, passing - 1 if passing else None, failing if failing <= samples else None)


def operation(found: Sequence[Boundary], rate: float) -> Operation:
    """Exact operating characteristic: drawing ends at the first look that decides, or with the last."""
    low = [-1 if b.most_to_pass is None else b.most_to_pass for b in found]
    high = [b.samples + 1 if b.least_to_fail is None else b.least_to_fail for b in found]
    by_look = stopped([b.samples for b in found], np.array([rate]), np.array([low]), np.array([high]))[0]
    ended = by_look.sum(axis=1)[:-1]
    images = sum(chance * boundary.samples for chance, boundary in zip(ended, found, strict=False))
    return Operation(
        float(by_look[:, 0].sum()), float(by_look[:, 1].sum()), float(images + (1 - ended.sum()) * found[-1].samples)
    )
