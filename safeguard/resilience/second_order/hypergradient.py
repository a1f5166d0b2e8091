"""A loss after a simulated fine-tune, differentiated with respect to the weights theta that it starts from.

A fine-tune trains x from x_0 and leaves the rest of the model, c, as it is; theta lies in both: full fine-tuning trains
all of theta, an adapter none. With g_x and g_c the gradients of the loss at the end, the Moreau envelope gives

    d loss / d x_0 = y = P (P + gamma H_xx)^-1 g_x,      d loss / d c = g_c - gamma H_cx P^-1 y

and the reverse recursion gives both exactly (:mod:`safeguard.resilience.second_order.trajectory`). To first order they
are g_x, g_c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.finetune.base import Run
from safeguard.resilience.base import Facts
from safeguard.resilience.second_order.hvp import Backend, hessian_product
from safeguard.resilience.second_order.solvers import (
    Vector,
    combine,
    cosine,
    extreme_eigenvalues,
    gradients,
    norm,
    solve_moreau,
    taking_gradients,
    within_trust,
)
from safeguard.resilience.second_order.trajectory import Trajectory, matched
from safeguard.seeds import derive


class FineTuneGradientConfig(MethodConfig):
    """How a gradient passes through simulated fine-tunes."""

    hypergradient: Literal["first_order", "moreau", "unrolled"] = "first_order"
    """By which formula (:mod:`safeguard.resilience.second_order.solvers`); the paper's is ``moreau``."""
    gamma: PositiveFloat | Literal["matched"] = "matched"
    """Moreau parameter; ``matched``: learning rate x steps, with Adam's preconditioner where Adam simulates
    (:func:`safeguard.resilience.second_order.trajectory.matched`). The paper uses 1 without one."""
    solver: Literal["fixed_point", "cg"] = "cg"
    """Linear solver; ``fixed_point`` is the paper's."""
    iterations: PositiveInt = 5
    """Hessian-vector products per solve at most (the paper's K is one more, its first being of the zero vector)."""
    hessian_batch: PositiveInt = 4
    """Images (each with its own timestep and noise) the envelope's Hessian is averaged over."""
    hvp: Backend = "fused"
    """How H v is computed (:mod:`safeguard.resilience.second_order.hvp`)."""
    trust: Annotated[float, Field(ge=1)] = 3.0
    """A hypergradient is cut to this multiple of the length of its first-order one."""


@dataclass(frozen=True)
class Outcome:
    """What one simulation says; gradients are with respect to theta, averaged over the evaluations.

    Attributes:
        loss: after fine-tuning, averaged likewise.
        first: the first-order hypergradient.
        hyper: the one asked for.
        facts: what was seen on the way.
        guards: names of :data:`safeguard.resilience.second_order.solvers.GUARDS` that fired.
        finite: whether it may be used.
    """

    loss: float
    first: Vector
    hyper: Vector
    facts: Facts
    guards: frozenset[str]
    finite: bool


