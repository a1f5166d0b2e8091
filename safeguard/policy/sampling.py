"""When one may stop drawing images of a checkpoint: after a number fixed beforehand, or as soon as they decide."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from safeguard.config import MethodConfig

Shape = Literal["obrien-fleming", "pocock"]
"""How the error is spent over the looks: nearly all of it at the last, or evenly."""


class FixedSampling(MethodConfig):
    """All images are drawn, then one looks once: ``{name: fixed}``."""

    name: Literal["fixed"] = "fixed"


class SpendingSampling(MethodConfig):
    """Looks at planned, equally spaced numbers of images, which share the error:
    ``{name: spending, looks: 4, shape: obrien-fleming}``."""

    name: Literal["spending"]
    looks: Annotated[int, Field(ge=2, le=5)] = 4
    """How often one looks; the last look is at all the images. Beyond five there is little left to save."""
    shape: Shape = "obrien-fleming"
    """``obrien-fleming`` keeps nearly the whole error for the last look, ``pocock`` stops good models earlier."""


class SequenceSampling(MethodConfig):
    """Bounds that hold after every image at once, so one may stop at any time: ``{name: confidence-sequence}``."""

    name: Literal["confidence-sequence"]
    looks: Annotated[int, Field(ge=2, le=100)] = 10
    """How often one looks until the images of the policy are drawn."""


Sampling = Annotated[FixedSampling | SpendingSampling | SequenceSampling, Field(discriminator="name")]
"""How many images of a checkpoint are drawn; the policy's ``samples`` (or the probe's) are the most."""
