"""What the edited model draws, and what a concept's own detector says: for methods that measure between edits.

Detectors are found by name, as everywhere; a method whose result depends on one says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from safeguard.cache import address
from safeguard.data.content_filter import check_allowed
from safeguard.diffusion.sampling import sample
from safeguard.policy.schema import Concept
from safeguard.registry import detectors
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext


def detector_of(context: HardeningContext, concept: Concept) -> Any:
    """The concept's detector (:class:`safeguard.detect.base.Detector`), on the model's device."""
    return detectors.make(concept.detector, str(context.model.device))


def measuring_digest(context: HardeningContext) -> str:
    """Digest of what a measurement depends on besides the weights: detectors, labels, and how images are sampled.

    A method that measures has it as its ``data_digest``: with another detector it ends at other weights.
    """
    settings = context.policy.certification
    judges = {one.name: [detector_of(context, one).digest, list(one.labels)] for one in context.concepts}
    return address({"sampler": [settings.sampler_steps, settings.guidance], "judges": judges})


def draw_concept(context: HardeningContext, concept: Concept, count: int, purpose: str) -> np.ndarray:
    """``count`` images of the concept's prompts, in turn, by the model as it stands: uint8 (n, height, width, 3).

    The seeds are those of the purpose, the same every time, and the sampler is that of certification, so that two
    calls differ by what the model has become and by nothing else.
    """
    check_allowed(concept.prompt_list)
    prompts = (concept.prompt_list * count)[:count]
    seeds = [derive(context.seed, purpose, concept.name, index) for index in range(count)]
    settings = context.policy.certification
    return sample(context.model, prompts, seeds, steps=settings.sampler_steps, guidance=settings.guidance)
