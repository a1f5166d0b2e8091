"""Hessian-vector products: three routes against each other, fused attention against explicit, and what each keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from safeguard.config import Precision
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import TrainingFault, UsageFault
from safeguard.resilience.second_order import hvp
from safeguard.resilience.second_order.hvp import Backend, fused_attention, hessian_product
from safeguard.resilience.second_order.solvers import Vector, dot
from tests.contexts import apart, seeded
from tests.tiny import ARCHITECTURES

EXACT: tuple[Backend, ...] = ("fused", "explicit")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def tiny_loss(
    dtype: torch.dtype = torch.float64, architecture: str = "sd1", precision: Precision = "float32"
) -> tuple[Callable[[], Tensor], Vector]:
    """The denoising loss of a tiny model on a fixed batch, and the weights of its denoiser and text encoder."""
    pipeline = ARCHITECTURES[architecture](0).to(dtype)
    model = DiffusionModel(pipeline)
    model.execution.precision = precision
    model.alphas_cumprod = model.alphas_cumprod.to(dtype)
    values = [*model.unet.parameters(), *model.parts["text_encoder"].parameters()]
    for value in values:
        value.requires_grad_(True)
    generator = seeded(0)
    latents = torch.randn(2, *model.latent_shape, generator=generator).to(dtype)
    t, noise = model.draw_noise(2, generator)

    def loss() -> Tensor:
        return model.denoising_loss_at(latents, model.encode_prompts(["an axe", "a cat"]), t, noise.to(dtype))

    return loss, values


def grad(loss: Callable[[], Tensor], values: Vector) -> Vector:
    return list(torch.autograd.grad(loss(), values, allow_unused=True, materialize_grads=True))


def random_like(values: Vector, seed: int = 1) -> Vector:
    generator = seeded(seed)
    return [torch.randn(value.shape, generator=generator).to(value.dtype) for value in values]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_fused_and_explicit_products_are_the_same(architecture):
    loss, values = tiny_loss(architecture=architecture)
    v = random_like(values)
    fused, explicit = (hessian_product(loss, values, backend)(v) for backend in EXACT)
    assert apart(fused, explicit) < 1e-10


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("backend", EXACT)
def test_bfloat16_is_off_by_about_a_percent(architecture: str, backend: Backend) -> None:
    found = []
    for precision in PRECISIONS:
        loss, values = tiny_loss(torch.float32, architecture, precision)
        gradient = grad(loss, values)
        found.append((gradient, hessian_product(loss, values, backend)(gradient)))
        assert all(part.dtype == torch.float32 for part in (*gradient, *found[-1][1]))
    (gradient, product), (rough_gradient, rough_product) = found
    assert 0 < apart(rough_gradient, gradient) < 0.03
    assert 0 < apart(rough_product, product) < 0.06


@pytest.mark.parametrize("direction", [grad, lambda loss, values: random_like(values)], ids=["gradient", "random"])
def test_finite_differences_come_near_the_exact_product(direction):
    loss, values = tiny_loss(torch.float32)
    v = direction(loss, values)
    exact_loss, exact_values = tiny_loss(torch.float64)
    exact = hessian_product(exact_loss, exact_values, "explicit")([x.double() for x in v])
    product = hessian_product(loss, values, "finite_difference")
    assert apart([x.double() for x in product(v)], exact) < 5e-3
    assert apart([x.double() for x in product(v)], exact) < 5e-3, "later products take the step of the first"


class _Slanted(torch.autograd.Function):
    """A function whose backward pass says M x, which is no gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=x.dtype) @ x


def test_products_that_are_not_symmetric_are_refused():
    x = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    product = hessian_product(lambda: _Slanted.apply(x), [x], "finite_difference")
    u, v = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 0.0], [0.0, 1.0]))
    assert apart(product([u]), [torch.tensor([0.0, -1.0], dtype=torch.float64)]) < 1e-9
    with pytest.raises(TrainingFault, match="no Hessian"):
        product([v])


