"""LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098): the product, by element, of two low-rank matrices.

W x + (alpha / rank) (A1 B1 * A2 B2) x, an update of rank up to rank^2; B2 = 0, so that nothing changes before the
first step.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt

from safeguard.finetune.base import PartsConfig
from safeguard.finetune.peft import PeftFineTuner


class LoHaConfig(PartsConfig):
    """Settings of LoHa."""

    rank: PositiveInt = 4
    """Rank of each of the two matrices; alpha equals it."""


class LoHa(PeftFineTuner):
    """Trains A1, B1, A2 and B2."""

    Config: ClassVar = LoHaConfig
    config: LoHaConfig

    def adapter(self, targets: list[str]) -> Any:
        """Factors of the declared rank."""
        from peft import LoHaConfig

        return LoHaConfig(r=self.config.rank, alpha=self.config.rank, target_modules=targets)
