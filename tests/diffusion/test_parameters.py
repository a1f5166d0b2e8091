"""Groups select the tensors that the published methods train, counted on the real architectures.

The counts of Stable Diffusion 1.4 are those of the literature. The others follow from its layers by hand:

* Stable Diffusion 2.1 is the same denoiser with text states 1024 instead of 768 wide. Its 16 cross-attentions have 5, 5
  and 6 key and value projections of 320, 640 and 1280 rows, 12,480 rows in all: 2 x 12,480 x 256 = 6,389,760 more
  numbers in every group that has them, and as many tensors, since a linear projection has the numbers of a 1 x 1
  convolution. Its text encoder has 23 layers of 12 h^2 + 13 h numbers at h = 1024, and a norm of 2 h.
* SDXL has 4 + 6 transformer layers 640 wide (one block down, one up) and 20 + 10 + 30 of 1280 (down, middle, up), so 70
  attentions of each kind. With states s = 2048 wide, self-attention has 4 c^2 + c numbers, cross-attention
  2 c^2 + 2 c s + c. Time embedding and ``conv_out`` are those of the others: 2,062,084 numbers in 6 tensors. Its second
  text encoder has 32 layers at h = 1280 and a projection of h^2.
* Token embeddings are 49,408 x h of every text encoder.

``denoiser`` counts every layer once more from its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import GROUPS, exposed, parts_of, select
from safeguard.errors import UsageFault
from safeguard.finetune.lora import LoRA, LoRAConfig
from tests.tiny import ARCHITECTURES, tiny_pipeline, tiny_sdxl_pipeline

COUNTS = {
    "sd1": {
        "full": (686, 859_520_964),
        "no-time": (680, 857_458_880),
        "no-cross-attention": (600, 813_496_320),
        "attention": (160, 93_536_640),
        "self-attention": (80, 49_574_080),
        "cross-attention": (80, 43_962_560),
        "cross-attention-kv": (32, 19_169_280),
        "text-encoder": (194, 85_056_000),
        "token-embedding": (1, 37_945_344),
    },
    "sd2": {
        "full": (686, 865_910_724),
        "no-time": (680, 863_848_640),
        "no-cross-attention": (600, 813_496_320),
        "attention": (160, 99_926_400),
        "self-attention": (80, 49_574_080),
        "cross-attention": (80, 50_352_320),
        "cross-attention-kv": (32, 25_559_040),
        "text-encoder": (370, 289_715_200),
        "token-embedding": (1, 50_593_792),
    },
    "sdxl": {
        "full": (1680, 2_567_463_684),
        "no-time": (1674, 2_565_401_600),
        "no-cross-attention": (1324, 2_019_731_200),
        "attention": (700, 955_353_600),
        "self-attention": (350, 409_683_200),
        "cross-attention": (350, 545_670_400),
        "cross-attention-kv": (140, 340_787_200),
        "text-encoder": (709, 716_375_040),
        "token-embedding": (2, 101_187_584),
    },
}
CASES = [(architecture, group) for architecture, groups in COUNTS.items() for group in groups]
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"sample_size": 64, "cross_attention_dim": 768},
    "sd2": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def encoder(kind: type, width: int, layers: int) -> torch.nn.Module:
    """A CLIP text encoder with heads of 64, as all published ones have."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    module: torch.nn.Module = kind(config)
    return module


@pytest.fixture(scope="module")
def real() -> dict[str, DiffusionModel]:
    """Every architecture at its real size, without memory for its numbers."""
    models = {}
    with torch.device("meta"):
        encoders = {
            "sd1": {"text_encoder": encoder(CLIPTextModel, 768, 12)},
            "sd2": {"text_encoder": encoder(CLIPTextModel, 1024, 23)},
            "sdxl": {
                "text_encoder": encoder(CLIPTextModel, 768, 12),
                "text_encoder_2": encoder(CLIPTextModelWithProjection, 1280, 32),
            },
        }
        unets = {architecture: UNet2DConditionModel(**config) for architecture, config in UNETS.items()}
    for architecture, unet in unets.items():
        pipeline = ARCHITECTURES[architecture](0)
        for name, module in {"unet": unet, **encoders[architecture]}.items():
            setattr(pipeline, name, module)
        models[architecture] = DiffusionModel(pipeline)
    return models


