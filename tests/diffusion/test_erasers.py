"""Erasers: neutral at first, folded exactly, and stored so that plain diffusers opens the model without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from safeguard.diffusion.erasers import Activation, attach, erasers, fold
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import ModelFault, UsageFault
from safeguard.io.opening import open_pipeline
from safeguard.io.preflight import inspect
from safeguard.io.saving import save_pipeline
from tests.tiny import tiny_pipeline

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def predict(model: DiffusionModel) -> torch.Tensor:
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict(latents, torch.tensor([10, 500]), model.encode_prompts(["a cat", "a dog"]))


def erased(activation: Activation) -> DiffusionModel:
    """A tiny model whose erasers do something."""
    model = DiffusionModel(tiny_pipeline())
    attach(model.unet, rank=3, activation=activation, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for eraser in erasers(model.unet).values():
            for value in eraser.parameters():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return model


@pytest.mark.parametrize("activation", ["linear", "gelu"])
def test_new_erasers_change_nothing(activation: Activation) -> None:
    model = DiffusionModel(tiny_pipeline())
    before = predict(model)
    attach(model.unet, rank=3, activation=activation, seed=1)
    assert len(erasers(model.unet)) == 4
    assert torch.equal(predict(model), before)
    assert not torch.allclose(predict(erased(activation)), before, atol=1e-2)


def test_a_copy_has_its_own_erasers() -> None:
    model = erased("gelu")
    copied = model.frozen_copy()
    assert torch.equal(predict(model), predict(copied))
    with torch.no_grad():
        next(iter(erasers(model.unet).values())).up.weight.zero_()
    assert not torch.equal(predict(model), predict(copied))


def test_linear_erasers_fold_into_the_weights() -> None:
    model = erased("linear")
    before = predict(model)
    changed = fold(model)
    assert torch.allclose(predict(model), before, atol=1e-5)
    plain = DiffusionModel(tiny_pipeline())
    assert model.named_parameters().keys() == plain.named_parameters().keys()
    different = {n for n, v in model.named_parameters().items() if not torch.equal(v, plain.named_parameters()[n])}
    assert different == set(changed)
    assert fold(erased("gelu")) == []


def test_gelu_erasers_are_stored_and_plain_diffusers_leaves_them_out(tmp_path: Path) -> None:
    model = erased("gelu")
    save_pipeline(model.pipeline, tmp_path / "model", {})
    assert set(inspect(tmp_path / "model").erasers.values()) == {3}
    again = DiffusionModel(open_pipeline(tmp_path / "model"))
    assert torch.equal(predict(again), predict(model))
    assert not any(value.requires_grad for value in again.named_parameters().values())
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    assert torch.equal(predict(DiffusionModel(plain)), predict(DiffusionModel(tiny_pipeline())))


def test_linear_erasers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="fold"):
        save_pipeline(erased("linear").pipeline, tmp_path / "model", {})


@pytest.mark.parametrize("damage", ["incomplete", "misshapen", "without its attention"])
def test_broken_erasers_are_refused_before_anything_is_loaded(tmp_path: Path, damage: str) -> None:
    save_pipeline(erased("gelu").pipeline, tmp_path, {})
    weights = load_file(tmp_path / WEIGHTS)
    name = next(name for name in weights if name.endswith("eraser.up.weight"))
    value = weights.pop(name)
    if damage == "misshapen":
        weights[name] = value[:, :2].contiguous()
    if damage == "without its attention":
        weights["elsewhere." + name] = value
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelFault, match="eraser"):
        inspect(tmp_path)
