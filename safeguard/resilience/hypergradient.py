"""Gradients through a simulated fine-tune.

A simulation takes theta to theta_FT by descending L_FT; an outer loss is evaluated at theta_FT with gradient g. Its
gradient with respect to theta is approximated by

* ``first_order``: g itself (theta_FT = theta + constant);
* ``moreau``: theta_FT as the minimiser of L_FT(x) + |x - theta|^2 / (2 gamma), whose implicit derivative gives
  x = (I + gamma H)^-1 g with H the Hessian of L_FT at theta_FT (ResAlign, arXiv 2507.16302, Eq. 5).

Solvers of (I + gamma H) x = g, with matrix-free products H v:

* ``fixed_point``: x <- g - gamma H x from x = g, the paper's Richardson iteration with relaxation gamma. It converges
  only while gamma |eigenvalues of H| < 1; growth is detected, the best iterate is returned and the guard is named.
  (Eq. 7 of the paper, x <- g / gamma - H x, is right for gamma = 1 only.)
* ``cg``: conjugate gradients, which need only I + gamma H > 0; a direction of negative curvature ends them at
  the present iterate (Steihaug).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Vector = list[Tensor]
Product = Callable[[Vector], Vector]


@dataclass(frozen=True)
class Solution:
    """Approximate x, and how good it is.

    Attributes:
        residual: |g - (I + gamma H) x| / |g| of the returned iterate.
        cosine: of x with g, the first-order hypergradient: 1 means that second order did not matter.
        guard: what was detected ("", "diverging", "negative curvature", "trust region").
        products: Hessian-vector products spent.
    """

    x: Vector
    residual: float
    cosine: float
    guard: str
    products: int


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product over all tensors, accumulated in float64."""
    return float(sum((p.double() * q.double()).sum() for p, q in zip(a, b, strict=True)))


def norm(a: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors."""
    return float(torch.stack(torch._foreach_norm(list(a))).double().norm()) if a else 0.0


def combine(a: Sequence[Tensor], scale: float, b: Sequence[Tensor]) -> Vector:
    """a + scale b."""
    return [p + scale * q for p, q in zip(a, b, strict=True)]


def gradients(loss: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = False) -> Vector:
    """The gradient of a loss, zero for parameters that it does not depend on."""
    return list(
        torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True)
    )


def _fixed_point(
    g: Vector, product: Product, gamma: float, iterations: int, tolerance: float
) -> tuple[Vector, float, str, int]:
    x, best, best_residual, previous = list(g), list(g), float("inf"), float("inf")
    size = norm(g)
    for spent in range(1, iterations + 1):
        following = combine(g, -gamma, product(x))
        residual = norm(combine(following, -1.0, x)) / size
        if residual < best_residual:
            best, best_residual = list(x), residual
        if residual > 2 * previous or residual != residual:
            return best, best_residual, "diverging", spent
        if residual < tolerance:
            return following, residual, "", spent
        x, previous = following, residual
    return x, best_residual, "", iterations


def _conjugate_gradients(
    g: Vector, product: Product, gamma: float, iterations: int, tolerance: float
) -> tuple[Vector, float, str, int]:
    size = norm(g)
    x = list(g)
    r = combine(g, -1.0, combine(x, gamma, product(x)))
    p, square, spent = list(r), dot(r, r), 1
    while spent < iterations and square**0.5 > tolerance * size:
        ap = combine(p, gamma, product(p))
        spent += 1
        curvature = dot(p, ap)
        if curvature <= 0:
            return x, square**0.5 / size, "negative curvature", spent
        step = square / curvature
        x, r = combine(x, step, p), combine(r, -step, ap)
        square, before = dot(r, r), square
        p = combine(r, square / before, p)
    return x, square**0.5 / size, "", spent


def solve_moreau(
    g: Vector,
    product: Product,
    gamma: float,
    *,
    solver: Literal["fixed_point", "cg"] = "cg",
    iterations: int = 5,
    tolerance: float = 1e-2,
    trust: float = 3.0,
) -> Solution:
    """Solve (I + gamma H) x = g.

    Args:
        g: gradient of the outer loss at theta_FT.
        product: v -> H v.
        iterations: most Hessian-vector products.
        trust: |x| is cut to this multiple of |g|.
    """
    size = norm(g)
    if size == 0:
        return Solution(list(g), 0.0, 1.0, "", 0)
    method = _fixed_point if solver == "fixed_point" else _conjugate_gradients
    x, residual, guard, spent = method(g, product, gamma, iterations, tolerance)
    length = norm(x)
    if length > trust * size:
        x, guard = [tensor * (trust * size / length) for tensor in x], guard or "trust region"
        length = trust * size
    return Solution(x, residual, dot(x, g) / (length * size), guard, spent)
