"""Hessian-vector products H v of a loss, by three routes that agree.

* ``fused``: exact, by double backward. Attention runs in torch's fused kernels; these have no second derivative, so it
  is given here in closed form, one block of attention weights at a time. What double backward keeps then grows with
  the length of the sequences, not with its square.
* ``explicit``: exact, by double backward through softmax attention as torch differentiates it. Keeps every matrix of
  attention weights: the reference, and as fast on small images.
* ``finite_difference``: central differences of gradients. Keeps no second graph and one copy of the weights, so it fits
  small cards; accurate to 1e-3 or better in float32 and useless in less.

The first two evaluate the loss once and multiply over one retained graph; all products cost about two gradients each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from safeguard.diffusion.micro_batches import whole_batches
from safeguard.errors import TrainingFault, UsageFault
from safeguard.resilience.second_order.solvers import Product, Vector, combine, dot, gradients, norm

Backend = Literal["fused", "explicit", "finite_difference"]

BLOCK = 2**24
"""Attention weights in memory at a time: one head of Stable Diffusion's largest attention at 512 pixels."""
STEPS = (1e-5, 1e-4, 1e-6, 1e-3)
"""Steps of finite differences as shares of |theta|, in the order in which they are tried."""
AGREEMENT = 1e-2
"""Relative change of H v between a step and a third of it below which the step is taken at once."""
DISAGREEMENT = 1e-1
"""The change beyond which no step is good enough."""


def hessian_product(loss: Callable[[], Tensor], values: Sequence[Tensor], backend: Backend = "fused") -> Product:
    """v -> H v, H the Hessian of ``loss`` at the present ``values``, which must stay until the last product.

    Args:
        loss: always the same function of the weights: the batch, its timesteps and its noise are drawn outside.
        values: leaves that take gradients; v and H v have their shapes.

    Raises:
        UsageFault: finite differences of weights in less than float32.
        TrainingFault: no step of finite differences gives an answer.
    """
    if backend == "finite_difference":
        return _Differences(loss, values)
    with whole_batches(), fused_attention() if backend == "fused" else explicit_attention():
        return double_backward(loss(), values)


def double_backward(loss: Tensor, values: Sequence[Tensor]) -> Product:
    """Exact H v over one retained graph; all that ``loss`` was made of must be twice differentiable."""
    grads = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
    used = [grad is not None and grad.requires_grad for grad in grads]

    def product(v: Vector) -> Vector:
        along, by = ([vector for vector, flag in zip(row, used, strict=True) if flag] for row in (grads, v))
        if not along:
            return [torch.zeros_like(value) for value in values]
        found = torch.autograd.grad(along, values, grad_outputs=by, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if h is None else h for h, p in zip(found, values, strict=True)]

    return product


# -- attention -------------------------------------------------------------------------------------------------------


@contextmanager
def explicit_attention() -> Iterator[None]:
    """Inside, attention is computed by explicit softmax, which torch can differentiate twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention runs in fused kernels and can still be differentiated twice (not three times)."""
    with _Fused():
        yield


_kernel = torch.ops.aten.scaled_dot_product_attention
"""Torch's attention by a name that :class:`_Fused` does not answer to."""


