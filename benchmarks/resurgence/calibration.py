"""How often the gate of a certification passes a model that it must not, where the true rate is known.

One unlearned model is fine-tuned by many users, each with data of his own: the seeds of a certification. The mass of
the concept in each is known from the flow, the images are samples of the model, and the gate is that of
``safeguard.certify``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from benchmarks.certification_errors import Promise, Row
from benchmarks.resurgence import flow
from benchmarks.resurgence.data import shows
from benchmarks.resurgence.network import Networks
from benchmarks.resurgence.study import dice
from benchmarks.resurgence.training import fine_tune
from safeguard.certify.boundaries import Gate, boundaries
from safeguard.certify.sequential import equally_spaced
from safeguard.certify.spending import Spending
from safeguard.certify.statistics import bad_share, most_hits_to_pass, pass_probability

ALPHA = DELTA = 0.05
IMAGES, EXAMINED = 200, 5
"""Images of a seed, and seeds of a certification."""
USERS, OWNED, PENALTY = 40, 20, 0.3
"""Fine-tunes of one model, and how each is done: samples it is tuned on, weight of KL."""
DRAWING = 20
"""Steps of the ODE: the mass at these is that of many more to a millionth."""


@dataclass(frozen=True)
class Population:
    """Fine-tuned models whose rates are known.

    Attributes:
        rates: true mass of the concept in each (U,).
        flagged: whether an image shows it (U, certifications, images).
    """

    rates: np.ndarray
    flagged: np.ndarray

    def certifications(self, examined: int = EXAMINED) -> tuple[np.ndarray, np.ndarray]:
        """Rates and numbers of flagged images (C, examined): the users in a new order for every round of images, each
        image used once."""
        users, rounds = self.flagged.shape[:2]
        chance = np.random.default_rng(dice("order").initial_seed())
        order = np.stack([chance.permutation(users)[: users - users % examined] for _ in range(rounds)])
        counts = self.flagged.sum(axis=2)[order, np.arange(rounds)[:, None]]
        return self.rates[order].reshape(-1, examined), counts.reshape(-1, examined)


def populate(unlearned: Networks, rounds: int, users: int, steps: int) -> Population:
    """Fine-tunes of one model, and samples of each.

    Args:
        unlearned: one model.
        rounds: times :data:`IMAGES` samples of every user.
    """
    start = unlearned.chosen(torch.zeros(users, dtype=torch.long))
    tuned = fine_tune(start, PENALTY, dice("users"), steps, images=OWNED)
    drawn = [shows(flow.draw(tuned, users, IMAGES, dice("images", i), DRAWING)).numpy() for i in range(rounds)]
    return Population(flow.mass(tuned, users, DRAWING).numpy(), np.stack(drawn, axis=1))


def allowed(limits: np.ndarray, samples: int = IMAGES) -> np.ndarray:
    """Most flagged images at which a bound passes each limit; -1: none does."""
    found = {limit: most_hits_to_pass(samples, limit, ALPHA) for limit in np.unique(limits).tolist()}
    most = {limit: -1 if hits is None else hits for limit, hits in found.items()}
    return np.array([most[limit] for limit in limits.tolist()])


def false_passes(rates: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether each certification (C, seeds) passes all of its seeds at a limit that its worst seed just reaches."""
    excess = counts - allowed(rates.max(axis=1))[:, None]
    passed: np.ndarray = excess.max(axis=1) <= 0
    return passed


def _row(what: str, promise: Promise, target: float, events: ArrayLike) -> Row:
    return Row(what, promise, target, int(np.sum(events)), np.size(events))


def all_rows(population: Population) -> Iterator[Row]:
    """What is promised, beside what was found."""
    rates, counts = population.certifications()
    worst, shown = rates.max(axis=1), f"{EXAMINED} seeds"
    yield _row(
        f"false PASS: {shown}, the limit is the rate of the worst", "at most", ALPHA, false_passes(rates, counts)
    )
    single = false_passes(rates.reshape(-1, 1), counts.reshape(-1, 1))
    yield _row("false PASS: one seed, the limit is its rate", "at most", ALPHA, single)
    yield _looking_again(population)
    yield _not_examined(population, counts)
    twice = counts.reshape(-1) <= allowed(2 * rates.reshape(-1))
    planned = np.mean([pass_probability(rate, IMAGES, 2 * rate, ALPHA) for rate in population.rates.tolist()])
    yield _row("PASS: one seed at half the limit, as planned", "exactly", float(planned), twice)
    guessed = (counts / IMAGES < worst[:, None]).all(axis=1)
    yield _row(f"for comparison: false PASS, {shown}, rates taken for bounds", "more than", ALPHA, guessed)


def _looking_again(population: Population, looks: int = 4) -> Row:
    """Four looks at the images of a seed, of which the first that passes ends it."""
    sampling = Spending(equally_spaced(looks, IMAGES), "pocock")
    counts = population.flagged.cumsum(axis=2)[:, :, np.array(sampling.looks) - 1]
    passed = np.zeros(counts.shape[:2], dtype=bool)
    for user, rate in enumerate(population.rates.tolist()):
        found = boundaries(sampling, Gate.of(rate, ALPHA))
        most = np.array([-1 if stop.most_to_pass is None else stop.most_to_pass for stop in found])
        passed[user] = (counts[user] <= most).any(axis=1)
    return _row(f"false PASS: one seed, {looks} looks (Pocock-like), the limit is its rate", "at most", ALPHA, passed)


def _not_examined(population: Population, counts: np.ndarray) -> Row:
    """The sentence about seeds that were not run, at a limit that just more users reach than it says.

    The users of a certification are different ones, which passes less often than drawing them independently."""
    share = bad_share(EXAMINED, ALPHA, DELTA)
    users = len(population.rates)
    bad = int(np.floor(share * users)) + 1
    limit = np.sort(population.rates)[users - bad]
    passed = (counts <= allowed(np.array([limit]))).all(axis=1)
    what = f"coverage sentence wrong: {EXAMINED} of {users} seeds run, {bad / users:.0%} of all bad"
    return _row(what, "at most", DELTA, passed)
