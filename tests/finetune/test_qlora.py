"""QLoRA: factors learn beside rounded weights, and are used beside whole ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Run
from safeguard.finetune.lora import LoRAConfig
from safeguard.finetune.qlora import QLoRA, Rounded
from tests.contexts import seeded
from tests.tiny import tiny_pipeline


def test_a_rounded_layer_learns_with_other_weights_than_it_draws_with() -> None:
    layer, x = nn.Linear(6, 4), torch.randn(3, 6, generator=seeded(0))
    rounded = Rounded(layer, (layer.weight.detach() * 4).round() / 4)
    coarse = x @ rounded.rounded.T + layer.bias
    with torch.no_grad():
        assert torch.equal(rounded(x), layer(x)) and not torch.equal(rounded(x), coarse)
        rounded.learning = True
        assert torch.allclose(rounded(x), coarse)
        rounded.learning = False
    assert torch.allclose(rounded(x), coarse), "where a loss is differentiated"
    assert [id(value) for value in rounded.parameters()] == [id(value) for value in layer.parameters()]


@pytest.mark.gpu
def test_factors_learn_beside_normal_floats_and_nothing_else_changes() -> None:
    pytest.importorskip("bitsandbytes")
    model = DiffusionModel(tiny_pipeline(0).to("cuda"))
    data, tuner = generate(model, ["a cat"], 2, seed=0, steps=2), QLoRA(LoRAConfig())
    latents, t = torch.randn(2, *model.latent_shape, generator=seeded(0)).to("cuda"), torch.tensor([10, 500]).cuda()
    conditioning = model.encode_anew(["a cat", "a dog"])
    before = {name: value.detach().clone() for name, value in model.unet.state_dict().items()}
    with torch.no_grad():
        answer = model.predict(latents, t, conditioning)
    run = Run(model, data, tuner, Training(steps=3, learning_rate=1e-2, batch_size=2), seed=0)
    with torch.no_grad():
        assert torch.equal(model.predict(latents, t, conditioning), answer)
    layers = [module for module in model.unet.modules() if isinstance(module, Rounded)]
    apart = [float((each.rounded - each.weight).norm() / each.weight.norm()) for each in layers]
    assert all(0.01 < share < 0.2 for share in apart), "four bits of a normal distribution"
    losses = [run.step().item() for _ in range(3)]
    assert all(loss > 0 for loss in losses)
    with torch.no_grad():
        assert not torch.equal(model.predict(latents, t, conditioning), answer)
    tuner.detach(model)
    after = model.unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(isinstance(module, Rounded) for module in model.unet.modules())
