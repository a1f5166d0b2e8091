"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank factors beside frozen weights.

W x + (alpha / rank) B A x, with A ~ N(0, 1/rank^2) and B = 0, so that nothing changes before the first step; these are
the defaults of the common text-to-image training scripts (alpha = rank).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt

from safeguard.finetune.base import PartsConfig
from safeguard.finetune.peft import PeftFineTuner


class LoRAConfig(PartsConfig):
    """Settings of LoRA."""

    rank: PositiveInt = 4
    """Rank of every update; alpha equals it."""


class LoRA(PeftFineTuner):
    """Trains B and A."""

    Config: ClassVar = LoRAConfig
    config: LoRAConfig

    def adapter(self, targets: list[str]) -> Any:
        """Factors of the declared rank."""
        from peft import LoraConfig

        rank = self.config.rank
        return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
