"""Moreau-envelope hypergradients against the quadratic check values, a direct solve, and divergence."""

from __future__ import annotations

import pytest
import torch

from safeguard.resilience.hypergradient import norm, solve_moreau

H = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.4]], dtype=torch.float64)
A = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
THETA = torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64)
M = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
C = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
EXPECTED = {
    0.5: (0.400877020, -2.088965526, -1.144591952),
    1.0: (0.498601116, -2.182532066, -0.666425422),
    2.0: (0.620212162, -2.179324904, -0.259456806),
}


def fine_tuned(theta: torch.Tensor, gamma: float) -> torch.Tensor:
    """argmin of 1/2 (x-a)'H(x-a) + |x-theta|^2 / (2 gamma)."""
    return torch.linalg.solve(H + torch.eye(3, dtype=torch.float64) / gamma, H @ A + theta / gamma)


def outer_gradient(gamma: float) -> list[torch.Tensor]:
    return [M @ (fine_tuned(THETA, gamma) - C)]


def product(v: list[torch.Tensor]) -> list[torch.Tensor]:
    return [H @ v[0]]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_conjugate_gradients_reach_the_check_value(gamma: float) -> None:
    solution = solve_moreau(outer_gradient(gamma), product, gamma, iterations=10, tolerance=1e-12)
    assert torch.allclose(solution.x[0], torch.tensor(EXPECTED[gamma], dtype=torch.float64), atol=1e-8)
    assert solution.guard == ""


def test_the_hypergradient_is_the_derivative_of_the_outer_loss() -> None:
    def outer(theta: torch.Tensor) -> torch.Tensor:
        x = fine_tuned(theta, 1.0) - C
        return 0.5 * x @ M @ x

    theta = THETA.clone().requires_grad_(True)
    (truth,) = torch.autograd.grad(outer(theta), theta)
    found = solve_moreau(outer_gradient(1.0), product, 1.0, iterations=10, tolerance=1e-12).x[0]
    assert torch.allclose(found, truth, atol=1e-9)


@pytest.mark.parametrize(
    ("terms", "distance"), [(2, 0.263717576), (3, 0.164868117), (5, 0.066612281), (10, 0.006938659)]
)
def test_the_papers_iteration_has_its_error_law(terms: int, distance: float) -> None:
    # x starts at g, which is the first of the K terms of the Neumann series.
    found = solve_moreau(outer_gradient(1.0), product, 1.0, solver="fixed_point", iterations=terms - 1, tolerance=0).x[
        0
    ]
    truth = torch.tensor(EXPECTED[1.0], dtype=torch.float64)
    assert abs((found - truth).norm().item() - distance) < 1e-7


def test_divergence_is_named_and_the_best_iterate_kept() -> None:
    steep = [torch.diag(torch.tensor([5.0, 0.1, 0.1], dtype=torch.float64)) @ v for v in outer_gradient(1.0)]
    assert norm(steep) > 0
    solution = solve_moreau(
        outer_gradient(1.0), lambda v: [20 * H @ v[0]], 1.0, solver="fixed_point", iterations=50, trust=1e9
    )
    assert solution.guard == "diverging"
    assert norm(solution.x) <= 20 * norm(outer_gradient(1.0))


def test_negative_curvature_ends_conjugate_gradients() -> None:
    solution = solve_moreau([torch.ones(3, dtype=torch.float64)], lambda v: [-3 * v[0]], 1.0, solver="cg")
    assert solution.guard == "negative curvature"
    assert torch.isfinite(solution.x[0]).all()


def test_trust_region_bounds_the_answer() -> None:
    g = [torch.ones(3, dtype=torch.float64)]
    solution = solve_moreau(g, lambda v: [-0.9 * v[0]], 1.0, iterations=50, tolerance=1e-9)
    assert solution.guard == "trust region"
    assert abs(norm(solution.x) - 3 * norm(g)) < 1e-9


def test_no_curvature_gives_the_first_order_hypergradient() -> None:
    g = outer_gradient(1.0)
    solution = solve_moreau(g, lambda v: [torch.zeros_like(v[0])], 1.0)
    assert torch.allclose(solution.x[0], g[0])
    assert solution.cosine == pytest.approx(1.0)