@pytest.mark.parametrize(("architecture", "group"), CASES)
def test_counts(real: dict[str, DiffusionModel], architecture: str, group: str) -> None:
    chosen = select(real[architecture], group).values()
    assert (len(chosen), sum(value.numel() for value in chosen)) == COUNTS[architecture][group]


def test_every_group_is_counted() -> None:
    assert all(set(GROUPS) == set(groups) for groups in COUNTS.values())


def denoiser(channels: list[int], layers: list[int], text: int, added: int = 0) -> tuple[int, int]:
    """Tensors and numbers of a denoiser, layer by layer; ``layers``: transformer layers per block, then the middle."""

    def linear(into: int, out: int, window: int = 1) -> tuple[int, int]:
        return 2, window * into * out + out

    def norm(width: int) -> tuple[int, int]:
        return 2, 2 * width

    def resnet(into: int, out: int) -> Iterator[tuple[int, int]]:
        yield from (norm(into), linear(into, out, 9), linear(1280, out), norm(out), linear(out, out, 9))
        if into != out:
            yield linear(into, out)

    def transformer(width: int, depth: int) -> Iterator[tuple[int, int]]:
        if depth:
            yield from (norm(width), linear(width, width), linear(width, width))
        for _ in range(depth):
            yield from (norm(width), norm(width), norm(width))
            yield 5, 4 * width**2 + width
            yield 5, 2 * width**2 + 2 * width * text + width
            yield from (linear(width, 8 * width), linear(4 * width, width))

    def everything() -> Iterator[tuple[int, int]]:
        first, last = channels[0], channels[-1]
        yield from (linear(4, first, 9), linear(first, 1280), linear(1280, 1280), norm(first), linear(first, 4, 9))
        if added:
            yield from (linear(added, 1280), linear(1280, 1280))
        skipped, now = [first], first
        for block, width in enumerate(channels):
            for _ in range(2):
                yield from (*resnet(now, width), *transformer(width, layers[block]))
                now = width
                skipped.append(width)
            if block < len(channels) - 1:
                yield linear(width, width, 9)
                skipped.append(width)
        yield from (*resnet(last, last), *transformer(last, layers[-1]), *resnet(last, last))
        for block in reversed(range(len(channels))):
            width = channels[block]
            for _ in range(3):
                yield from (*resnet(now + skipped.pop(), width), *transformer(width, layers[block]))
                now = width
            if block:
                yield linear(width, width, 9)

    tensors, numbers = zip(*everything(), strict=True)
    return sum(tensors), sum(numbers)


def test_totals_from_the_shapes_of_the_layers() -> None:
    four = [320, 640, 1280, 1280]
    assert denoiser(four, [1, 1, 1, 0, 1], 768) == COUNTS["sd1"]["full"]
    assert denoiser(four, [1, 1, 1, 0, 1], 1024) == COUNTS["sd2"]["full"]
    assert denoiser(four[:3], [0, 2, 10, 10], 2048, added=2816) == COUNTS["sdxl"]["full"]


@pytest.mark.parametrize(("architecture", "tensors", "numbers"), [("sd1", 256, 797_184), ("sdxl", 1120, 5_806_080)])
def test_low_rank_factors_of_all_attentions(
    real: dict[str, DiffusionModel], architecture: str, tensors: int, numbers: int
) -> None:
    # SDXL, rank 4: self-attention 4 x 8 c, cross-attention 2 x 8 c + 2 x 4 (c + 2048); 10 layers of 640, 60 of 1280
    tuner = LoRA(LoRAConfig(rank=4))
    factors = tuner.attach(real[architecture], 0)
    tuner.detach(real[architecture])
    assert (len(factors), sum(value.numel() for value in factors)) == (tensors, numbers)


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
    model.exposed_parts |= {"text_encoder"}
    beside = {f"text_encoder.{name}" for name, _ in model.parts["text_encoder"].named_parameters()}
    assert exposed(model, "cross-attention").keys() == select(model, "cross-attention").keys() | beside


def test_unknown_group_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(
        UsageFault, match=r"unknown parameter group 'cross-atention'.*\n.*did you mean 'cross-attention'"
    ):
        select(DiffusionModel(tiny_pipeline()), "cross-atention")
