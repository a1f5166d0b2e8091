"""A simulated fine-tune as a function of where it starts: recorded, differentiated exactly, or summarised.

With s_t the trained values x_t and the optimiser's state, and c the weights that stay, a fine-tune is the recursion
s_{t+1} = U(s_t, grad_x L_t(x_t; c)). Automatic differentiation through all of it keeps the graphs of all steps. The
reverse recursion keeps one: from the last step to the first, with l the gradient with respect to s_{t+1},

    (a, u) = gradient of l' U(s_t, g) with respect to s_t and g     (elementwise, apart from clipping)
    l_t    = a + H_xx u,      l_c += H_cx u                         (one Hessian-vector product of the step's own batch)

so an unrolled hypergradient costs a gradient and a product per step, and memory for s_t on the CPU. What Adam divides
by, sqrt(v) + epsilon, is differentiated too; where v = 0 (a weight without a gradient) sqrt has no grad, and none is
taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from safeguard.config import Optimizer, Training
from safeguard.errors import UsageFault
from safeguard.finetune.base import CLIP_EPSILON, MOMENTUM, Run
from safeguard.resilience.second_order.hvp import Backend, hessian_product
from safeguard.resilience.second_order.solvers import Vector, combine, gradients

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Adam's, as in torch."""
LEAST_ANSWER = 1e-4
"""Share of a change of the gradient that is said to reach Adam's step at least, so that P is finite."""
_ADAM = ("exp_avg", "exp_avg_sq")
_STATE: dict[Optimizer, tuple[str, ...]] = {"sgd": (), "momentum": ("momentum_buffer",), "adam": _ADAM, "adamw": _ADAM}
"""What each optimiser whose steps are known here keeps per parameter, by torch's names."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Whether fine-tunes by it can be differentiated.

    Raises:
        UsageFault: they cannot.
    """
    if optimizer not in _STATE:
        raise UsageFault(
            f"a fine-tune by {optimizer} cannot be differentiated",
            fix=f"take one of {', '.join(_STATE)}, or a first-order gradient",
        )


@dataclass(frozen=True)
class Iterate:
    """Where a step starts.

    Attributes:
        values: of the trained parameters, on the CPU.
        state: the optimiser's, one vector per name of :data:`_STATE`, on the CPU.
        random: state of the generator.
    """

    values: Vector
    state: list[Vector]
    random: Tensor


def update(
    training: Training, step: int, values: Vector, state: list[Vector], grads: Vector
) -> tuple[Vector, list[Vector]]:
    """One step of :meth:`safeguard.finetune.base.Run.step` as a differentiable function of all vectors.

    Args:
        step: steps done before.
        grads: gradient of the loss at ``values``, not yet clipped.

    Returns:
        New values and state.
    """
    rate = training.rate(step)
    squares = torch.stack([grad.pow(2).sum() for grad in grads]).sum()
    clip = (training.max_grad_norm / (_root(squares) + CLIP_EPSILON)).clamp(max=1.0)
    grads = [clip * grad for grad in grads]
    if training.optimizer == "sgd":
        return [x - rate * g for x, g in zip(values, grads, strict=True)], []
    if training.optimizer == "momentum":
        moving = [MOMENTUM * m + g for m, g in zip(state[0], grads, strict=True)]
        return [x - rate * m for x, m in zip(values, moving, strict=True)], [moving]
    first, second = BETAS
    means = [first * m + (1 - first) * g for m, g in zip(state[0], grads, strict=True)]
    squared = [second * v + (1 - second) * g.pow(2) for v, g in zip(state[1], grads, strict=True)]
    if training.optimizer == "adamw":
        values = [x * (1 - rate * training.weight_decay) for x in values]
    rate, correction = rate / (1 - first ** (step + 1)), (1 - second ** (step + 1)) ** 0.5
    moved = [x - rate * m / (_root(v) / correction + EPSILON) for x, m, v in zip(values, means, squared, strict=True)]
    return moved, [means, squared]


