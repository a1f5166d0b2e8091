"""ResAlign (arXiv 2507.16302): erase at the present weights and after simulated downstream fine-tunes.

    min_theta  (1 - beta) L_harm(theta) + beta E_sim [ L_harm(theta_FT) ] + alpha R(theta)                     (Eq. 2)

L_harm is gradient ascent on images of the concepts in the paper, and what ``harmful_loss`` names here
(:mod:`safeguard.resilience.harmful_loss`), R the distillation of related and retained images against the base model,
and theta_FT the result of a fine-tune drawn from a declared distribution (data x method x loss x learning rate x steps
x optimiser; ``simulations`` of them per outer step). The gradient through theta_FT is ``hypergradient``
(:mod:`safeguard.resilience.second_order.solvers`).

theta is a group of weights, or low-rank updates of one (:mod:`safeguard.resilience.low_rank`); the gradient passes
through fine-tunes of any method (:mod:`safeguard.resilience.second_order.hypergradient`).

With ``evaluations`` > 1, L_harm counts at equally spaced steps of the simulated fine-tune instead of at its end only,
as in tamper-resistant training (arXiv 2408.00761): a short way along is where a fine-tune first succeeds.

The defaults are the setting that held against most and kept most on the reference model
(``docs/results/resilience.md``, under ``schedule: cosine``), with learning rates for models of Stable Diffusion's
size. ``preset: published`` has the released code's numbers, without its defects: simulations depend on (seed, step,
index) alone and start from theta (there, one begins where another ended, data sets with one name collide, Adam
corrects its bias twice and never forgets); full fine-tunes train the merged weights (there, their result is factored
anew, in other coordinates than theta); losses are averages; a solve that diverges is named and returns its best
iterate (there, it is repeated with less relaxation, and in the end silently the direct gradient). Ascent stays
bounded, A and B start so that nothing changes, and the optimiser is Adam without weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from safeguard.diffusion.model import Weights
from safeguard.diffusion.parameters import exposed
from safeguard.errors import UsageFault
from safeguard.policy.schema import UnlearnerMethod
from safeguard.policy.study import merged
from safeguard.registry import finetuners
from safeguard.resilience.base import Facts, Objective
from safeguard.resilience.harmful_loss import HarmfulLoss, harmful
from safeguard.resilience.low_rank import LowRank, matrices
from safeguard.resilience.second_order.hvp import Backend
from safeguard.resilience.second_order.hypergradient import FineTuneGradient, FineTuneGradientConfig, Outcome
from safeguard.resilience.second_order.solvers import GUARDS, Vector, combine, cosine, gradients, norm
from safeguard.resilience.second_order.trajectory import check_optimizer
from safeguard.resilience.simulation import SimulatedTraining, Simulation, Simulations, Simulator, checkpoints
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import distillation

PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "warm_start": False,
        "evaluations": 1,
        "parameters": "attention",
        "lora_rank": 4,
        "steps": 160,
        "learning_rate": 2e-4,
        "harmful_loss": {"name": "ga", "batch_size": 1},
        "beta": 0.8,
        "alpha": 1.6,
        "alpha_final": 2.0,
        "retain_batch": 4,
        "simulations": 3,
        "distribution": {
            "data": [
                {"shares": {"concept": 1.0}, "weight": 0.5},
                {"shares": {"related": 1.0}, "weight": 0.25},
                {"shares": {"retain": 1.0}, "weight": 0.25},
            ],
            "methods": [{"name": "lora", "rank": 4}, {"name": "full"}],
            "learning_rates": [1e-4, 1e-5, 1e-6],
            "steps": [5, 10, 20, 30],
            "optimizers": ["sgd", "adam"],
            "losses": ["plain", "prior-preserving"],
            "training": {"batch_size": 1, "max_grad_norm": 1e9},
        },
        "hypergradient": "moreau",
        "gamma": 1.0,
        "solver": "fixed_point",
        "iterations": 4,
        "hessian_batch": 1,
    }
}
"""Settings that a preset stands for; what is given besides, also within ``distribution``, goes before them."""


GRADIENT_ASCENT = UnlearnerMethod(name="ga", batch_size=8, bound=0.6)
HARMFUL_LOSS = [
    GRADIENT_ASCENT,
    UnlearnerMethod(name="ga", captions="any", batch_size=8, bound=0.6),
    UnlearnerMethod(name="esd", variant="f", eta=3.0, batch_size=8, trajectory_steps=20),
]
"""By default: the concept's images, those just taught under other prompts, and what its prompts are drawn as."""


