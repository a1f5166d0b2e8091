"""Groups select the tensors that the published methods train, counted on the real architecture."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from safeguard.errors import UsageFault
from safeguard.model.parameters import GROUPS, select
from tests.tiny import tiny_unet, tiny_vae

STABLE_DIFFUSION_1 = {
    "full": (686, 859_520_964),
    "cross-attention": (80, 43_962_560),
    "self-attention": (80, 49_574_080),
    "cross-attention-kv": (32, 19_169_280),
    "no-cross-attention": (600, 813_496_320),
    "no-time": (680, 857_458_880),
    "attention": (160, 93_536_640),
}


@pytest.fixture(scope="module")
def denoiser() -> UNet2DConditionModel:
    """The denoiser of Stable Diffusion 1.4, without memory for its numbers."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


@pytest.mark.parametrize("group", STABLE_DIFFUSION_1)
def test_counts(denoiser: UNet2DConditionModel, group: str) -> None:
    chosen = select(denoiser, group)
    assert (len(chosen), sum(value.numel() for value in chosen.values())) == STABLE_DIFFUSION_1[group]


def test_every_group_is_counted() -> None:
    assert set(GROUPS) == set(STABLE_DIFFUSION_1)


def test_parameters_are_the_modules_own_in_its_order() -> None:
    unet = tiny_unet()
    chosen = select(unet, "cross-attention-kv")
    assert all(dict(unet.named_parameters())[name] is value for name, value in chosen.items())
    assert list(chosen) == [name for name, _ in unet.named_parameters() if name in chosen]


def test_unknown_group_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(
        UsageFault, match=r"unknown parameter group 'cross-atention'.*\n.*did you mean 'cross-attention'"
    ):
        select(tiny_unet(), "cross-atention")


def test_a_group_that_selects_nothing_is_refused() -> None:
    with pytest.raises(UsageFault, match="selects nothing in AutoencoderKL"):
        select(tiny_vae(), "cross-attention")
