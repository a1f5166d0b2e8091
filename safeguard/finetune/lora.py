"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the queries, keys, values and outputs of every attention.

The denoiser's attentions, those of a text encoder that was hardened, and erasers where there are any.

W x + (alpha / rank) B A x, with A ~ N(0, 1/rank^2) and B = 0, so that nothing changes before the first step; these are
the defaults of the common text-to-image training scripts (alpha = rank).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import PositiveInt

from safeguard.config import MethodConfig
from safeguard.diffusion.model import DiffusionModel

_NAME = "safeguard"
_TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0", "eraser.down", "eraser.up"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "text_encoder_2": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
"""Part -> its layers that get factors."""


class LoRAConfig(MethodConfig):
    """Settings of LoRA."""

    rank: PositiveInt = 4
    """Rank of every update; alpha equals it."""


class LoRA:
    """Trains low-rank factors beside frozen weights."""

    Config: ClassVar = LoRAConfig

    def __init__(self, config: LoRAConfig) -> None:
        self.config = config

    def attach(self, model: DiffusionModel, seed: int) -> list[torch.nn.Parameter]:
        """Add the adapter; returns its factors."""
        import peft

        model.freeze()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            for part in sorted(model.exposed_parts, reverse=True):  # the denoiser first
                settings = peft.LoraConfig(
                    r=self.config.rank,
                    lora_alpha=self.config.rank,
                    init_lora_weights="gaussian",
                    target_modules=_TARGETS[part],
                )
                peft.inject_adapter_in_model(settings, model.parts[part], adapter_name=_NAME)
        return [parameter for name, parameter in model.named_parameters().items() if "lora_" in name]

    def detach(self, model: DiffusionModel) -> None:
        """Remove the adapter and its wrapped layers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name in model.exposed_parts:
            part: Any = model.parts[name]
            for path, module in list(part.named_modules()):
                if isinstance(module, BaseTunerLayer):
                    parent, _, child = path.rpartition(".")
                    setattr(part.get_submodule(parent), child, module.get_base_layer())
            del part.peft_config
        model.freeze()
