"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the queries, keys, values and outputs of every attention.

W x + (alpha / rank) B A x, with A ~ N(0, 1/rank^2) and B = 0, so that nothing changes before the first step; these are
the defaults of the common text-to-image training scripts (alpha = rank).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import PositiveInt

from safeguard.config import MethodConfig
from safeguard.model.diffusion import DiffusionModel

_NAME = "safeguard"


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

        settings = peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.rank,
            init_lora_weights="gaussian",
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        )
        unet: Any = model.unet
        unet.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            unet.add_adapter(settings, adapter_name=_NAME)
        return [parameter for name, parameter in unet.named_parameters() if "lora_" in name]

    def detach(self, model: DiffusionModel) -> None:
        """Remove the adapter and its wrapped layers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        unet: Any = model.unet
        for name, module in list(unet.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, child = name.rpartition(".")
                setattr(unet.get_submodule(parent), child, module.get_base_layer())
        del unet.peft_config
        unet._hf_peft_config_loaded = False
        unet.requires_grad_(False)
