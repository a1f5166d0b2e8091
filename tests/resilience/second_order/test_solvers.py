"""Moreau-envelope hypergradients against the quadratic check values, a direct solve, and divergence."""

from __future__ import annotations

import pytest
import torch

from safeguard.resilience.second_order.solvers import cosine, extreme_eigenvalues, norm, solve_moreau, within_trust

H = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.4]], dtype=torch.float64)
A = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
THETA = torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64)
M = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
C = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
FINE_TUNED = {
    0.5: (0.292199722, -0.152496528, -0.423020689),
    1.0: (0.311395261, -0.335464460, -0.238247461),
    2.0: (0.368694362, -0.593471810, -0.010385757),
}
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


def agree(found: torch.Tensor, digits: tuple[float, ...]) -> bool:
    """To all nine digits given."""
    return torch.allclose(found, torch.tensor(digits, dtype=torch.float64), rtol=0, atol=1e-9)


def product(v: list[torch.Tensor]) -> list[torch.Tensor]:
    return [H @ v[0]]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_conjugate_gradients_reach_the_check_value(gamma: float) -> None:
    assert agree(fine_tuned(THETA, gamma), FINE_TUNED[gamma])
    solution = solve_moreau(outer_gradient(gamma), product, gamma, iterations=10, tolerance=1e-12)
    assert agree(solution.x[0], EXPECTED[gamma])
    assert solution.guard == ""


def test_the_hypergradient_is_the_derivative_of_the_outer_loss() -> None:
    def outer(theta: torch.Tensor) -> torch.Tensor:
        x = fine_tuned(theta, 1.0) - C
        return 0.5 * x @ M @ x

    theta = THETA.clone().requires_grad_(True)
    (truth,) = torch.autograd.grad(outer(theta), theta)
    found = solve_moreau(outer_gradient(1.0), product, 1.0, iterations=10, tolerance=1e-12).x[0]
    assert torch.allclose(found, truth, rtol=0, atol=1e-9)


TERMS = {
    1: (0.311395261, -2.670928921, -0.714742384),
    2: (0.689883415, -2.003403535, -0.695938323),
    3: (0.367134261, -2.277478375, -0.636707409),
    5: (0.444689959, -2.218939507, -0.652097781),
    10: (0.504186036, -2.178736091, -0.668020491),
    20: (0.498661676, -2.182490842, -0.666442877),
}


DISTANCES = {1: 0.525273308, 2: 0.263717576, 3: 0.164868117, 5: 0.066612281, 10: 0.006938659, 20: 7.53e-5}
"""From x*, to the digits given."""


def test_the_iteration_starts_at_the_outer_gradient() -> None:
    assert agree(outer_gradient(1.0)[0], TERMS[1])


@pytest.mark.parametrize("terms", [2, 3, 5, 10, 20])
def test_the_papers_iteration_has_its_check_values(terms: int) -> None:
    """x starts at g, which is the first of the K terms of the Neumann series, and errs by (-gamma H)^K x*."""
    solution = solve_moreau(
        outer_gradient(1.0), product, 1.0, solver="fixed_point", iterations=terms - 1, tolerance=0.0
    )
    assert agree(solution.x[0], TERMS[terms])
    truth = torch.tensor(EXPECTED[1.0], dtype=torch.float64)
    error = torch.linalg.matrix_power(-H, terms) @ truth
    assert torch.allclose(solution.x[0] - truth, -error, rtol=0, atol=2e-9)
    assert error.norm().item() == pytest.approx(DISTANCES[terms], abs=1e-9 if terms < 20 else 5e-8)
    assert solution.guard == "" and solution.products == terms - 1


def test_divergence_is_caught_and_named() -> None:
    """gamma = 2: gamma H has an eigenvalue of 1.272; conjugate gradients converge there (above)."""
    g = outer_gradient(2.0)
    solution = solve_moreau(g, product, 2.0, solver="fixed_point", iterations=50, tolerance=0.0)
    assert solution.guard == "diverging" and solution.products < 50
    assert norm(solution.x) < 3 * norm(g) and cosine(solution.x, g) > 0
    # the returned iterate has the smallest residual of all
    x, residuals = g[0], []
    for _ in range(20):
        residuals.append(float((g[0] - x - 2 * H @ x).norm() / g[0].norm()))
        x = g[0] - 2 * H @ x
    assert solution.residual == pytest.approx(min(residuals))
    assert residuals[-1] > 10 * min(residuals)


