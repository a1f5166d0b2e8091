"""Text states follow the encoder's weights, copies are independent, and parts that differ are named."""

from __future__ import annotations

import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import select
from tests.tiny import tiny_pipeline, tiny_sdxl_pipeline


def test_text_states_are_kept_until_the_encoder_changes() -> None:
    model = DiffusionModel(tiny_pipeline())
    first = model.encode_prompts(["a cat", "an axe", "a cat"]).states
    assert model.encode_prompts(["a cat"]).states[0].data_ptr() != first[0].data_ptr()
    assert torch.equal(first[0], first[2]) and torch.equal(model.encode_prompts(["an axe"]).states[0], first[1])
    values = list(select(model, "text-encoder").values())
    for value in values:
        value.requires_grad_(True)
    optimizer = torch.optim.Adam(values, lr=1e-2)
    model.encode_prompts(["a cat"]).states.square().mean().backward()
    optimizer.step()
    model.freeze()
    changed = model.encode_prompts(["a cat"]).states[0]
    assert not torch.allclose(changed, first[0], atol=1e-3)
    assert torch.equal(changed, model.encode_anew(["a cat"]).states[0])


def test_gradients_reach_the_text_encoder_only_when_it_takes_them() -> None:
    model = DiffusionModel(tiny_pipeline())
    assert not model.encode_prompts(["a cat"]).states.requires_grad
    model.parts["text_encoder"].requires_grad_(True)
    live = model.encode_prompts(["a cat", "a dog", "a cat"])
    assert live.states.requires_grad and torch.equal(live.states[0], live.states[2])
    with torch.no_grad():
        assert not model.encode_prompts(["a cat"]).states.requires_grad


def test_a_frozen_copy_has_its_own_parts() -> None:
    model = DiffusionModel(tiny_sdxl_pipeline())
    teacher = model.frozen_copy()
    assert not model.differing_parts(teacher)
    with torch.no_grad():
        next(iter(select(model, "text-encoder").values())).add_(1.0)
    assert model.differing_parts(teacher) == {"text_encoder"}
    with torch.no_grad():
        model.unet.conv_in.bias.add_(1.0)
    assert model.differing_parts(teacher) == {"unet", "text_encoder"}
    assert not torch.equal(model.encode_prompts(["a"]).states, teacher.encode_prompts(["a"]).states)
