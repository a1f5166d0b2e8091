"""Gradients through a simulated fine-tune.

A simulation takes theta to theta_FT by descending L_FT; an outer loss is evaluated at theta_FT with gradient g. Its
gradient with respect to theta is

* ``first_order``: g itself, as if theta_FT were theta + constant;
* ``moreau``: that of theta_FT = argmin L_FT(x) + (x - theta)' P (x - theta) / (2 gamma), which the implicit function
  theorem gives as x = P (P + gamma H)^-1 g, H the Hessian of L_FT at theta_FT (ResAlign, arXiv 2507.16302, Eq. 5, where
  P = I);
* ``unrolled``: the exact one, through every step (:mod:`safeguard.resilience.second_order.trajectory`).

Solvers of A y = b with A = I + gamma P^-1/2 H P^-1/2, b = P^-1/2 g, x = P^1/2 y, and matrix-free products H v:

* ``fixed_point``: y <- b - gamma H y from y = b, the paper's Richardson iteration with relaxation gamma. Its residuals
  are (-gamma H)^k r, whose lengths are log-convex: once they grow they grow for ever, so the first growth ends it with
  the iterate before. (Eq. 7 of the paper, x <- g / gamma - H x, is right for gamma = 1 only; the paper starts from
  zero, so its K terms are K - 1 products here.)
* ``cg``: conjugate gradients from zero, which need only A > 0. Every iterate is a sum of directions that descend, so
  x' g > 0 however early they end; their residuals may grow on the way, their errors do not. A direction of negative
  curvature ends them at the present iterate (Steihaug), the first one at g.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Vector = list[Tensor]
Product = Callable[[Vector], Vector]

GUARDS = {
    "diverging": "the best iterate was used, the first-order gradient when none was better",
    "negative curvature": "the solve ended there",
    "not finite": "the best iterate was used, the first-order gradient when none was better",
    "trust region": "its length was cut",
}
"""What may be wrong with a hypergradient, and what is done about it."""


@dataclass(frozen=True)
class Solution:
    """Approximate x, and how good it is.

    Attributes:
        residual: |b - A y| / |b| of the returned iterate; with ``fixed_point`` (unless a guard ended it) of the one
            before, since its own would cost one more product.
        guard: what was detected: one of :data:`GUARDS`, or "".
        products: Hessian-vector products spent.
    """

    x: Vector
    residual: float
    guard: str
    products: int

    @property
    def fell_back(self) -> bool:
        """Whether a guard fired at once, so that x is g: what it says about second order is nothing."""
        return bool(self.guard) and self.products == 1


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product over all tensors, accumulated in float64."""
    return float(sum((p.double() * q.double()).sum() for p, q in zip(a, b, strict=True)))


def norm(a: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors."""
    return float(torch.stack(torch._foreach_norm(list(a))).double().norm()) if a else 0.0


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Of the angle between two vectors; 0 when one of them is zero."""
    size = norm(a) * norm(b)
    return max(-1.0, min(1.0, dot(a, b) / size)) if size else 0.0


def combine(a: Sequence[Tensor], scale: float, b: Sequence[Tensor]) -> Vector:
    """a + scale b."""
    return [p + scale * q for p, q in zip(a, b, strict=True)]


def gradients(loss: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = False) -> Vector:
    """The gradient of a loss, zero for parameters that it does not depend on."""
    return list(
        torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True)
    )


