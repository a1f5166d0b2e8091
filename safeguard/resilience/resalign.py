"""ResAlign (arXiv 2507.16302): erase at the present weights and after simulated downstream fine-tunes.

    min_theta  (1 - beta) L_harm(theta) + beta E_sim [ L_harm(theta_FT) ] + alpha R(theta)                     (Eq. 2)

L_harm is the base unlearner's loss (for a closed form, ``harmful_loss`` names one), R the distillation of related and
retained images against the base model, and theta_FT the result of a fine-tune drawn from a declared distribution
(data x method x learning rate x steps x optimiser; ``simulations`` of them per outer step). The gradient through
theta_FT is ``hypergradient`` (see :mod:`safeguard.resilience.hypergradient`).

Where this differs from the released code, on purpose: theta is a group of the denoiser's own weights (the code trains
rank-4 LoRA factors), gamma may be matched to the simulated trajectory instead of 1, losses are averaged over
simulations, simulations depend on (seed, step, index) alone, and a diverging solve is recorded and returns its best
iterate instead of silently becoming the direct gradient.

``points`` > 1 evaluates L_harm at equally spaced points of the simulated fine-tune instead of its end only, as tamper-
resistant training does (arXiv 2408.00761): a short way along is where a fine-tune first succeeds.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from safeguard.config import MethodConfig
from safeguard.model.diffusion import Weights
from safeguard.model.memory import within_memory
from safeguard.model.parameters import exposed
from safeguard.policy.schema import UnlearnerMethod
from safeguard.registry import unlearners
from safeguard.resilience.base import Facts
from safeguard.resilience.hypergradient import (
    Vector,
    combine,
    dot,
    gradients,
    hessian_product,
    norm,
    solve_moreau,
)
from safeguard.resilience.simulation import Simulation, Simulations, draw, run
from safeguard.seeds import derive
from safeguard.unlearn.base import Unlearner, Workbench
from safeguard.unlearn.common import distillation


class ResAlignConfig(MethodConfig):
    """Settings of ResAlign."""

    steps: PositiveInt = 160
    """Outer steps."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate of the outer loop."""
    parameters: str = "full"
    """Parameter group theta (``safeguard.model.parameters.GROUPS``)."""
    warm_start: bool = False
    """Run the unlearner alone first (always so for closed forms)."""
    harmful_loss: UnlearnerMethod | None = None
    """Gradient unlearner whose loss is L_harm; none: the base unlearner's own."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the loss after fine-tuning; the paper finds 0.3 to 0.9 good."""
    alpha: Annotated[float, Field(ge=0)] = 1.6
    """Weight of the retain distillation."""
    retain_batch: PositiveInt = 4
    """Images per outer step of the retain distillation."""
    simulations: PositiveInt = 3
    """Simulated fine-tunes per outer step (J)."""
    distribution: Simulations = Simulations()
    """What they are drawn from."""
    points: PositiveInt = 1
    """Where along each simulation L_harm is evaluated; 1: at its end, as in the paper."""
    hypergradient: Literal["first_order", "moreau"] = "moreau"
    """How the gradient passes through the simulation."""
    gamma: PositiveFloat | Literal["matched"] = "matched"
    """Moreau parameter; ``matched``: |theta_FT - theta| / |grad L_FT(theta_FT)|, which makes theta_FT stationary for
    the envelope in norm and equals learning rate x steps for plain descent on a constant slope. The paper uses 1."""
    solver: Literal["fixed_point", "cg"] = "cg"
    """Linear solver; ``fixed_point`` is the paper's."""
    iterations: PositiveInt = 5
    """Hessian-vector products per solve at most (K)."""
    hessian_batch: PositiveInt = 4
    """Images (each with its own timestep and noise) the Hessian is averaged over."""