class FineTuneGradient:
    """Follows one fine-tune.

    Args:
        run: before its first step.
        theta: the weights to differentiate with respect to.
        seed: of the batches that the envelope's Hessian is of.
    """

    def __init__(
        self, config: FineTuneGradientConfig, run: Run, theta: Sequence[torch.nn.Parameter], seed: int
    ) -> None:
        self.config, self.run, self.theta, self.seed = config, run, theta, seed
        trained = {id(value) for value in run.parameters}
        self._beside = [value for value in theta if id(value) not in trained]
        self._leaves = [*run.parameters, *self._beside]
        self._trajectory = Trajectory(run) if config.hypergradient == "unrolled" else None
        self._losses: list[float] = []
        self._first = [torch.zeros_like(value) for value in self._leaves]
        self._hyper = list(self._first)
        self._grads: dict[int, Vector] = {}
        self._seen: dict[str, list[float]] = {}
        self._guards: set[str] = set()
        self._finite = True
        self._solved = config.hypergradient == "unrolled"

    def step(self) -> None:
        """One step of the fine-tune."""
        if self._trajectory is not None:
            self._trajectory.record()
        self.run.step()

    def evaluate(self, loss: Tensor) -> None:
        """Take in a loss evaluated at the present weights, inside :meth:`taking_gradients`."""
        size, done = len(self.run.parameters), len(self.run.clipped)
        g = gradients(loss, self._leaves)
        self._losses.append(loss.item())
        self._first = combine(self._first, 1.0, g)
        self._finite = self._finite and math.isfinite(loss.item()) and math.isfinite(norm(g))
        if not self._finite:
            return
        if self._trajectory is not None:
            self._grads[done] = [grad.cpu() for grad in g[:size]]
        elif self.config.hypergradient == "moreau":
            self._hyper = combine(self._hyper, 1.0, self._moreau(g[:size], g[size:]))

    def taking_gradients(self) -> AbstractContextManager[None]:
        """Inside, all that is differentiated takes gradients."""
        return taking_gradients(self._leaves)

    def spectrum(self) -> None:
        """Estimate the extreme eigenvalues of the fine-tune's Hessian where :meth:`evaluate` was last."""
        if not self._finite:
            return
        with self.taking_gradients():
            product = hessian_product(self._inner, self.run.parameters, self.config.hvp)
            generator = torch.Generator().manual_seed(derive(self.seed, "spectrum"))
            low, high = extreme_eigenvalues(product, self.run.parameters, generator)
        self._note("smallest eigenvalue of the inner Hessian", low)
        self._note("largest eigenvalue of the inner Hessian", high)

    def outcome(self) -> Outcome:
        """The whole; an unrolled fine-tune is reversed here, which moves the weights."""
        size, count = len(self.run.parameters), len(self._losses)
        loss, first = sum(self._losses) / count, self._of_theta([x / count for x in self._first])
        if not self._finite:
            return Outcome(loss, first, first, {}, frozenset(), finite=False)
        if self._trajectory is not None:
            with self.taking_gradients():
                start, through = self._trajectory.pull_back(self._grads, self._beside, self.config.hvp)
            self._hyper = [*start, *combine(through, 1.0, self._first[size:])]
        hyper = first
        if self.config.hypergradient != "first_order":
            hyper, guard = within_trust(self._of_theta([x / count for x in self._hyper]), first, self.config.trust)
            self._guards |= {guard} - {""}
            if self._solved:
                self._note("cosine of hypergradient and first order", cosine(hyper, first))
        facts = {name: sum(values) / len(values) for name, values in self._seen.items()}
        return Outcome(loss, first, hyper, facts, frozenset(self._guards), math.isfinite(norm(hyper)))

    def _inner(self) -> Tensor:
        """The fine-tune's loss on a batch of its data, the same at every call at one step."""
        seed = derive(self.seed, "hessian", len(self.run.clipped))
        return self.run.loss(torch.Generator().manual_seed(seed), self.config.hessian_batch)

    def _moreau(self, g: Vector, beside: Vector) -> Vector:
        """The envelope's hypergradient from the gradients of the trained parameters and of those beside."""
        config = self.config
        gamma, metric = matched(self.run) if isinstance(config.gamma, str) else (config.gamma, None)
        product = hessian_product(self._inner, self.run.parameters, config.hvp)
        solved = solve_moreau(g, product, gamma, metric=metric, solver=config.solver, iterations=config.iterations)
        self._guards |= {solved.guard} - {""}
        self._solved = self._solved or not solved.fell_back
        self._note("gamma", gamma)
        self._note("solver residual", solved.residual)
        self._note("Hessian-vector products", float(solved.products))
        if beside:
            along = solved.x if metric is None else [y / p for y, p in zip(solved.x, metric, strict=True)]
            along = [*along, *(torch.zeros_like(value) for value in beside)]
            mixed = hessian_product(self._inner, self._leaves, config.hvp)(along)
            beside = combine(beside, -gamma, mixed[len(g) :])
        return [*solved.x, *beside]

    def _of_theta(self, whole: Vector) -> Vector:
        """The part that belongs to theta, in its order."""
        found = {id(value): part for value, part in zip(self._leaves, whole, strict=True)}
        return [found[id(value)] for value in self.theta]

    def _note(self, name: str, value: float) -> None:
        self._seen.setdefault(name, []).append(value)
