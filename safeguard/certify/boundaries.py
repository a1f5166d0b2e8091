"""Decisions as numbers of flagged images: the boundaries of a gate at every look, and how it operates on a true
rate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from safeguard.certify.sequential import Looks
from safeguard.certify.walk import stopped
from safeguard.results.plan import Stop


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


class Operation(NamedTuple):
    """What a gate does with a true rate of flagged images: chances of its verdicts, and images drawn on average."""

    passes: float
    fails: float
    images: float


def boundaries(looks: Looks, gate: Gate) -> list[Stop]:
    """The acceptance and rejection numbers of every look."""
    return [_boundary(looks, gate, samples) for samples in looks.looks]


def _boundary(looks: Looks, gate: Gate, samples: int) -> Stop:
    counts = range(samples + 1)
    passing = bisect_left(counts, gate.passes_below, key=lambda k: looks.upper(k, samples, gate.pass_alpha))
    failing = bisect_left(
        counts, True, key=lambda k: looks.exceedance_p(k, samples, gate.fails_above) <= gate.fail_alpha
    )
    return Stop(
        samples=samples,
        most_to_pass=passing - 1 if passing else None,
        least_to_fail=failing if failing <= samples else None,
    )


def operation(found: Sequence[Stop], rate: float) -> Operation:
    """Exact operating characteristic: drawing ends at the first look that decides, or with the last."""
    passes, fails, images = operations(found, np.array([rate]))
    return Operation(float(passes[0]), float(fails[0]), float(images[0]))


def operations(found: Sequence[Stop], rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chances to pass and to fail, and images on average, at each rate (Q,)."""
    low = [-1 if b.most_to_pass is None else b.most_to_pass for b in found]
    high = [b.samples + 1 if b.least_to_fail is None else b.least_to_fail for b in found]
    rows = (len(rates), 1)
    by_look = stopped([b.samples for b in found], rates, np.tile(low, rows), np.tile(high, rows))
    ended = by_look.sum(axis=2)[:, :-1]
    samples = np.array([b.samples for b in found])
    images = ended @ samples[:-1] + (1 - ended.sum(axis=1)) * samples[-1]
    return by_look[..., 0].sum(axis=1), by_look[..., 1].sum(axis=1), images