class _Fused(TorchFunctionMode):
    """Puts :class:`_Attention` in the place of torch's, whatever library calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p or (enable_gqa and query.shape[-3] != key.shape[-3]):
        raise UsageFault(
            "fused attention is twice differentiable without dropout and grouped queries only", fix="hvp: explicit"
        )
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attended: Tensor = _Attention.apply(query, key, value, attn_mask, scale)  # type: ignore[no-untyped-call]
    return attended


class _Attention(torch.autograd.Function):
    """softmax(s q k' + mask) v, (..., n, width) for keys (..., m, width); its gradient is :class:`_Slopes`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.mask, ctx.scale = mask, scale
        attended: Tensor = _kernel(q, k, v, mask, scale=scale)
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = _Slopes.apply(*ctx.saved_tensors, grad, ctx.mask, ctx.scale)  # type: ignore[no-untyped-call]
        return *grads, None, None


class _Slopes(torch.autograd.Function):
    """The gradients of q, k and v, from the fused kernel; their own gradient is written out.

    With P the attention weights, o = P v, and g the grad of o, they are

        dq = s S k,    dk = s S' q,    dv = P' g,    S = P * (D - rowsum(P * D)),    D = g v'.

    Given grads a, b, c of these, W = s (a k' + q b') is the grad of S, and with w = rowsum(P * W)

        grad of D:       U = P * (W - w)
        grad of P:       R = W * (D - rowsum(P * D)) - w * D + g c'
        grad of s q k':  T = P * (R - rowsum(P * R))
        grads:  q: s (T k + S b),    k: s (T' q + S' a),    v: U' g,    g: U v + P c.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, mask: Tensor | None, scale: float) -> Any:
        ctx.save_for_backward(q, k, v, g)
        ctx.mask, ctx.scale = mask, scale
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(True) for x in (q, k, v)]
            attended = _kernel(*leaves, mask, scale=scale)
        return torch.autograd.grad(attended, leaves, g)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors = [*ctx.saved_tensors, *grads]
        kept, dtype = tensors[0], torch.promote_types(tensors[0].dtype, torch.float32)
        q, k, v, g, a, b, c = (x.flatten(0, -3) for x in tensors)
        mask = None
        if ctx.mask is not None:
            mask = ctx.mask.expand(*kept.shape[:-1], k.shape[-2]).flatten(0, -3)
        rows = max(1, BLOCK // (q.shape[-2] * k.shape[-2]))
        parts = [
            _second_order(
                *(x[start : start + rows].to(dtype) for x in (q, k, v, g, a, b, c)),
                mask=None if mask is None else mask[start : start + rows],
                s=ctx.scale,
            )
            for start in range(0, len(q), rows)
        ]
        found = (torch.cat(column) for column in zip(*parts, strict=True))
        return *(x.view(y.shape).to(y.dtype) for x, y in zip(found, tensors, strict=False)), None, None


def _second_order(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, a: Tensor, b: Tensor, c: Tensor, *, mask: Tensor | None, s: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas of :class:`_Slopes` for some heads: every tensor (heads, n or m, width)."""

    def centred(x: Tensor) -> Tensor:
        return p * (x - (p * x).sum(-1, keepdim=True))

    logits = s * q @ k.mT
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    p = logits.softmax(-1)
    d = g @ v.mT
    w = s * (a @ k.mT + q @ b.mT)
    mean_d, mean_w = ((p * x).sum(-1, keepdim=True) for x in (d, w))
    t = centred(w * (d - mean_d) - mean_w * d + g @ c.mT)
    big_s, u = p * (d - mean_d), p * (w - mean_w)
    return s * (t @ k + big_s @ b), s * (t.mT @ q + big_s.mT @ a), u.mT @ g, u @ v + p @ c


# -- finite differences ----------------------------------------------------------------------------------------------


class _Differences:
    """Central differences of gradients at theta +- e v, with e = step |theta| / |v|.

    The best step moves by two orders of magnitude with the direction. The first product compares each of
    :data:`STEPS` with a third of itself and keeps the first that agrees with it, or the one that agrees best. The
    second is held against the first: u' H v = v' H u (the vectors wait in the CPU's memory). Everything runs in
    float32 without TF32 and autocast; differences are taken in float64; the weights come back from a copy, bit for
    bit.
    """

    def __init__(self, loss: Callable[[], Tensor], values: Sequence[Tensor]) -> None:
        if any(value.dtype not in (torch.float32, torch.float64) for value in values):
            raise UsageFault("finite differences need weights in float32", fix="hvp: fused")
        self.loss, self.values = loss, values
        self.size = norm([value.detach() for value in values])
        self.step: float | None = None
        self._first: tuple[Vector, Vector] | None = None

    def __call__(self, v: Vector) -> Vector:
        length = norm(v)
        if length == 0:
            return [torch.zeros_like(value) for value in self.values]
        reach = self.size / length
        if self.step is None:
            self.step, found = self._choose(v, reach)
            self._first = [x.cpu() for x in v], [x.cpu() for x in found]
            return found
        found = self._difference(v, self.step * reach)
        if self._first is not None:
            _symmetric(*self._first, [x.cpu() for x in v], [x.cpu() for x in found])
            self._first = None
        return found

    def _choose(self, v: Vector, reach: float) -> tuple[float, Vector]:
        """The step that a third of it confirms, and H v by that third."""
        best: tuple[float, float, Vector] = (float("inf"), 0.0, [])
        for step in STEPS:
            whole, third = (self._difference(v, share * reach) for share in (step, step / 3))
            size, apart = norm(third), norm(combine(whole, -1.0, third))
            change = apart / size if size else apart
            if change < best[0]:
                best = change, step / 3, third
            if change < AGREEMENT:
                break
        if not best[0] < DISAGREEMENT:
            raise TrainingFault(
                f"finite differences give no Hessian-vector product: steps disagree by {best[0]:.0%} at best",
                fix="hvp: fused",
            )
        return best[1], best[2]

    def _difference(self, v: Vector, e: float) -> Vector:
        before = [value.detach().clone() for value in self.values]
        try:
            up, down = (self._gradient(before, v, sign * e) for sign in (1.0, -1.0))
        finally:
            with torch.no_grad():
                torch._foreach_copy_([value.detach() for value in self.values], before)
        return [((high.double() - low.double()) / (2 * e)).to(high.dtype) for high, low in zip(up, down, strict=True)]

    def _gradient(self, before: Vector, v: Vector, e: float) -> Vector:
        with torch.no_grad():
            for value, start, direction in zip(self.values, before, v, strict=True):
                value.copy_(start + e * direction)
        with _full_precision(self.values[0].device.type):
            return gradients(self.loss(), self.values)


def _symmetric(u: Vector, hu: Vector, v: Vector, hv: Vector) -> None:
    apart, size = abs(dot(u, hv) - dot(v, hu)), norm(u) * norm(hv) + norm(v) * norm(hu)
    if not apart <= DISAGREEMENT * size:
        raise TrainingFault(
            f"finite differences give no Hessian: u'Hv and v'Hu are {apart:.2g} apart, with vectors of {size:.2g}",
            fix="hvp: fused",
        )


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """No TF32 and no autocast."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
