"""DoRA (Liu et al. 2024, arXiv 2402.09353): LoRA on the directions of weights, and their magnitudes beside it.

m (W + B A) / |W + B A| x, norms by row, with B = 0 and m = |W| at the start. As in the paper (Section 4.3) a gradient
takes the norm for a constant, so it is not that of the loss, and differentiating it again gives no second derivative.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt

from safeguard.config import MethodConfig
from safeguard.finetune.peft import PeftFineTuner


class DoRAConfig(MethodConfig):
    """Settings of DoRA."""

    rank: PositiveInt = 4
    """Rank of every update; alpha equals it."""


class DoRA(PeftFineTuner):
    """Trains B, A and m."""

    Config: ClassVar = DoRAConfig
    config: DoRAConfig
    twice_differentiable = False

    def adapter(self, targets: list[str]) -> Any:
        """Factors of the declared rank, and magnitudes."""
        from peft import LoraConfig

        rank = self.config.rank
        return LoraConfig(r=rank, lora_alpha=rank, use_dora=True, target_modules=targets)
