"""The reverse recursion against automatic differentiation through the loop, and the envelope matched to it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from safeguard.config import Training
from safeguard.diffusion.execution import Execution
from safeguard.finetune.base import FineTuner, Run
from safeguard.resilience.second_order.solvers import Vector, cosine, solve_moreau
from safeguard.resilience.second_order.trajectory import Trajectory, matched, update
from tests.contexts import apart, seeded
from tests.resilience.second_order.test_solvers import THETA, A, C, H, M

OPTIMIZERS = ["sgd", "momentum", "adam", "adamw"]


class Scripted(Run):
    """A fine-tune of given parameters on a given loss (of a generator), as :class:`Run` runs it."""

    def __init__(self, parameters: list[Any], loss: Callable[[torch.Generator], Tensor], training: Training) -> None:
        class Nothing(FineTuner):
            def attach(self, model: Any, seed: int) -> list[Any]:
                return parameters

        self._scripted = loss
        model = SimpleNamespace(execution=Execution(torch.nn.Identity()))
        super().__init__(model, None, Nothing(None), training, seed=5)  # type: ignore[arg-type]

    def loss(self, generator: torch.Generator, batch_size: int | None = None) -> Tensor:
        return self._scripted(generator)


def network() -> tuple[list[torch.nn.Parameter], torch.nn.Parameter, Callable[..., Tensor]]:
    """Two trained matrices around a third that stays; noisy batches; the last row of the first gets no gradient."""
    generator = seeded(0)

    def leaf(*shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator))

    first, second, still = leaf(4, 3), leaf(5, 2), leaf(3, 5)

    def loss(first: Tensor, second: Tensor, still: Tensor, generator: torch.Generator) -> Tensor:
        x = torch.randn(6, 3, dtype=torch.float64, generator=generator)
        y = torch.randn(6, 2, dtype=torch.float64, generator=generator)
        return ((x @ first[:3] @ still).tanh() @ second - y).pow(2).mean()

    return [first, second], still, loss


def outer(first: Tensor, second: Tensor, still: Tensor) -> Tensor:
    return (first[:3] @ still @ second).pow(2).sum() + first.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_grad_norm": 1e9},
        {"max_grad_norm": 0.5},
        {"max_grad_norm": 0.5, "schedule": "cosine", "warm_up": 2, "accumulation": 3},
    ],
    ids=["free", "clipped", "scheduled"],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_reverse_recursion_is_autograd_through_the_loop(optimizer: str, settings: dict[str, Any]) -> None:
    """With a function of the fourth iterate and one of the sixth, and a weight that is used and not trained."""
    (first, second), still, loss = network()
    training = Training(steps=6, learning_rate=0.05, optimizer=optimizer, weight_decay=0.1, **settings)
    start = [x.detach().clone().requires_grad_(True) for x in (first, second, still)]
    values, state, generator = start[:2], [[torch.zeros_like(x) for x in start[:2]]] * 2, seeded(5)
    total: Tensor = torch.zeros(())
    for step in range(6):
        batches = [loss(*values, start[2], generator) for _ in range(training.accumulation)]
        grads = torch.autograd.grad(sum(batches) / len(batches), values, create_graph=True)
        values, state = update(training, step, list(values), state, list(grads))
        if step in (3, 5):
            total = total + outer(*values, start[2])
    truth = list(torch.autograd.grad(total, start))

    run = Scripted([first, second], lambda g: loss(first, second, still, g), training)
    trajectory, slopes_at, beside = Trajectory(run), {}, torch.zeros_like(still)
    for done in range(1, 7):
        trajectory.record()
        run.step()
        if done in (4, 6):
            found = torch.autograd.grad(outer(first, second, still), [first, second, still])
            slopes_at[done], beside = list(found[:2]), beside + found[2]
    assert apart([first.detach(), second.detach()], [x.detach() for x in values]) < 1e-12, (
        "update is what the optimiser does"
    )
    pulled, through = trajectory.pull_back(slopes_at, [still])
    assert apart([*pulled, beside + through[0]], truth) < 1e-10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_is_the_optimisers(optimizer: str) -> None:
    (first, second), still, loss = network()
    training = Training(learning_rate=0.05, optimizer=optimizer, max_grad_norm=1.0)
    run = Scripted([first, second], lambda g: loss(first, second, still, g), training)
    values, state, generator = [first.detach().clone(), second.detach().clone()], [], seeded(5)
    state = [[torch.zeros_like(x) for x in values] for _ in range(2)]
    for step in range(4):
        leaves = [x.detach().requires_grad_(True) for x in values]
        grads = torch.autograd.grad(loss(*leaves, still, generator), leaves)
        values, state = update(training, step, values, state, list(grads))
        run.step()
        assert apart(list(values), [first.detach(), second.detach()]) < 1e-12


def quadratic(steps: int, **settings: Any) -> tuple[Run, Trajectory, torch.nn.Parameter]:
    """The quadratic of the check values, fine-tuned."""
    theta = torch.nn.Parameter(THETA.clone())
    training = Training(steps=steps, max_grad_norm=1e9, **settings)
    run = Scripted([theta], lambda _: 0.5 * (theta - A) @ H @ (theta - A), training)
    trajectory = Trajectory(run)
    for _ in range(steps):
        trajectory.record()
        run.step()
    return run, trajectory, theta


def test_unrolled_descent_has_its_check_values() -> None:
    """Five steps of 0.1; the envelope of gamma 1 is far off, the matched one near."""
    run, trajectory, theta = quadratic(5, learning_rate=0.1, optimizer="sgd")
    end = torch.tensor([0.279429769, -0.179806552, -0.387125123], dtype=torch.float64)
    assert torch.allclose(theta.detach(), end, rtol=0, atol=1e-9)
    g: Vector = [M @ (theta.detach() - C)]
    assert torch.allclose(
        g[0], torch.tensor([0.279429769, -2.359613103, -1.161375369], dtype=torch.float64), rtol=0, atol=1e-9
    )

    def moreau(gamma: float) -> Vector:
        return solve_moreau(g, lambda v: [H @ v[0]], gamma, iterations=10, tolerance=1e-12).x

    gamma, metric = matched(run)
    assert gamma == pytest.approx(0.5) and metric is None
    published = torch.tensor([0.447418976, -1.958493478, -0.969446226], dtype=torch.float64)
    assert torch.allclose(moreau(1.0)[0], published, rtol=0, atol=1e-9)
    (pulled,), _ = trajectory.pull_back({5: g}, [])
    truth = torch.tensor([0.419926204, -2.111029634, -1.050912297], dtype=torch.float64)
    assert torch.allclose(pulled, truth, rtol=0, atol=1e-9)
    assert apart(moreau(gamma), [truth]) < 0.25 * min(apart(moreau(1.0), [truth]), apart(g, [truth]))
    assert all(cosine(x, g) > 0 for x in (moreau(1.0), moreau(gamma), [truth])), "descent-aligned"


def test_matched_momentum_counts_what_momentum_repeats() -> None:
    """Two steps of a constant grad s move by 1 s, then by 1.9 s."""
    gamma, _ = matched(quadratic(2, learning_rate=0.1, optimizer="momentum")[0])
    assert gamma == pytest.approx(0.1 * 2.9)


def test_matched_schedules_count_the_rate_of_every_step() -> None:
    """Rates of 0.05, 0.1 and half of that: a grad that lasts moves by their sum, with momentum by more."""
    settings = {"learning_rate": 0.1, "schedule": "linear", "warm_up": 1}
    gamma, _ = matched(quadratic(3, optimizer="sgd", **settings)[0])
    assert gamma == pytest.approx(0.05 + 0.1 + 0.05)
    gamma, _ = matched(quadratic(3, optimizer="momentum", **settings)[0])
    assert gamma == pytest.approx(0.05 + 0.1 * 1.9 + 0.05 * 2.71)


def test_matched_clipping_shortens() -> None:
    theta = torch.nn.Parameter(THETA.clone())
    run = Scripted([theta], lambda _: (10 * theta).sum(), Training(steps=2, learning_rate=0.1, optimizer="sgd"))
    for _ in range(2):
        run.step()
    assert matched(run)[0] == pytest.approx(0.2 / (10 * 3**0.5), rel=1e-5)


@pytest.mark.parametrize(("steps", "noise", "nearer"), [(400, 1.0, 0.5), (40, 1.0, 0.5), (6, 0.0, 0.8)])
def test_matched_adam_is_near_its_unrolled_hypergradient(steps: int, noise: float, nearer: float) -> None:
    """Where gradients are noise Adam answers to curvature, and hardly where they agree; one step not at all."""
    theta = torch.nn.Parameter(THETA.clone())
    scale = noise * torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)

    def loss(generator: torch.Generator) -> Tensor:
        disturbance = scale * torch.randn(3, dtype=torch.float64, generator=generator)
        return 0.5 * (theta - A) @ H @ (theta - A) + disturbance @ theta

    training = Training(steps=steps, learning_rate=0.4 / steps, optimizer="adam", max_grad_norm=1e9)
    run = Scripted([theta], loss, training)
    trajectory = Trajectory(run)
    for _ in range(steps):
        trajectory.record()
        run.step()
    g: Vector = [M @ (theta.detach() - C)]
    gamma, metric = matched(run)
    envelope = solve_moreau(g, lambda v: [H @ v[0]], gamma, metric=metric, iterations=10, tolerance=1e-12).x
    truth, _ = trajectory.pull_back({steps: g}, [])
    assert apart(envelope, truth) < nearer * apart(g, truth)


def test_a_weight_without_a_gradient_keeps_adam_differentiable() -> None:
    theta = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    run = Scripted([theta], lambda _: theta[0] ** 2, Training(steps=2, learning_rate=0.1, optimizer="adam"))
    trajectory = Trajectory(run)
    for _ in range(2):
        trajectory.record()
        run.step()
    (pulled,), _ = trajectory.pull_back({2: [torch.ones(2, dtype=torch.float64)]}, [])
    assert torch.isfinite(pulled).all() and pulled[1] == 1.0


def test_iterates_lie_on_the_cpu_and_are_copies() -> None:
    _, trajectory, theta = quadratic(3, learning_rate=0.1, optimizer="adam")
    kept = [iterate.values[0] for iterate in trajectory.iterates]
    assert torch.equal(kept[0], THETA) and not torch.equal(kept[1], kept[2])
    assert all(value.device.type == "cpu" and value.data_ptr() != theta.data_ptr() for value in kept)