def test_a_first_step_that_diverges_leaves_first_order() -> None:
    g = outer_gradient(1.0)
    solution = solve_moreau(g, lambda v: [20 * H @ v[0]], 1.0, solver="fixed_point", iterations=50)
    assert solution.guard == "diverging" and solution.products == 1
    assert torch.equal(solution.x[0], g[0])


def test_negative_curvature_ends_conjugate_gradients() -> None:
    g = [torch.ones(3, dtype=torch.float64)]
    first = solve_moreau(g, lambda v: [-3 * v[0]], 1.0, solver="cg")
    assert first.guard == "negative curvature" and torch.equal(first.x[0], g[0])
    mixed = torch.tensor([2.0, 1.0, -1.5], dtype=torch.float64)
    later = solve_moreau(g, lambda v: [mixed * v[0]], 1.0, solver="cg", iterations=9)
    assert later.guard == "negative curvature" and later.products > 1
    assert cosine(later.x, g) > 0, "descent-aligned"


@pytest.mark.parametrize("solver", ["cg", "fixed_point"])
def test_a_product_that_is_not_finite_is_named(solver: str) -> None:
    g = outer_gradient(1.0)
    solution = solve_moreau(g, lambda v: [v[0] * torch.nan], 1.0, solver=solver)  # type: ignore[arg-type]
    assert solution.guard == "not finite" and torch.equal(solution.x[0], g[0])


def test_every_iterate_of_conjugate_gradients_is_descent_aligned() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    stiff = root @ root.T * 100
    g = [torch.randn(30, dtype=torch.float64, generator=generator)]
    for iterations in range(1, 12):
        solution = solve_moreau(g, lambda v: [stiff @ v[0]], 1.0, iterations=iterations, tolerance=0.0)
        assert solution.guard == "" and cosine(solution.x, g) > 0


def test_a_metric_gives_the_preconditioned_envelope() -> None:
    g, metric = outer_gradient(1.0), [torch.tensor([0.1, 2.0, 0.7], dtype=torch.float64)]
    truth = metric[0] * torch.linalg.solve(torch.diag(metric[0]) + 0.3 * H, g[0])
    found = solve_moreau(g, product, 0.3, metric=metric, iterations=10, tolerance=1e-12)
    assert torch.allclose(found.x[0], truth, atol=1e-9)


def test_the_hypergradient_is_linear_in_the_outer_gradient() -> None:
    g = outer_gradient(1.0)
    single, double = (
        solve_moreau([scale * g[0]], product, 1.0, iterations=10, tolerance=1e-12).x[0] for scale in (1, 2)
    )
    assert torch.allclose(double, 2 * single, atol=1e-9)


def test_trust_bounds_the_length() -> None:
    g = [torch.ones(3, dtype=torch.float64)]
    cut, guard = within_trust([5 * g[0]], g, 3.0)
    assert guard == "trust region" and torch.allclose(cut[0], 3 * g[0])
    assert within_trust(g, g, 1.0) == (g, "")


@pytest.mark.parametrize("solver", ["cg", "fixed_point"])
def test_no_curvature_gives_the_first_order_hypergradient(solver: str) -> None:
    g = outer_gradient(1.0)
    solution = solve_moreau(g, lambda v: [torch.zeros_like(v[0])], 1.0, solver=solver)  # type: ignore[arg-type]
    assert torch.allclose(solution.x[0], g[0]) and solution.products == 1


def test_lanczos_finds_the_ends_of_the_spectrum() -> None:
    """Those of the quadratic above, and a matrix larger than the number of products."""
    low, high = extreme_eigenvalues(product, [THETA], torch.Generator().manual_seed(0))
    assert (low, high) == pytest.approx((0.147108204, 0.636146877), abs=1e-8)
    values = torch.cat([torch.linspace(0, 1, 98, dtype=torch.float64), torch.tensor([-3.0, 9.0])])
    low, high = extreme_eigenvalues(lambda v: [values * v[0]], [values], torch.Generator().manual_seed(0))
    assert (low, high) == pytest.approx((-3.0, 9.0), abs=1e-3)
