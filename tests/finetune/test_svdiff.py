"""SVDiff: a layer's singular values move, its singular vectors stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Run
from safeguard.finetune.svdiff import Shifted, SVDiff, SVDiffConfig
from tests.contexts import seeded
from tests.tiny import tiny_pipeline

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "convolution": (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 5, 5)),
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 3, 3)),
    "layer norm": (nn.LayerNorm(6), (2, 5, 6)),
}
layers = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=list(LAYERS))


def spectrum(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = weight.detach().reshape(len(weight), -1) if weight.dim() > 1 else weight.detach()[None]
    found: Any = torch.linalg.svd(rows.double(), full_matrices=False)
    return found[0], found[1], found[2]


@layers
def test_it_is_the_formula(layer: Any, shape: tuple[int, ...]) -> None:
    torch.nn.init.normal_(layer.weight, generator=seeded(0))
    x, shifted = torch.randn(shape, generator=seeded(1)), Shifted(layer)
    assert torch.equal(shifted(x), layer(x)), "nothing moves at zero"
    u, s, v = spectrum(layer.weight)
    with torch.no_grad():
        shifted.delta.copy_(torch.linspace(-0.3, 0.4, len(s)))
        shifted.delta[-1] = -2 * s[-1]  # which relu cuts off
    values = torch.clamp(s + shifted.delta.detach().double(), min=0)
    weight = (u @ torch.diag(values) @ v).reshape(layer.weight.shape).float()
    expected = torch.func.functional_call(layer, {"weight": weight}, (x,))
    assert torch.allclose(shifted(x), expected, atol=1e-4) and not torch.allclose(expected, layer(x), atol=1e-2)


def test_singular_vectors_and_all_else_stay() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data = generate(model, ["a cat"], 2, seed=0, steps=2)
    before = {name: value.detach().clone() for name, value in model.unet.state_dict().items()}
    tuner = SVDiff(SVDiffConfig())
    run = Run(model, data, tuner, Training(steps=2, learning_rate=0.01, batch_size=2), seed=0)
    for _ in range(2):
        run.step()
    found = [(name, module) for name, module in model.unet.named_modules() if isinstance(module, Shifted)]
    assert {type(module.layer) for _, module in found} == {nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm}
    assert len(found) == len(run.parameters) and all(module.delta.any() for _, module in found if module.s.all())
    for name, module in found:
        assert torch.equal(module.layer.weight, before[f"{name}.weight"])
        u, s, v = spectrum(before[f"{name}.weight"])
        assert torch.allclose(module.s.double(), s, atol=1e-5)
        assert torch.allclose((module.u * module.s) @ module.v, ((u * s) @ v).float(), atol=1e-5)
    tuner.detach(model)
    assert not any(isinstance(module, Shifted) for module in model.unet.modules())
