"""Tiny random pipelines of every supported architecture, built in code in well under a second.

They draw noise, but every shape, file and code path is real: tokenizers, CLIP text encoders, UNet with self- and
cross-attention, VAE, scheduler. Latents are 4 x 8 x 8, images 16 x 16 pixels, prompts 16 tokens. Each has what sets its
architecture apart: Stable Diffusion 2.x states 1024 wide, linear projections, a head count per block, v prediction and
padding with ``!``; SDXL two text encoders of different widths, pooled states, time ids, several transformer layers per
block and its own scaling of latents.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32
"""Width of the text states, and of cross-attention."""
SD2_WIDTH = 1024
"""The width by which Stable Diffusion 2.x is told from 1.x."""
SECOND_WIDTH = 48
"""Width of the states of SDXL's second text encoder."""
POOLED_WIDTH = 40
"""Width of its pooled states."""
CONTEXT = 16
"""Tokens per prompt, the two special ones included."""
SAMPLE_SIZE = 8
"""Height and width of a latent."""


def tiny_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer of 516 tokens: every byte, every byte that ends a word, two merges, two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "x"), ("ax", "e</w>")]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    # transformers 5 swallows vocab_file= and merges_file= silently and returns a tokenizer of two tokens.
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT, pad_token=pad)
    assert len(tokenizer) == 516, "the tokenizer lost its vocabulary"
    return tokenizer


def tiny_text_encoder(tokenizer: CLIPTokenizer, *, projection: bool = False, **changes: Any) -> CLIPTextModel:
    """A CLIP text encoder of two layers of 32; with ``projection`` the kind that SDXL has second."""
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "projection_dim": POOLED_WIDTH if projection else WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    encoder: CLIPTextModel = kind(CLIPTextConfig(**config | changes))
    return encoder


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet of channels (32, 64) with cross-attention at 4 x 4; ``changes`` go into its configuration."""
    config: dict[str, Any] = {
        "sample_size": SAMPLE_SIZE,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**config | changes)


def tiny_sd3_transformer() -> SD3Transformer2DModel:
    """The backbone of an architecture that is not supported."""
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
    )


def tiny_vae(**changes: Any) -> AutoencoderKL:
    """A KL autoencoder of channels (16, 16) that halves the image; ``changes`` go into its configuration."""
    return AutoencoderKL(
        sample_size=2 * SAMPLE_SIZE,
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        **changes,
    )


def tiny_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def tiny_pipeline(seed: int = 0, *, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Stable Diffusion 1.x with random weights; equal seeds give equal weights. The global RNG is left alone."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=tiny_unet(),
            scheduler=tiny_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _ready(pipeline)


def tiny_sd2_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 2.x with random weights."""
    tokenizer = tiny_tokenizer(pad="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(tokenizer, hidden_size=SD2_WIDTH, num_hidden_layers=1, hidden_act="gelu"),
            tokenizer=tokenizer,
            unet=tiny_unet(cross_attention_dim=SD2_WIDTH, attention_head_dim=(2, 4), use_linear_projection=True),
            scheduler=tiny_scheduler("v_prediction"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _ready(pipeline)


def tiny_sdxl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL with random weights."""
    tokenizer, second = tiny_tokenizer(), tiny_tokenizer(pad="!")
    time_width = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLPipeline(
            vae=tiny_vae(scaling_factor=0.13025),
            text_encoder=tiny_text_encoder(tokenizer, num_hidden_layers=3),
            text_encoder_2=tiny_text_encoder(second, projection=True, hidden_size=SECOND_WIDTH),
            tokenizer=tokenizer,
            tokenizer_2=second,
            unet=tiny_unet(
                cross_attention_dim=WIDTH + SECOND_WIDTH,
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                transformer_layers_per_block=(1, 2),
                addition_embed_type="text_time",
                addition_time_embed_dim=time_width,
                projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * time_width,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )
    return _ready(pipeline)


ARCHITECTURES: dict[str, Callable[[int], Any]] = {
    "sd1": tiny_pipeline,
    "sd2": tiny_sd2_pipeline,
    "sdxl": tiny_sdxl_pipeline,
}
"""Name (as in ``safeguard.io.preflight``) -> seed -> pipeline."""


def save_tiny(directory: Path, seed: int = 0, *, architecture: str = "sd1") -> Path:
    """Write a tiny pipeline to a diffusers directory (safetensors) and return it."""
    ARCHITECTURES[architecture](seed).save_pretrained(directory, safe_serialization=True)
    return directory


def changed_copy(base: Path, directory: Path, component: str = "unet", share: float = 0.01) -> Path:
    """A copy of a model directory, with a little noise on the weights of one component."""
    shutil.copytree(base, directory)
    (path,) = (directory / component).glob("*.safetensors")
    generator = torch.Generator().manual_seed(7)
    moved = {
        name: value + share * torch.randn(value.shape, generator=generator) for name, value in load_file(path).items()
    }
    save_file(moved, path, metadata={"format": "pt"})
    return directory


def _ready(pipeline: Any) -> Any:
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
