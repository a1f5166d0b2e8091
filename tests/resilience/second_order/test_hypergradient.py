"""A loss after a fine-tune, differentiated: weights that are trained, weights that are only used, and both."""

from __future__ import annotations

import torch
from torch import Tensor

from safeguard.config import Training
from safeguard.resilience.second_order.hypergradient import FineTuneGradient, FineTuneGradientConfig, Outcome
from tests.contexts import apart, seeded
from tests.resilience.second_order.test_trajectory import Scripted, network, outer

TRAINING = Training(steps=4, learning_rate=0.05, optimizer="momentum")
GAMMA = 0.1
"""At which the network's Hessian still leaves the system positive definite."""


def outcome(theta: list[int], evaluated: tuple[int, ...] = (4,), **settings: object) -> Outcome:
    """Fine-tune the first two matrices of three on one batch; theta is some of the three."""
    (first, second), still, loss = network()
    run = Scripted([first, second], lambda _: loss(first, second, still, seeded(9)), TRAINING)
    chosen = [[first, second, still][i] for i in theta]
    tuning = FineTuneGradient(FineTuneGradientConfig.model_validate(settings | {"trust": 1e9}), run, chosen, seed=0)
    for done in range(1, 5):
        tuning.step()
        if done in evaluated:
            with tuning.taking_gradients():
                tuning.evaluate(outer(first, second, still))
    return tuning.outcome()


def slow_envelope(gamma: float) -> list[Tensor]:
    """The same with whole matrices: implicit differentiation by direct solution."""
    (first, second), still, loss = network()
    run = Scripted([first, second], lambda _: loss(first, second, still, seeded(9)), TRAINING)
    for _ in range(4):
        run.step()
    shapes = [first.shape, second.shape, still.shape]
    point = torch.cat([x.detach().flatten() for x in (first, second, still)])

    def split(flat: Tensor) -> list[Tensor]:
        parts = flat.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    whole = torch.autograd.functional.hessian(lambda flat: loss(*split(flat), seeded(9)), point)
    g = torch.autograd.functional.jacobian(lambda flat: outer(*split(flat)), point)
    size = first.numel() + second.numel()
    y = torch.linalg.solve(torch.eye(size, dtype=point.dtype) + gamma * whole[:size, :size], g[:size])
    return split(torch.cat([y, g[size:] - gamma * whole[size:, :size] @ y]))


def test_the_envelope_equals_a_direct_solve_whatever_theta_is() -> None:
    truth = slow_envelope(GAMMA)
    for theta in ([0, 1], [0, 2], [2]):
        found = outcome(theta, hypergradient="moreau", gamma=GAMMA, iterations=60)
        expected = [truth[i] for i in theta]
        assert apart(found.hyper, expected) < 1e-2  # the solver's tolerance
        assert apart(found.first, expected) > 0.05
        assert not found.guards and found.facts["gamma"] == GAMMA


def test_unrolled_equals_a_difference_quotient() -> None:
    """Of the whole fine-tune, for a weight that is trained and one that is only used; at two points of the way."""
    found = outcome([0, 2], evaluated=(2, 4), hypergradient="unrolled")

    def value(shift: float, which: int) -> float:
        (first, second), still, loss = network()
        direction = torch.ones_like((first, still)[which])
        with torch.no_grad():
            (first, still)[which].add_(shift * direction)
        run = Scripted([first, second], lambda _: loss(first, second, still, seeded(9)), TRAINING)
        total = 0.0
        for done in range(1, 5):
            run.step()
            total += outer(first, second, still).item() / 2 if done in (2, 4) else 0.0
        return total

    for which in range(2):
        quotient = (value(1e-5, which) - value(-1e-5, which)) / 2e-5
        assert abs(found.hyper[which].sum().item() - quotient) < 1e-6 * abs(quotient)
        assert abs(found.first[which].sum().item() - quotient) > 1e-2 * abs(quotient)


def test_first_order_is_the_gradient_at_the_end() -> None:
    found = outcome([0, 2], hypergradient="first_order")
    assert found.hyper is found.first and found.facts == {}


def test_the_length_is_bounded_by_trust() -> None:
    """Ascent from a bowl's floor: each of two steps doubles theta, and so does the gradient on its way back."""
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    training = Training(steps=2, learning_rate=1.0, optimizer="sgd", max_grad_norm=1e9)
    run = Scripted([theta], lambda _: -0.5 * theta.pow(2).sum(), training)
    tuning = FineTuneGradient(FineTuneGradientConfig(hypergradient="unrolled", trust=3.0), run, [theta], seed=0)
    tuning.step()
    tuning.step()
    with tuning.taking_gradients():
        tuning.evaluate(theta.sum())
    found = tuning.outcome()
    assert found.guards == {"trust region"}
    assert torch.allclose(found.hyper[0], torch.tensor([3.0, 3.0])), "not 4"


def test_what_is_not_finite_is_known() -> None:
    (first, second), still, loss = network()
    run = Scripted([first, second], lambda _: loss(first, second, still, seeded(9)), TRAINING)
    tuning = FineTuneGradient(FineTuneGradientConfig(hypergradient="first_order"), run, [first], seed=0)
    tuning.step()
    with tuning.taking_gradients():
        tuning.evaluate(outer(first, second, still) / 0)
    assert not tuning.outcome().finite and outcome([0], hypergradient="first_order").finite


def test_the_spectrum_is_that_of_the_trained_parameters() -> None:
    (first, second), still, loss = network()
    run = Scripted([first, second], lambda _: loss(first, second, still, seeded(9)), TRAINING)
    tuning = FineTuneGradient(FineTuneGradientConfig(hypergradient="first_order"), run, [first], seed=0)
    tuning.step()
    tuning.spectrum()
    with tuning.taking_gradients():
        tuning.evaluate(outer(first, second, still))
    facts = tuning.outcome().facts
    shapes = [first.shape, second.shape]

    def flat_loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        return loss(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)), still, seeded(9))

    point = torch.cat([x.detach().flatten() for x in (first, second)])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat_loss, point))
    assert abs(facts["largest eigenvalue of the inner Hessian"] - values[-1]) < 1e-2 * values[-1]
    assert abs(facts["smallest eigenvalue of the inner Hessian"] - values[0]) < 5e-2 * values[-1]