class ResAlignConfig(FineTuneGradientConfig):
    """Settings of ResAlign."""

    preset: Literal["published"] | None = None
    """Defaults of every other setting: ours, or the released code's."""
    steps: PositiveInt = 60
    """Outer steps."""
    learning_rate: PositiveFloat = 2e-5
    """Adam's learning rate of the outer loop."""
    parameters: str = "full"
    """Parameter group theta (``safeguard.diffusion.parameters.GROUPS``)."""
    lora_rank: PositiveInt | None = None
    """Train low-rank updates, of this rank, of the matrices of the group; none: the weights themselves."""
    warm_start: bool = True
    """Run the unlearner alone first (always so for closed forms)."""
    harmful_loss: HarmfulLoss | None = HARMFUL_LOSS
    """L_harm: ``ga`` as in the paper, or ``esd``, ``ca``, …, or several, added; none: the base unlearner's own, or
    gradient ascent if that is a closed form."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the loss after fine-tuning; the paper finds 0.3 to 0.9 good."""
    beta_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Constant as in the paper, or rising to ``beta``, in a line or along half a cosine."""
    beta_warm_in: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps over which it rises."""
    alpha: Annotated[float, Field(ge=0)] = 2.0
    """Weight of the retain distillation."""
    alpha_final: Annotated[float, Field(ge=0)] | None = None
    """Its value at the end: a sigmoid over the second half of the run leads there; none: ``alpha`` throughout."""
    retain_batch: PositiveInt = 24
    """Images per outer step of the retain distillation."""
    simulations: PositiveInt = 1
    """Simulated fine-tunes per outer step (J; the paper's is 3)."""
    distribution: Simulations = Simulations(prompts=[None, 1])
    """What they are drawn from."""
    evaluations: PositiveInt = 4
    """At how many places along each simulation L_harm is evaluated; 1: at its end, as in the paper."""
    spectrum_every: Annotated[int, Field(ge=0)] = 0
    """Every so many steps the extreme eigenvalues of the first simulation's Hessian are estimated, by twelve products;
    0: never."""

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, Mapping) else None
        if not isinstance(name, str) or name not in PRESETS:
            return given
        preset = PRESETS[name]
        filled = {**preset, **given}
        if isinstance(own := filled["distribution"], Mapping):
            filled["distribution"] = merged(preset["distribution"], dict(own))
        return filled

    @classmethod
    def tiny(cls) -> Self:
        """Four outer steps, each with a simulated fine-tune of two, through a Moreau envelope."""
        return cls(
            steps=4,
            learning_rate=1e-3,
            harmful_loss=UnlearnerMethod(name="ga", batch_size=2),
            retain_batch=2,
            evaluations=2,
            hypergradient="moreau",
            iterations=2,
            hessian_batch=1,
            distribution=Simulations(training=SimulatedTraining(steps=2, learning_rate=1e-4, batch_size=2)),
        )


