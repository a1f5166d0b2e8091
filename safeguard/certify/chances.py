"""The chance that a model passes, if these are its rates: of one exam, of all, and by how much seeds differ.

An *exam* is one probe on one concept: at each of its checkpoints the strictest requirement allows so many flagged
images (the gate's own acceptance numbers, its allowance for missed images included), and every seed must pass all of
them.

Seeds differ: their rates are taken as beta-distributed around the mean ``m``, with the share ``icc`` of the rates'
variance lying between seeds, ``Beta(m (1/icc - 1), (1 - m)(1/icc - 1))``; at 0 all have the rate ``m``. The counts are
then beta-binomial (Skellam 1948, J. R. Statist. Soc. B 10, 257–261).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from safeguard.certify.boundaries import operations
from safeguard.certify.statistics import uncovered_seeds
from safeguard.results.plan import SeedChance, SeedRow, Stop

ICCS = (0.0, 0.1, 0.3, 0.5)
"""How much seeds may differ: not at all, and as much as fine-tunes of one model have been seen to."""
SHARES = (0.1, 0.25)
"""Mean rates that are shown, as shares of the limit."""
SEEDS = (1, 2, 3, 5, 10, 20)
"""Numbers of seeds that are shown beside the declared one."""
POINTS = 2000
"""Rates that stand for a distribution of rates: the middles of so many equally likely parts."""


class Exam(NamedTuple):
    """One probe on one concept.

    Attributes:
        limit: of its strictest requirement.
        checkpoints: what is decided at each look at each judged checkpoint.
        false_positive: share of other images that the detector flags.
    """

    limit: float
    checkpoints: tuple[tuple[Stop, ...], ...]
    false_positive: float = 0.0


def of_one_seed(exam: Exam, rates: np.ndarray) -> np.ndarray:
    """Chance that a seed passes all checkpoints if it draws the concept at these rates (Q,).

    Every image that shows the concept counts as flagged, and of the others those that the detector takes for it.
    Checkpoints are taken as independent given the rate.
    """
    flagged = rates + exam.false_positive * (1 - rates)
    chance = np.ones_like(flagged)
    for stops, times in Counter(exam.checkpoints).items():
        chance = chance * operations(stops, flagged)[0] ** times
    return chance


def rates_of_seeds(mean: float, icc: float) -> np.ndarray:
    """Equally likely rates of seeds."""
    from scipy.special import betaincinv

    if icc == 0 or mean in (0, 1):
        return np.array([mean])
    spread = 1 / icc - 1
    quantiles = (np.arange(POINTS) + 0.5) / POINTS
    rates: np.ndarray = betaincinv(mean * spread, (1 - mean) * spread, quantiles)
    return rates


def chance(exam: Exam, mean: float, seeds: int, icc: float = 0.0) -> float:
    """Chance that all seeds pass if their rates have this mean."""
    return float(of_one_seed(exam, rates_of_seeds(mean, icc)).mean() ** seeds)


def of_all(exams: Iterable[Exam], mean: float, seeds: int) -> float:
    """Chance that all exams are passed, taken as independent, at one rate."""
    return float(np.prod([chance(exam, mean, seeds) for exam in exams]))


def by_seeds(exams: Sequence[Exam], declared: int, alpha: float, *, calibrated: bool) -> list[SeedRow]:
    """For several numbers of seeds: what a PASS would leave open, and how likely it is."""
    one_seed = {
        (share, icc): float(np.prod([chance(exam, exam.limit * share, 1, icc) for exam in exams]))
        for share in SHARES
        for icc in ICCS
    }
    return [
        SeedRow(
            seeds=seeds,
            bad_share=uncovered_seeds(seeds, alpha, calibrated=calibrated),
            chances=[
                SeedChance(share_of_limit=share, icc=icc, probability=one**seeds)
                for (share, icc), one in one_seed.items()
            ],
        )
        for seeds in sorted({*SEEDS, declared})
    ]
