"""Adapters of the peft library are what their papers say: the weights that a layer has in effect, restated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner, Run
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from tests.tiny import tiny_pipeline

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def make(name: str, **settings: int) -> FineTuner:
    return finetuners.make(FineTuningMethod.model_validate({"name": name, **settings}))


def trained(tuner: FineTuner) -> tuple[DiffusionModel, Tensor]:
    """A model after four steps with the adapter, and the layer's weights before."""
    model = DiffusionModel(tiny_pipeline(0))
    before = model.unet.get_submodule(LAYER).weight.detach().clone()
    data = generate(model, ["a cat"], 2, seed=0, steps=2)
    run = Run(model, data, tuner, Training(steps=4, learning_rate=0.05), seed=0)
    for _ in range(4):
        run.step()
    return model, before


@torch.no_grad()
def in_effect(model: DiffusionModel) -> Tensor:
    """The weights (outputs, inputs) that a layer without bias has: its answers to unit vectors."""
    layer = model.unet.get_submodule(LAYER)
    found: Tensor = layer(torch.eye(layer.in_features)).T
    return found


@pytest.mark.parametrize("name", ["lora", "dora", "loha", "lokr"])
def test_another_seed_starts_elsewhere(name: str) -> None:
    model, tuner = DiffusionModel(tiny_pipeline(0)), make(name)
    starts = []
    for seed in (1, 2):
        starts.append([value.detach().clone() for value in tuner.attach(model, seed)])
        tuner.detach(model)
    assert not all(torch.equal(a, b) for a, b in zip(*starts, strict=True))


def test_lokr_adds_a_kronecker_product() -> None:
    model, before = trained(make("lokr", rank=1))
    parts = {name.split(".")[0]: value for name, value in model.unet.get_submodule(LAYER).named_parameters()}
    left, right = parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    blocks = [torch.cat([entry * right for entry in row], dim=1) for row in left]
    assert torch.allclose(in_effect(model) - before, torch.cat(blocks), atol=1e-5)
    assert torch.linalg.matrix_rank(right) == 1 and left.abs().max() > 1e-3


@pytest.mark.parametrize("size", [32, 8])
def test_oft_rotates_blocks_of_inputs_and_keeps_the_weights(size: int) -> None:
    model, before = trained(make("oft", block_size=size))
    rotation = torch.linalg.lstsq(before, in_effect(model)).solution  # W R = what is in effect
    eye = torch.eye(len(rotation))
    assert torch.allclose(rotation @ rotation.T, eye, atol=1e-4) and (rotation - eye).abs().max() > 1e-2
    blocks = torch.block_diag(*(torch.ones(size, size) for _ in range(len(eye) // size)))
    assert torch.allclose(rotation * (1 - blocks), torch.zeros(()), atol=1e-4)