@pytest.mark.parametrize("backend", ["fused", "explicit", "finite_difference"])
def test_the_hessian_is_symmetric_and_linear(backend):
    loss, values = tiny_loss()
    product = hessian_product(loss, values, backend)
    u, v = random_like(values, 1), random_like(values, 2)
    hu, hv = product(u), product(v)
    assert dot(u, hv) == pytest.approx(dot(v, hu), rel=1e-4)
    both = product([a + 2 * b for a, b in zip(u, v, strict=True)])
    assert apart(both, [a + 2 * b for a, b in zip(hu, hv, strict=True)]) < 1e-4


@pytest.mark.parametrize("backend", ["fused", "explicit", "finite_difference"])
def test_a_quadratic_gives_its_matrix(backend):
    matrix = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.4]], dtype=torch.float64)
    x = torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64, requires_grad=True)
    idle = torch.ones(2, dtype=torch.float64, requires_grad=True)
    v = [torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    found = hessian_product(lambda: 0.5 * x @ matrix @ x, [x, idle], backend)(v)
    assert torch.allclose(found[0], matrix @ v[0], atol=1e-8)
    assert torch.equal(found[1], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["fused", "explicit", "finite_difference"])
def test_a_linear_loss_has_no_curvature(backend):
    x = torch.ones(3, requires_grad=True)
    assert torch.equal(hessian_product(lambda: x.sum(), [x], backend)([torch.ones(3)])[0], torch.zeros(3))


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "added"])
@pytest.mark.parametrize("keys", [7, 5])
@pytest.mark.parametrize("block", [1, 70, 2**24])
def test_fused_attention_is_differentiated_twice(mask, keys, block, monkeypatch):
    """Self- and cross-attention, with and without masks, whatever number of heads fits into a block."""
    monkeypatch.setattr(hvp, "BLOCK", block)
    generator = seeded(3)
    q = torch.randn(2, 3, 7, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    masks = {
        "none": {},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": torch.rand(2, 1, 7, keys, generator=generator) > 0.3},
        "added": {"attn_mask": torch.randn(7, keys, dtype=torch.float64, generator=generator), "scale": 0.3},
    }
    if mask == "boolean":
        masks[mask]["attn_mask"][..., 0] = True

    def loss() -> Tensor:
        return scaled_dot_product_attention(q, k, v, **masks[mask]).pow(3).sum()

    leaves = [q, k, v]
    direction = random_like(leaves)
    fused, explicit = (hessian_product(loss, leaves, backend)(direction) for backend in EXACT)
    assert apart(fused, explicit) < 1e-12
    with fused_attention():
        value, first = loss().item(), grad(loss, leaves)
    assert value == pytest.approx(loss().item(), rel=1e-12)
    assert apart(first, grad(loss, leaves)) < 1e-12


def test_fused_attention_refuses_what_it_cannot_do():
    x = torch.ones(1, 2, 3, 4, requires_grad=True)
    with pytest.raises(UsageFault, match="without dropout"), fused_attention():
        scaled_dot_product_attention(x, x, x, dropout_p=0.1)


def test_finite_differences_leave_the_weights_as_they_were():
    loss, values = tiny_loss(torch.float32)
    before = [value.detach().clone() for value in values]
    hessian_product(loss, values, "finite_difference")(random_like(values))
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))
    calls = []

    def failing() -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return loss()

    with pytest.raises(RuntimeError):
        hessian_product(failing, values, "finite_difference")(random_like(values))
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))


def test_finite_differences_say_when_there_is_no_answer():
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(TrainingFault, match="steps disagree"):
        hessian_product(lambda: (x * torch.rand(3, generator=generator)).sum(), [x], "finite_difference")([x.detach()])


def test_finite_differences_need_full_precision():
    with pytest.raises(UsageFault, match="float32"):
        hessian_product(lambda: torch.zeros(()), [torch.ones(2, dtype=torch.bfloat16)], "finite_difference")
