"""Tiny random pipelines in the format of Stable Diffusion, built in code in well under a second.

They draw noise, but every shape, file and code path is real: tokenizer, CLIP text encoder, UNet with self- and
cross-attention, VAE, scheduler. Latents are 4 x 8 x 8, images 16 x 16 pixels, prompts 16 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32
"""Width of the text states, and of cross-attention."""
CONTEXT = 16
"""Tokens per prompt, the two special ones included."""
SAMPLE_SIZE = 8
"""Height and width of a latent."""


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of 516 tokens: every byte, every byte that ends a word, two merges, two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "x"), ("ax", "e</w>")]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    # transformers 5 swallows vocab_file= and merges_file= silently and returns a tokenizer of two tokens.
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    assert len(tokenizer) == 516, "the tokenizer lost its vocabulary"
    return tokenizer


def tiny_text_encoder(tokenizer: CLIPTokenizer, *, projection: bool = False) -> CLIPTextModel:
    """A CLIP text encoder of two layers of 32; with ``projection`` the kind that SDXL has second."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder: CLIPTextModel = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
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


def tiny_vae() -> AutoencoderKL:
    """A KL autoencoder of channels (16, 16) that halves the image."""
    return AutoencoderKL(
        sample_size=2 * SAMPLE_SIZE,
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
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
    """A StableDiffusionPipeline with random weights; equal seeds give equal weights. The global RNG is left alone."""
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


def tiny_sdxl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """A StableDiffusionXLPipeline with random weights: two text encoders, pooled states and time ids."""
    tokenizer = tiny_tokenizer()
    time_width = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(tokenizer),
            text_encoder_2=tiny_text_encoder(tokenizer, projection=True),
            tokenizer=tokenizer,
            tokenizer_2=tiny_tokenizer(),
            unet=tiny_unet(
                cross_attention_dim=2 * WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=time_width,
                projection_class_embeddings_input_dim=WIDTH + 6 * time_width,
            ),
            scheduler=tiny_scheduler(),
            add_watermarker=False,
        )
    return _ready(pipeline)


def save_tiny(directory: Path, seed: int = 0) -> Path:
    """Write :func:`tiny_pipeline` to a diffusers directory (safetensors) and return it."""
    tiny_pipeline(seed).save_pretrained(directory, safe_serialization=True)
    return directory


def _ready(pipeline: Any) -> Any:
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
