"""LoKr (LyCORIS, Yeh et al. 2023, arXiv 2309.14859): a Kronecker product of a small and a low-rank matrix.

W x + (alpha / rank) (W1 kron B A) x, with W1 and B A the most nearly square factors of W's shape, and B A one full
matrix where the rank would not make it smaller; W1 = 0, so that nothing changes before the first step.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt

from safeguard.finetune.base import PartsConfig
from safeguard.finetune.peft import PeftFineTuner


class LoKrConfig(PartsConfig):
    """Settings of LoKr."""

    rank: PositiveInt = 4
    """Rank of the second matrix; alpha equals it."""


class LoKr(PeftFineTuner):
    """Trains W1, B and A."""

    Config: ClassVar = LoKrConfig
    config: LoKrConfig

    def adapter(self, targets: list[str]) -> Any:
        """Factors of the declared rank."""
        from peft import LoKrConfig

        return LoKrConfig(r=self.config.rank, alpha=self.config.rank, target_modules=targets)