class ResAlign:
    """The bilevel objective around a base unlearner."""

    Config: ClassVar = ResAlignConfig
    spreads: ClassVar = True

    def __init__(self, config: ResAlignConfig, bench: Workbench, unlearner: Unlearner) -> None:
        self.config = config
        self.bench = bench
        self.steps = config.steps
        self.learning_rate = config.learning_rate
        self.unlearner: Unlearner = unlearner
        named = config.harmful_loss or (UnlearnerMethod(name="ga") if unlearner.closed_form else None)
        if named is not None:
            registered = unlearners.get(named.name)
            self.unlearner = registered(registered.Config(**named.settings), bench)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameter group theta, with other parts that the unlearner changes."""
        return exposed(self.bench.model, self.config.parameters)

    def _generator(self, *purpose: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.bench.seed, "outer", *purpose))

    def accumulate(self, step: int) -> Facts:
        """Direct, retain and hyper-gradients of one outer step; simulations are shared out among the processes."""
        config, bench = self.config, self.bench
        values = list(self.parameters().values())
        total, direct, facts = [torch.zeros_like(value) for value in values], list[Tensor](), Facts()
        if bench.processes.main:
            total, direct, facts = within_memory(bench.model, partial(self._present, step, values))
        simulations = [
            draw(config.distribution, bench, derive(bench.seed, "simulation", step, index))
            for index in range(config.simulations)
        ]
        points: list[_Point] = []
        for index in bench.processes.share([simulation.training.steps for simulation in simulations]):
            points += within_memory(bench.model, partial(self._simulate, simulations[index], values, (step, index)))
        for parameter in values:
            parameter.requires_grad_(True)
        hyper = [torch.zeros_like(value) for value in values]
        for point in points:
            torch._foreach_add_(hyper, point.x)
        sums = torch.tensor([[1.0, p.loss, p.cosine, p.residual, bool(p.guard)] for p in points]).reshape(-1, 5).sum(0)
        *shares, sums = bench.processes.sum([*total, *hyper, sums], alike=values)
        total, hyper = shares[: len(values)], [share / sums[0] for share in shares[len(values) :]]
        for parameter, gradient in zip(values, combine(total, config.beta, hyper), strict=True):
            parameter.grad = gradient
        return facts | self._summary(sums.tolist(), hyper, direct) if bench.processes.main else {}

    def _present(self, step: int, values: list[torch.nn.Parameter]) -> tuple[Vector, Vector, Facts]:
        """The gradient at the present weights: all of it, and that of L_harm."""
        config, bench = self.config, self.bench
        loss = self.unlearner.loss(self._generator(step, "direct"))
        direct = gradients(loss, values)
        total = [(1 - config.beta) * gradient for gradient in direct]
        facts: Facts = {"erasure loss": loss.item(), "direct gradient norm": norm(direct)}
        data = bench.preserved
        if data is not None and config.alpha:
            retain = distillation(bench, data, config.retain_batch, self._generator(step, "retain"))
            total = combine(total, config.alpha, gradients(retain, values))
            facts["preservation loss"] = retain.item()
        return total, direct, facts

    def _simulate(
        self, simulation: Simulation, values: list[torch.nn.Parameter], label: tuple[int, int]
    ) -> list[_Point]:
        """Run one simulation and differentiate L_harm at its evaluation points; weights and model come back."""
        steps = simulation.training.steps
        count = min(self.config.points, steps)
        marks = {round(steps * (k + 1) / count) for k in range(count)}
        before = [value.detach().clone() for value in values]
        points: list[_Point] = []

        def after_step(step: int) -> None:
            if step in marks:
                trained = [value.requires_grad for value in values]
                for value in values:
                    value.requires_grad_(True)
                points.append(self._differentiate(simulation, values, before, (*label, step)))
                for value, flag in zip(values, trained, strict=True):
                    value.requires_grad_(flag)

        with Weights(self.bench.model.named_parameters()):
            try:
                run(simulation, self.bench, after_step)
            finally:
                simulation.tuner.detach(self.bench.model)
        return points

    def _differentiate(
        self, simulation: Simulation, values: list[torch.nn.Parameter], before: Vector, label: tuple[int, ...]
    ) -> _Point:
        loss = self.unlearner.loss(self._generator(*label, "harm"))
        g = gradients(loss, values)
        moved = norm([value.detach() - old for value, old in zip(values, before, strict=True)])
        if self.config.hypergradient == "first_order" or not moved:
            # An adapter leaves theta itself in place: theta_FT = theta + adapter, whose derivative is first order.
            return _Point(loss.item(), g, 1.0, 0.0, "")
        with _twice_differentiable():
            generator = self._generator(*label, "hessian")
            batch = simulation.data.batch(self.config.hessian_batch, generator)
            conditioning = self.bench.model.encode_prompts(batch.captions)
            inner = self.bench.model.denoising_loss(batch.latents, conditioning, generator)
            product = hessian_product(inner, values)
            gamma = self.config.gamma
            if gamma == "matched":
                gamma = moved / norm(gradients(inner, values, retain_graph=True))
            solved = solve_moreau(
                g, product, float(gamma), solver=self.config.solver, iterations=self.config.iterations
            )
        return _Point(loss.item(), [x.detach() for x in solved.x], solved.cosine, solved.residual, solved.guard)

    def _summary(self, sums: list[float], hyper: Vector, direct: Vector) -> Facts:
        """Means over all points; ``sums`` counts them and adds up losses, cosines, residuals and guards."""
        count, loss, cosine, residual, guards = sums
        size, other = norm(hyper), norm(direct)
        facts = {
            "erasure loss after fine-tuning": loss / count,
            "hypergradient norm": size,
            "cosine of hypergradient and direct gradient": dot(hyper, direct) / (size * other) if size * other else 0.0,
        }
        if self.config.hypergradient == "first_order":
            return facts
        return facts | {
            "cosine of hypergradient and first order": cosine / count,
            "solver residual": residual / count,
            "guards fired": guards,
        }


class _Point:
    """L_harm and its hypergradient at one point of a simulation."""

    def __init__(self, loss: float, x: Vector, cosine: float, residual: float, guard: str) -> None:
        self.loss, self.x, self.cosine, self.residual, self.guard = loss, x, cosine, residual, guard


def _twice_differentiable() -> AbstractContextManager[Any]:
    """Attention by explicit softmax: the fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)
