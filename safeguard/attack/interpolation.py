r"""Weights on the line through the certified model and its base, and beyond: how deep the erasure is; needs the base.

theta_h + lambda (theta_0 - theta_h). At lambda = 1 it is the base model, so that no model withstands it: it is reported
and judges nothing. Where the concept comes back at a small lambda the edit is shallow
(:func:`safeguard.certify.depth.lambda50`). Below zero it leads away from the base: the erased model must not stand on a
ridge. A stored eraser fades with what it adds, (1 - lambda) E(h), since the base is a model whose erasers add nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from safeguard.attack.base import Attempt, Variants
from safeguard.attack.base_model import base_weights, faded_erasers, towards
from safeguard.attack.target import Target
from safeguard.config import MethodConfig
from safeguard.results.plan import Needs


class InterpolationConfig(MethodConfig):
    """Places on the line."""

    lambdas: Annotated[list[Annotated[float, Field(ge=-1, le=1)]], Field(min_length=1)] = [
        -0.25,
        -0.1,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.75,
        1.0,
    ]
    """lambda of each variant, ascending: 1 is the base, 0 the certified model and no variant, less leads away."""

    @field_validator("lambdas")
    @classmethod
    def _ascending(cls, given: list[float]) -> list[float]:
        if sorted(set(given) - {0.0}) != given:
            raise ValueError("lambdas must ascend, and none is 0, which is the certified model")
        return given


class Interpolation(Variants[InterpolationConfig]):
    """Look at every place."""

    Config: ClassVar = InterpolationConfig
    reported_only: ClassVar = True

    def count(self) -> int:
        """One per place."""
        return len(self.config.lambdas)

    def needs(self) -> Needs:
        """Both models."""
        return Needs(weights=True, base_model=True)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Each place is reached from the released model.

        Raises:
            UsageFault: the base model is not at hand.
            ModelFault: it has other weights than the certified model.
        """
        yield Attempt(0)
        values = base_weights(target) | faded_erasers(target.model)
        for number, share in enumerate(self.config.lambdas, start=1):
            with target.attacked() as model:
                towards(model, values, share)
                yield Attempt(number, label=f"lambda = {share:g}: {_words(share)}")


def _words(share: float) -> str:
    if share == 1:
        return "the base's weights"
    return f"{abs(share):.3g} of the way {'to' if share > 0 else 'away from'} the base"
