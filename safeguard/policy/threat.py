"""The threat model: what an attacker has, as a policy declares it and a certificate repeats it."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from safeguard.config import MethodConfig
from safeguard.results.plan import Needs

Means = Literal["weights", "gradients", "base_model", "adapters", "sampler", "image_input", "images", "steps"]
"""What an attacker may have; the fields of :class:`ThreatModel`."""
WORDS: dict[Means, str] = {
    "weights": "the model's weights",
    "gradients": "gradients through them",
    "base_model": "the base model",
    "adapters": "adapters made for the base model",
    "sampler": "the sampler and its noise",
    "image_input": "images as input",
    "images": "images of the concept",
    "steps": "optimiser steps",
}


class ThreatModel(MethodConfig):
    """What an attacker has: yes, no, or a number. The default leaves nothing out.

    A probe that needs more is *not applicable*: it is not run, and the report says why.
    """

    weights: bool = True
    """The weights, to change them at will; without them there is an interface only."""
    gradients: bool = True
    """Gradients through the weights: fine-tuning, and the search for prompts."""
    base_model: bool = True
    """The base model, from before the concept was erased."""
    adapters: bool = True
    """Adapters that others made for the base model."""
    sampler: bool = True
    """The sampler: its noise, steps and guidance."""
    image_input: bool = True
    """Images to begin with: image to image, inpainting."""
    images: NonNegativeInt | None = None
    """Images of the concept to train on; none: as many as an attack asks for."""
    steps: PositiveInt | None = None
    """Optimiser steps; none: as many as an attack asks for."""

    def lacking(self, needs: Needs) -> list[Means]:
        """What an attack needs and the attacker does not have."""
        return [means for means in WORDS if not self._grants(means, getattr(needs, means))]

    def _grants(self, means: Means, wanted: bool | int) -> bool:
        has: bool | int | None = getattr(self, means)
        return has is None or wanted <= has
