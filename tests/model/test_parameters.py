"""Groups select the tensors that the published methods train, counted on the real architectures."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from safeguard.errors import UsageFault
from safeguard.model.diffusion import DiffusionModel
from safeguard.model.parameters import GROUPS, exposed, parts_of, select
from tests.tiny import tiny_pipeline, tiny_sdxl_pipeline

STABLE_DIFFUSION_1 = {
    "full": (686, 859_520_964),
    "cross-attention": (80, 43_962_560),
    "self-attention": (80, 49_574_080),
    "cross-attention-kv": (32, 19_169_280),
    "no-cross-attention": (600, 813_496_320),
    "no-time": (680, 857_458_880),
    "attention": (160, 93_536_640),
    "text-encoder": (194, 85_056_000),
}


@pytest.fixture(scope="module")
def parameters() -> dict[str, torch.nn.Parameter]:
    """Denoiser and text encoder of Stable Diffusion 1.4, without memory for their numbers."""
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            "text_encoder": CLIPTextModel(text),
        }
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.named_parameters()}


@pytest.mark.parametrize("group", STABLE_DIFFUSION_1)
def test_counts(parameters: dict[str, torch.nn.Parameter], group: str) -> None:
    chosen = [value for name, value in parameters.items() if GROUPS[group](name)]
    assert (len(chosen), sum(value.numel() for value in chosen)) == STABLE_DIFFUSION_1[group]


def test_every_group_is_counted() -> None:
    assert set(GROUPS) == set(STABLE_DIFFUSION_1)


def test_names_begin_with_their_part_and_keep_the_models_order() -> None:
    model = DiffusionModel(tiny_sdxl_pipeline())
    everything = model.named_parameters()
    assert parts_of(everything) == {"unet", "text_encoder", "text_encoder_2"}
    chosen = select(model, "cross-attention-kv")
    assert all(everything[name] is value for name, value in chosen.items())
    assert list(chosen) == [name for name in everything if name in chosen]
    assert parts_of(select(model, "text-encoder")) == {"text_encoder", "text_encoder_2"}


def test_hardened_parts_are_exposed_with_any_group() -> None:
    model = DiffusionModel(tiny_pipeline())
    assert exposed(model, "cross-attention") == select(model, "cross-attention")
    model.surface |= {"text_encoder"}
    beside = {f"text_encoder.{name}" for name, _ in model.parts["text_encoder"].named_parameters()}
    assert exposed(model, "cross-attention").keys() == select(model, "cross-attention").keys() | beside


def test_unknown_group_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(
        UsageFault, match=r"unknown parameter group 'cross-atention'.*\n.*did you mean 'cross-attention'"
    ):
        select(DiffusionModel(tiny_pipeline()), "cross-atention")
