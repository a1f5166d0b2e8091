"""The public configurations of the models that people erase concepts from: what decides about shapes."""

from __future__ import annotations

from typing import Any

from safeguard.diffusion.footprint import Configurations


def _unet(**settings: Any) -> dict[str, Any]:
    common = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32}
    return {"_class_name": "UNet2DConditionModel", **common, **settings}


def _vae(sample_size: int, scaling_factor: float) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
    }


def _clip(width: int, layers: int, heads: int, activation: str, projected: int | None = None) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "projection_dim": projected or width,
    }


def _scheduler(kind: str, **settings: Any) -> dict[str, Any]:
    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    return {"_class_name": kind, **common, "steps_offset": 1, **settings}


_DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
_UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
_FOUR = {"block_out_channels": [320, 640, 1280, 1280], "down_block_types": _DOWN, "up_block_types": _UP}

SD_1_4: Configurations = {
    "unet": _unet(sample_size=64, cross_attention_dim=768, attention_head_dim=8, **_FOUR),
    "vae": _vae(512, 0.18215),
    "text_encoder": _clip(768, 12, 12, "quick_gelu"),
    "scheduler": _scheduler("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False),
}
"""512 pixels."""
SD_2_1: Configurations = {
    "unet": _unet(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=[5, 10, 20, 20],
        use_linear_projection=True,
        upcast_attention=True,
        **_FOUR,
    ),
    "vae": _vae(768, 0.18215),
    "text_encoder": _clip(1024, 23, 16, "gelu"),
    "scheduler": _scheduler("DDIMScheduler", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
}
"""768 pixels, predicts v."""
SDXL: Configurations = {
    "unet": _unet(
        sample_size=128,
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        block_out_channels=[320, 640, 1280],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    "vae": _vae(1024, 0.13025),
    "text_encoder": _clip(768, 12, 12, "quick_gelu"),
    "text_encoder_2": _clip(1280, 32, 20, "gelu", projected=1280),
    "scheduler": _scheduler("EulerDiscreteScheduler", timestep_spacing="leading"),
}
"""1024 pixels."""
