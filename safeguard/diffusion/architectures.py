"""Which pipelines are supported, and how what is special about them is told; no torch."""

from __future__ import annotations

import re
from typing import Literal

Architecture = Literal["sd1", "sd2", "sdxl"]
PredictionType = Literal["epsilon", "v_prediction"]

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Classes of pipelines that share one code path."""
ERASER_KEY = re.compile(r"(?P<attention>.+\battn2)\.eraser\.(?P<leaf>.+)")
"""Names of weights in the denoiser's files that are no part of its class: erasers (``safeguard.diffusion.erasers``)."""
_TRANSFORMERS = (
    "Flux", "StableDiffusion3", "PixArt", "Sana", "HunyuanDiT", "HunyuanImage", "HiDream", "AuraFlow", "Lumina",
    "CogView", "Chroma", "Bria", "OmniGen", "QwenImage", "ZImage",
)  # fmt: skip


def unsupported(pipeline: object) -> str:
    """Why a pipeline of that class is refused."""
    if isinstance(pipeline, str) and pipeline.startswith(_TRANSFORMERS):
        return f"{pipeline!r} has a transformer backbone, which is not supported yet"
    return f"the pipeline class {pipeline!r} is not supported"