def _root(x: Tensor) -> Tensor:
    """sqrt whose grad at zero is zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


class Trajectory:
    """The iterates of a fine-tune under way.

    Args:
        run: the fine-tune; :meth:`record` is called before each of its steps.
    """

    def __init__(self, run: Run) -> None:
        check_optimizer(run.training.optimizer)
        self.run = run
        self.iterates: list[Iterate] = []

    def record(self) -> None:
        """Copy where the next step starts."""
        kept = self.run.optimizer.state

        def state(name: str) -> Vector:
            return [
                kept[x][name].detach().cpu().clone() if name in kept[x] else torch.zeros_like(x, device="cpu")
                for x in self.run.parameters
            ]

        self.iterates.append(
            Iterate(
                [x.detach().cpu().clone() for x in self.run.parameters],
                [state(name) for name in _STATE[self.run.training.optimizer]],
                self.run.generator.get_state(),
            )
        )

    def pull_back(
        self, grads: Mapping[int, Vector], beside: Sequence[torch.nn.Parameter], backend: Backend = "fused"
    ) -> tuple[Vector, Vector]:
        """Gradient of a sum of functions of the iterates, with respect to the start and to the weights that stay.

        Moves the trained parameters back along the iterates. All of them and ``beside`` must take gradients.

        Args:
            grads: steps done -> gradient of what is evaluated there, with respect to the trained parameters.
            beside: weights that the fine-tune uses but does not train.

        Returns:
            The gradients with respect to the first iterate, and to ``beside`` through the steps (what the functions
            themselves owe to ``beside`` is the caller's).
        """
        parameters, size = self.run.parameters, len(self.run.parameters)
        last = max(grads)
        pulled = [g.to(x.device) for g, x in zip(grads[last], parameters, strict=True)]
        still = [torch.zeros_like(value) for value in beside]
        memory = [[torch.zeros_like(x) for x in parameters] for _ in _STATE[self.run.training.optimizer]]
        for step in reversed(range(last)):
            self._move_to(step)
            pulled, *memory, through = self._through_update(step, [pulled, *memory])
            product = hessian_product(partial(self._loss, step), [*parameters, *beside], backend)
            along = product([*through, *(torch.zeros_like(x) for x in beside)])
            pulled = combine(pulled, 1.0, along[:size])
            still = combine(still, 1.0, along[size:])
            if step in grads:
                pulled = [a + g.to(a.device) for a, g in zip(pulled, grads[step], strict=True)]
        return pulled, still

    @torch.no_grad()
    def _move_to(self, step: int) -> None:
        """Give the trained parameters the values that a step started from."""
        for parameter, value in zip(self.run.parameters, self.iterates[step].values, strict=True):
            parameter.copy_(value)

    def _loss(self, step: int) -> Tensor:
        """The loss that a step descended, on its own batch, at the present values."""
        generator = torch.Generator()
        generator.set_state(self.iterates[step].random)
        return self.run.step_loss(generator)

    def _through_update(self, step: int, outer: Sequence[Vector]) -> list[Vector]:
        """l' U: ``outer`` (l: of values and state after a step) as gradients of values, state and gradient before it.

        The trained parameters have the values that the step started from (:meth:`_move_to`).
        """
        parameters = self.run.parameters
        inputs = [
            [x.detach().clone().requires_grad_(True) for x in parameters],
            *(
                [x.to(y.device).requires_grad_(True) for x, y in zip(v, parameters, strict=True)]
                for v in self.iterates[step].state
            ),
            [x.detach().requires_grad_(True) for x in gradients(self._loss(step), parameters)],
        ]
        values, state = update(self.run.training, step, inputs[0], inputs[1:-1], inputs[-1])
        found = torch.autograd.grad(
            [y for vector in (values, *state) for y in vector],
            [x for vector in inputs for x in vector],
            [y for vector in outer for y in vector],
            allow_unused=True,
            materialize_grads=True,
        )
        size = len(parameters)
        return [list(found[i : i + size]) for i in range(0, len(found), size)]


def matched(run: Run) -> tuple[float, Vector | None]:
    """The Moreau envelope that a fine-tune resembles: gamma, and the diagonal of P (None: the identity).

    T steps of descent with rate lr on a quadratic have d theta_T / d theta = (1 - lr H)^T, to first order in H that of
    the envelope with gamma = lr T; with momentum, clipping and a schedule, gamma is the sum over steps of the weight
    that a step's gradient has in the displacement. Adam moves by m / (sqrt(v) + epsilon), means of gradients and of
    their squares. A lasting change of the gradient by d changes m by d and v by 2 m d, hence that by
    d (1 - m^2 / v) / sqrt(v), so

        P = (sqrt(v) + epsilon) / (1 - m^2 / v)

    where gradients are noise P = sqrt(v), and where they agree nothing answers: Adam then moves by lr whatever they
    are, as it does in its first step. Matching lengths instead, |theta_T - theta| / |grad L_FT|, is right for plain
    descent on a constant grad only: noise of batches lengthens gradients more than displacements, and Adam's
    lengths say nothing about single weights.
    """
    training, steps = run.training, len(run.clipped)
    check_optimizer(training.optimizer)
    clipped = torch.stack(run.clipped).double().cpu()
    weights = [training.rate(step) / training.learning_rate for step in range(steps)]
    if training.optimizer == "momentum":
        for step in reversed(range(steps - 1)):
            weights[step] += MOMENTUM * weights[step + 1]
    gamma = training.learning_rate * float((torch.tensor(weights, dtype=torch.float64) * clipped).sum())
    if not training.optimizer.startswith("adam"):
        return gamma, None
    return gamma, [_stiffness(run.optimizer.state[x], steps) for x in run.parameters]


def _stiffness(kept: Mapping[str, Tensor], steps: int) -> Tensor:
    """P of one tensor after so many of Adam's steps; 1 for weights without gradients."""
    mean, square = (kept[name] / (1 - beta**steps) for name, beta in zip(_ADAM, BETAS, strict=True))
    known = square > 0
    square = torch.where(known, square, 1.0)
    answering = (1 - mean.pow(2) / square).clamp(min=LEAST_ANSWER)
    return torch.where(known, (square.sqrt() + EPSILON) / answering, 1.0)