class ResAlign(Objective):
    """The bilevel objective around a base unlearner."""

    Config: ClassVar = ResAlignConfig
    distributed: ClassVar = True
    first_order: ClassVar = "hypergradient: first_order"

    def __init__(self, config: ResAlignConfig, context: HardeningContext, unlearner: Unlearner) -> None:
        self.config = config
        self.context = context
        self.steps = config.steps
        self.learning_rate = config.learning_rate
        self.unlearner: Unlearner = unlearner
        named = config.harmful_loss or (GRADIENT_ASCENT if unlearner.closed_form else None)
        if named is not None:
            self.unlearner = harmful(named, context)
        self._simulator = Simulator(config.distribution, context)
        if config.hypergradient != "first_order":
            for optimizer in config.distribution.optimizers or [config.distribution.training.optimizer]:
                check_optimizer(optimizer)
        if self.products() is not None:
            for method in config.distribution.methods:
                if not finetuners.make(method).twice_differentiable:
                    raise UsageFault(
                        f"a fine-tune by {method.name} has no second derivatives",
                        fix="hypergradient: first_order, without a spectrum, or other methods in the distribution",
                    )

    def products(self) -> Backend | None:
        """Those of the hypergradient, and of the spectrum."""
        config = self.config
        return config.hvp if config.hypergradient != "first_order" or config.spectrum_every else None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameter group theta, with other parts that the unlearner changes."""
        group = exposed(self.context.model, self.config.parameters)
        return group if self.config.lora_rank is None else matrices(group)

    @cached_property
    def _low_rank(self) -> LowRank | None:
        rank = self.config.lora_rank
        return None if rank is None else LowRank(self.parameters(), rank, derive(self.context.seed, "factors"))

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The group, or what its low-rank updates are made of."""
        return self.parameters() if self._low_rank is None else self._low_rank.parameters

    def materialize(self) -> None:
        """Write the low-rank updates into the weights."""
        if self._low_rank is not None:
            self._low_rank.write()

    def _generator(self, *purpose: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.context.seed, "outer", *purpose))

    def beta(self, step: int) -> float:
        """Share of the loss after fine-tuning in an outer step."""
        done = min(1.0, (step + 1) / (self.config.beta_warm_in * self.steps))
        rise = {"constant": 1.0, "linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done))}
        return self.config.beta * rise[self.config.beta_schedule]

    def alpha(self, step: int) -> float:
        """Weight of the retain distillation in an outer step."""
        config = self.config
        second = 2 * step / self.steps - 1
        if config.alpha_final is None or second < 0:
            return config.alpha
        return config.alpha + (config.alpha_final - config.alpha) / (1 + math.exp(-10 * (second - 0.5)))

    def compute_gradients(self, step: int) -> Facts:
        """Direct, retain and hyper-gradients of one outer step; simulations are shared out among the processes."""
        config, context, processes = self.config, self.context, self.context.processes
        values = list(self.parameters().values())
        _take_gradients(values)
        total, direct, facts = [torch.zeros_like(value) for value in values], list[Tensor](), Facts()
        if processes.main:
            total, direct, facts = context.model.execution.within_memory(partial(self._present, step, values))
        simulations = [
            self._simulator.draw(derive(context.seed, "simulation", step, index)) for index in range(config.simulations)
        ]
        start = Weights(context.model.named_parameters())

        def simulated(index: int) -> Outcome:
            with start:
                return self._simulate(simulations[index], values, step, index)

        rows: list[tuple[int, Outcome]] = []
        hyper = [torch.zeros_like(value) for value in values]
        for index in processes.share([simulation.training.steps for simulation in simulations]):
            found = context.model.execution.within_memory(partial(simulated, index))
            if found.finite:
                hyper = combine(hyper, 1.0, found.hyper)
            rows.append((index, replace(found, first=[], hyper=[])))
        _take_gradients(values)
        # Direct and retain gradients are the main process's alone: the sum makes them the same everywhere.
        shares = processes.all_reduce([*total, *hyper], alike=values)
        told = sorted((row for rows in processes.gather(rows) for row in rows), key=lambda row: row[0])
        outcomes = [outcome for _, outcome in told]
        count = max(1, sum(outcome.finite for outcome in outcomes))
        total, hyper = shares[: len(values)], [share / count for share in shares[len(values) :]]
        grads = combine(total, self.beta(step), hyper)
        grads = grads if self._low_rank is None else self._low_rank.pull_back(grads)
        for parameter, gradient in zip(self.trained().values(), grads, strict=True):
            parameter.grad = gradient
        return facts | self._summary(outcomes, hyper, direct) if processes.main else {}

    def _present(self, step: int, values: list[torch.nn.Parameter]) -> tuple[Vector, Vector, Facts]:
        """The weighted gradient of what is asked of the present weights, that of L_harm alone, and their losses."""
        context, alpha = self.context, self.alpha(step)
        loss = self.unlearner.loss(self._generator(step, "direct"))
        direct = gradients(loss, values)
        total = [(1 - self.beta(step)) * gradient for gradient in direct]
        facts: Facts = {"erasure loss": loss.item(), "direct gradient norm": norm(direct)}
        if alpha and context.preserved is not None:
            retain = distillation(context, context.preserved, self.config.retain_batch, self._generator(step, "retain"))
            total = combine(total, alpha, gradients(retain, values))
            facts["preservation loss"] = retain.item()
        return total, direct, facts

    def _simulate(self, simulation: Simulation, theta: list[torch.nn.Parameter], step: int, index: int) -> Outcome:
        """Run one simulation in place and differentiate L_harm through it; weights are left anywhere."""
        config, context = self.config, self.context
        steps = simulation.training.steps
        evaluated = checkpoints(steps, config.evaluations)
        tuning = FineTuneGradient(config, simulation.start(context), theta, simulation.seed)
        try:
            for done in range(1, steps + 1):
                tuning.step()
                if done in evaluated:
                    with context.after(simulation.data), tuning.taking_gradients():
                        tuning.evaluate(self.unlearner.loss(self._generator(step, index, done, "harm")))
            if index == 0 and config.spectrum_every and step % config.spectrum_every == 0:
                tuning.spectrum()
            return tuning.outcome()
        finally:
            simulation.tuner.detach(context.model)

    def _summary(self, outcomes: list[Outcome], hyper: Vector, direct: Vector) -> Facts:
        """What all simulations say."""
        finite = [outcome for outcome in outcomes if outcome.finite]
        facts: Facts = {
            "hypergradient norm": norm(hyper),
            "cosine of hypergradient and direct gradient": cosine(hyper, direct),
            "simulations skipped": 1 - len(finite) / len(outcomes),
        }
        rows = [{"erasure loss after fine-tuning": outcome.loss} | outcome.facts for outcome in finite]
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            facts[name] = sum(values) / len(values)
        if self.config.hypergradient != "first_order":
            facts |= {f"guard: {name}": float(sum(name in o.guards for o in outcomes)) for name in GUARDS}
        return facts


def _take_gradients(values: list[torch.nn.Parameter]) -> None:
    for value in values:
        value.requires_grad_(True)