@contextmanager
def taking_gradients(values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, all of them take gradients."""
    before = [value.requires_grad for value in values]
    for value in values:
        value.requires_grad_(True)
    try:
        yield
    finally:
        for value, flag in zip(values, before, strict=True):
            value.requires_grad_(flag)


def within_trust(x: Vector, g: Sequence[Tensor], trust: float) -> tuple[Vector, str]:
    """x cut to ``trust`` times the length of g, and the name of the guard if it was longer."""
    length, most = norm(x), trust * norm(g)
    if length <= most:
        return x, ""
    return [tensor * (most / length) for tensor in x], "trust region"


def solve_moreau(
    g: Vector,
    product: Product,
    gamma: float,
    *,
    metric: Vector | None = None,
    solver: Literal["fixed_point", "cg"] = "cg",
    iterations: int = 5,
    tolerance: float = 1e-2,
) -> Solution:
    """Solve (P + gamma H) x = P g.

    Args:
        g: gradient of the outer loss at theta_FT.
        product: v -> H v.
        metric: the diagonal of P, positive, shaped like g; None: P = I.
        iterations: most Hessian-vector products.
        tolerance: relative residual at which the solver is content.
    """
    if norm(g) == 0:
        return Solution(list(g), 0.0, "", 0)
    method = _fixed_point if solver == "fixed_point" else _conjugate_gradients
    if metric is None:
        return Solution(*method(g, lambda v: [gamma * h for h in product(v)], iterations, tolerance))
    root = [p.sqrt() for p in metric]

    def scaled(v: Vector) -> Vector:
        along = product([x / r for x, r in zip(v, root, strict=True)])
        return [gamma * h / r for h, r in zip(along, root, strict=True)]

    b = [x / r for x, r in zip(g, root, strict=True)]
    y, residual, guard, products = method(b, scaled, iterations, tolerance)
    return Solution([x * r for x, r in zip(y, root, strict=True)], residual, guard, products)


def _fixed_point(b: Vector, product: Product, iterations: int, tolerance: float) -> tuple[Vector, float, str, int]:
    """y <- b - B y, with ``product`` v -> B v = (A - I) v."""
    size, y, best, least = norm(b), list(b), list(b), 1.0
    for spent in range(1, iterations + 1):
        following = combine(b, -1.0, product(y))
        residual = norm(combine(following, -1.0, y)) / size
        if not residual <= least:
            guard = "diverging" if math.isfinite(residual) else "not finite"
            return best, residual if spent == 1 and guard == "diverging" else least, guard, spent
        if residual < tolerance:
            return following, residual, "", spent
        best, least, y = y, residual, following
    return y, least, "", iterations


def _conjugate_gradients(
    b: Vector, product: Product, iterations: int, tolerance: float
) -> tuple[Vector, float, str, int]:
    """Conjugate gradients of (I + B) y = b from zero, with ``product`` v -> B v."""
    size = norm(b)
    y, r, p = [torch.zeros_like(x) for x in b], list(b), list(b)
    square = size**2
    for spent in range(1, iterations + 1):
        ap = combine(p, 1.0, product(p))
        curvature = dot(p, ap)
        if not curvature > 0:
            guard = "negative curvature" if math.isfinite(curvature) else "not finite"
            return (list(b) if spent == 1 else y), square**0.5 / size, guard, spent
        step = square / curvature
        y, r = combine(y, step, p), combine(r, -step, ap)
        before, square = square, dot(r, r)
        if square**0.5 < tolerance * size:
            return y, square**0.5 / size, "", spent
        p = combine(r, square / before, p)
    return y, square**0.5 / size, "", iterations


def extreme_eigenvalues(
    product: Product, like: Sequence[Tensor], generator: torch.Generator, iterations: int = 12
) -> tuple[float, float]:
    """Smallest and largest eigenvalue of a symmetric matrix, by Lanczos from a random vector.

    Three vectors are kept; without orthogonalisation against all earlier ones eigenvalues may appear twice, which does
    not move the extreme ones. Both are bounds from within.

    Args:
        product: v -> H v.
        like: tensors shaped like v.
        generator: gives the first vector.
    """
    random = [torch.randn(x.shape, generator=generator).to(x) for x in like]
    length = norm(random)
    v, previous = [x / length for x in random], [torch.zeros_like(x) for x in like]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(iterations, sum(x.numel() for x in like))):
        w = combine(product(v), -(beside[-1] if beside else 0.0), previous)
        diagonal.append(dot(w, v))
        w = combine(w, -diagonal[-1], v)
        length = norm(w)
        if length <= 1e-7 * max(map(abs, diagonal)):
            break
        beside.append(length)
        previous, v = v, [x / length for x in w]
    size = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, value in enumerate(beside[: size - 1]):
        matrix[i, i + 1] = matrix[i + 1, i] = value
    values = torch.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[-1])
