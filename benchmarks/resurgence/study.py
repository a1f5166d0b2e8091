"""Models unlearned exactly and approximately, before and after fine-tuning, and what perfect networks would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from benchmarks.resurgence import flow
from benchmarks.resurgence.data import FINE_TUNING, PRETRAINING, Thinned, natural_mass
from benchmarks.resurgence.network import Networks, Noise
from benchmarks.resurgence.training import fine_tune, train, unlearn
from safeguard.seeds import derive

RHOS = (0.0, 0.05, 0.1, 0.2, 0.3, natural_mass(PRETRAINING))
"""Masses that exact unlearning leaves; the last is all there is."""
WEIGHTS = (0.0, 0.05, 0.1, 0.15)
"""Of the ascent of approximate unlearning."""
PENALTIES = (0.3, 1.0, 3.0)
"""Of fine-tuning, in units of its own loss."""
LENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Of training without the concept, in units of the usual one."""


@dataclass(frozen=True)
class Scale:
    """How much is computed; the page has the defaults.

    Attributes:
        seeds: models per row.
        training, unlearning, tuning: steps.
        flow: steps of the ODE.
    """

    seeds: int = 5
    training: int = 3000
    unlearning: int = 1000
    tuning: int = 300
    flow: int = flow.STEPS


@dataclass(frozen=True)
class Measured:
    """The concept in models, each (rows, seeds): its mass, and the mean ``log p`` at five points of it, in nats."""

    mass: np.ndarray
    likelihood: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One way of unlearning.

    Attributes:
        rows: what differs from row to row: ``rho``, the weight of the ascent, or steps of training.
        before: as unlearned.
        after: penalty of the fine-tune -> what it left.
        networks: the unlearned models, row by row.
    """

    rows: tuple[float, ...]
    before: Measured
    after: dict[float, Measured]
    networks: Networks | None = field(default=None, compare=False)


def dice(*purpose: object) -> torch.Generator:
    """A generator of its own for every purpose."""
    return torch.Generator().manual_seed(derive(0, "resurgence", *purpose))


def measure(noise: Noise, rows: int, seeds: int, steps: int) -> Measured:
    """Of ``rows`` times ``seeds`` models."""
    shape, models = (rows, seeds), rows * seeds
    mass, likelihood = flow.mass(noise, models, steps), flow.concept_likelihood(noise, models, steps)
    return Measured(mass.reshape(shape).numpy(), likelihood.double().reshape(shape).numpy())


def _arm(name: str, rows: Sequence[float], networks: Networks, scale: Scale) -> Arm:
    size = (len(rows), scale.seeds, scale.flow)
    after = {
        penalty: measure(fine_tune(networks, penalty, dice(name, "tune", penalty), scale.tuning), *size)
        for penalty in PENALTIES
    }
    return Arm(tuple(rows), measure(networks, *size), after, networks)


def exact(scale: Scale) -> Arm:
    """Trained with a mass ``rho`` of the concept."""
    mass = torch.tensor(RHOS, dtype=torch.float64).repeat_interleave(scale.seeds)
    return _arm("exact", RHOS, train(mass, dice("exact"), scale.training), scale)


def approximate(scale: Scale, trained: Networks) -> Arm:
    """Trained on all of p (the last row of :func:`exact`), then made to forget.

    Args:
        trained: a model per seed.
    """
    copies = trained.chosen(torch.arange(scale.seeds).repeat(len(WEIGHTS)))
    weights = torch.tensor(WEIGHTS).repeat_interleave(scale.seeds)
    return _arm("approximate", WEIGHTS, unlearn(copies, weights, dice("approximate"), scale.unlearning), scale)


def by_training(scale: Scale) -> Arm:
    """Trained without the concept, for shorter and for longer."""
    steps = tuple(round(length * scale.training) for length in LENGTHS)
    none = torch.zeros(scale.seeds)
    arms = [_arm(f"training {each}", (each,), train(none, dice("training", each), each), scale) for each in steps]
    after = {penalty: _stacked([arm.after[penalty] for arm in arms]) for penalty in PENALTIES}
    return Arm(steps, _stacked([arm.before for arm in arms]), after)


def _stacked(rows: Sequence[Measured]) -> Measured:
    return Measured(np.concatenate([row.mass for row in rows]), np.concatenate([row.likelihood for row in rows]))


def on_all(arm: Arm, scale: Scale) -> Networks:
    """The models of the last row of :func:`exact`, which has all of the concept."""
    assert arm.networks is not None
    return arm.networks.chosen(torch.arange((len(RHOS) - 1) * scale.seeds, len(RHOS) * scale.seeds))


def perfect(scale: Scale) -> Arm:
    """What networks without error would give: exact scores, and after fine-tuning the minimum of its loss.

    The loss ``|e - z|^2 + b |e - e_0|^2`` is least at ``(E[z | x] + b e_0) / (1 + b)``, at every ``x`` and ``sigma``.
    """
    start = Thinned(PRETRAINING, torch.tensor(RHOS, dtype=torch.float64))
    tuning = Thinned(FINE_TUNING, torch.zeros(len(RHOS)))

    def tuned(penalty: float) -> Noise:
        def noise(x: Tensor, log_sigma: Tensor) -> Tensor:
            return (tuning.noise(x, log_sigma) + penalty * start.noise(x, log_sigma)) / (1 + penalty)

        return noise

    size = (len(RHOS), 1, scale.flow)
    return Arm(RHOS, measure(start.noise, *size), {b: measure(tuned(b), *size) for b in PENALTIES})


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of seeds, and half the width of its 95 % interval (Student's t)."""
    count = len(values)
    return float(values.mean()), float(student.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)
