"""Merged with a fine-tune of the base, as checkpoint mergers do: add difference and weighted sum; needs the base.

theta_B is a fine-tune of the *base* theta_0 on benign images, theta_h the certified model.

* add difference: theta_h + w (theta_B - theta_0);
* weighted sum: (1 - w) theta_h + w theta_B, for w <= 1/2: beyond it the result is more the other model than this one.

A merger computes no gradients and takes no steps: others trained theta_B, and whoever has the base finds its fine-tunes
beside it, so that weights and the base are all it takes. What theta_B does not have (stored erasers) stays.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from safeguard.attack.base_model import FineTuned, add, towards
from safeguard.attack.from_base import Change, FromBase, FromBaseConfig
from safeguard.config import FineTuningData, Training
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import FineTuningMethod
from safeguard.results.plan import Needs


class MergeConfig(FromBaseConfig):
    """The other model, and the weights it gets."""

    data: FineTuningData = FineTuningData(shares={"retain": 1})
    """What theta_B learnt: ``related``, ``retain``, or both."""
    method: FineTuningMethod = FineTuningMethod(name="full")
    """How: a fine-tuning method with its settings, whose adapters are put into theta_B's weights."""
    sums: list[Annotated[float, Field(gt=0, le=0.5)]] = []
    """w of the weighted sums, one variant each. A share w of the base itself is in the result, and draws what the base
    does: half of it undid every erasure that was tried, so it is asked for, or told by ``interpolation``."""
    differences: list[Annotated[float, Field(gt=0, le=1)]] = [0.3, 0.5, 1.0]
    """w of the added differences, one variant each, after the sums."""

    @classmethod
    def tiny(cls) -> Self:
        """Two steps on three images."""
        training = Training(steps=2, learning_rate=1e-3, batch_size=2)
        return cls(data=FineTuningData(shares={"retain": 1}, images=3), training=training, sums=[0.3, 0.5])

    @model_validator(mode="after")
    def _benign(self) -> MergeConfig:
        if "concept" in self.data.shares:
            raise ValueError("mergers take a benign fine-tune: on images of 'related' or 'retain', not of 'concept'")
        if not self.sums and not self.differences:
            raise ValueError("give at least one weight, in 'sums' or 'differences'")
        return self


class Merge(FromBase[MergeConfig]):
    """Merge with every weight."""

    Config: ClassVar = MergeConfig

    def needs(self) -> Needs:
        """Both models."""
        return Needs(weights=True, base_model=True)

    def covers(self) -> list[str]:
        """Merging, if the whole difference of all weights is added."""
        return ["merging"] if 1.0 in self.config.differences and self.tuner().extent == "full" else []

    def variants(self) -> list[tuple[str, Change]]:
        """Sums, then differences."""
        other = "with a fine-tune of the base, w ="
        sums = [(f"weighted sum {other} {w:g}", partial(_weighted_sum, w=w)) for w in self.config.sums]
        return [*sums, *((f"add difference {other} {w:g}", partial(_added, w=w)) for w in self.config.differences)]


def _weighted_sum(model: DiffusionModel, tuned: FineTuned, *, w: float) -> None:
    """(1 - w) theta_h + w theta_0, and w (theta_B - theta_0)."""
    towards(model, tuned.base, w)
    add(model, tuned.difference, w)


def _added(model: DiffusionModel, tuned: FineTuned, *, w: float) -> None:
    add(model, tuned.difference, w)
