"""What must hold of every hardened model before it is written: it changed where it should, and it still draws.

**Weights.** Every parameter and buffer of every module (denoiser, text encoders, autoencoder) is fingerprinted before
and after: one hash of its bytes each, so no second copy of the model is held. Nothing may be NaN or infinite; outside
the declared parameters everything must be the same to the last bit, and nothing may have come or gone; of the declared
parameters of a part at least half must have changed. Not all: a tensor that no gradient reaches stays as it is, such as
the last layer of SDXL's first text encoder, whose states are taken before it; these are named in the record.

**Images.** The base model and the hardened one draw the same few benign prompts from the same noise. An image is
*broken* when it has a flaw that the base model's own image for that prompt and noise has not:

* blank: its standard deviation is below :data:`safeguard.metrics.image_statistics.BLANK_STD` grey levels;
* noise: its pixels are noise (:mod:`safeguard.metrics.image_statistics`), or its latent is: at least
  :data:`LATENT_NOISE` of a channel's energy, on average, lies above a quarter of the sampling frequency. White noise
  has 1 - pi/16 = 0.80 there (never below 0.75 in 1,000 latents of 16 x 16). A decoder smoothes what it decodes, so
  noise shows here first;
* out of range: the root mean square of its latent is over :data:`LATENT_RMS`. ``scaling_factor`` makes it about 1 for
  pictures, whatever they show; latents far beyond are none that the autoencoder gives, and decode to glaring blotches.
  A network that predicts no noise leaves sqrt(1 / abar) at the first timestep, 14.6 on Stable Diffusion's schedule.

Measured, lowest, median and highest (15 steps, guidance 4; the reference model's latents are 4 x 16 x 16):

====================================  ======================  ======================
latents of                            share of fine detail    root mean square
====================================  ======================  ======================
the reference model, 96 names         0.31 - 0.55 - 0.81      0.64 - 1.11 - 1.84
its weights times 1 + 0.1 noise       0.41 - 0.58 - 0.71      0.80 - 1.02 - 1.57
its weights times 1 + 0.3 noise       0.48 - 0.62 - 0.69      1.22 - 1.53 - 2.06
its weights times 1 + 0.5 noise       0.59 - 0.64 - 0.72      2.83 - 3.33 - 4.23
its weights times 1 + 1.0 noise       0.46 - 0.52 - 0.55      19.1 - 22.3 - 27.0
its weights halved                    0.77 - 0.80 - 0.84      8.9 - 9.7 - 10.0
its last layer zero                   0.78 - 0.81 - 0.85      14.0 - 14.8 - 15.2
its weights shuffled                  0.76 - 0.78 - 0.82      16.4 - 17.5 - 18.2
random networks of noise (tests)      0.68 - 0.77 - 0.89      13.5 - 15.2 - 17.0
random networks of v (tests)          0.69 - 0.77 - 0.85      0.98 - 1.06 - 1.14
====================================  ======================  ======================

So the size tells most ruined networks, and detail those whose noise has the size of pictures. Detail alone would not do
for single small latents: 12 of the 96, in which the detector recognises 94, have 0.7 or more. That is why what the base
model's own image has is no flaw, and why a majority is asked for.

The run is refused when more than half of the images are broken. What is drawn plays no part, nor how much it differs
from the base model's picture: no flaw can be had by drawing something else, and a subject that is plain or noisy by
itself is so for the base model too. Whether the right things are drawn is for the certification to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import parts_of
from safeguard.diffusion.sampling import initial_noise, sample_latents
from safeguard.errors import TrainingFault
from safeguard.metrics.image_statistics import blank, high_frequency_share, noise
from safeguard.policy.schema import Policy
from safeguard.seeds import derive, spread

IMAGES = 8
STEPS = 15
GUIDANCE = 4.0
LATENT_NOISE = 0.7
LATENT_RMS = 3.0

FLAWS = {
    "blank": "blank images",
    "noise": "noise",
    "out of range": "latents far out of range",
}
_NOT_WRITTEN = "nothing was written"
_TOO_LITTLE = "raise the learning rate or the steps; an anchor that equals its concept leaves nothing to learn"


# -- weights --------------------------------------------------------------------------------------------------------


def tensors(pipeline: Any) -> dict[str, Tensor]:
    """Every parameter and buffer of every module, by names such as ``vae.decoder.conv_in.weight``."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in (*module.named_parameters(), *module.named_buffers())
    }


def fingerprints(pipeline: Any) -> dict[str, str]:
    """Name -> hash of dtype, shape and bytes: equal for tensors that are the same to the last bit."""
    return {name: _fingerprint(value) for name, value in tensors(pipeline).items()}


def _fingerprint(value: Tensor) -> str:
    digest = hashlib.blake2b(f"{value.dtype} {tuple(value.shape)}".encode(), digest_size=16)
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_weights(pipeline: Any, before: Mapping[str, str], intended: Collection[str]) -> dict[str, Any]:
    """Compare a hardened pipeline with its fingerprints from before.

    Args:
        pipeline: the hardened pipeline.
        before: :func:`fingerprints` of it as the base model.
        intended: names of what was to change; names that are no longer there (folded adapters) do not count.

    Returns:
        For the record: how many tensors changed and of which components, which of the intended did not, how many
        others are as they were.

    Raises:
        TrainingFault: a value is not finite, or something changed, came or went that should not have, or too little
            changed of what should have.
    """
    broken = [name for name, value in tensors(pipeline).items() if not torch.isfinite(value).all()]
    if broken:
        raise TrainingFault(
            f"{_some(broken)} became NaN or infinite, so {_NOT_WRITTEN}", fix="lower the learning rate of the method"
        )
    after = fingerprints(pipeline)
    changed = {name for name, value in after.items() if before.get(name) != value}
    foreign = sorted((changed | (before.keys() - after.keys())) - set(intended))
    if foreign:
        verb = "went" if foreign[0] not in after else "changed" if foreign[0] in before else "came"
        raise TrainingFault(
            f"{_some(foreign)} {verb}, which the method does not declare, so {_NOT_WRITTEN}",
            fix="this is a defect of the unlearner or objective: its parameters() must name all that it changes",
        )
    if not changed:
        raise TrainingFault(f"hardening changed nothing, so {_NOT_WRITTEN}", fix=_TOO_LITTLE)
    due = sorted(name for name in intended if name in after)
    for part in {name.partition(".")[0] for name in due}:
        here = [name for name in due if name.startswith(f"{part}.")]
        still = [name for name in here if name not in changed]
        if 2 * len(still) > len(here):
            raise TrainingFault(
                f"{len(still)} of the {len(here)} tensors of {part} that hardening was to change are as they were, "
                f"so {_NOT_WRITTEN}",
                fix=_TOO_LITTLE,
            )
    unchanged = [name for name in due if name not in changed]
    return {
        "changed": len(changed),
        "components": sorted(parts_of(changed)),
        "unchanged": unchanged,
        "untouched": len(after) - len(changed),
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"{names[0]}{more}"


# -- images ---------------------------------------------------------------------------------------------------------


def benign_prompts(policy: Policy) -> list[str]:
    """:data:`IMAGES` prompts of retained subjects; without any, of related ones; without these, the empty prompt."""
    prompts = [prompt for subject in policy.retain or policy.related for prompt in subject.prompt_list] or [""]
    return spread(prompts, IMAGES, derive(policy.seed, "check prompts"))


def flaws(latents: Tensor, images: np.ndarray) -> dict[str, np.ndarray]:
    """Flaw -> whether each image has it, (n,).

    Args:
        latents: (n, c, h, w), scaled.
        images: what they decode to, uint8 (n, height, width, 3).
    """
    values = latents.float().cpu().numpy()
    finite = np.isfinite(values).all(axis=(1, 2, 3))
    values = np.where(finite[:, None, None, None], values, 0)
    size = np.sqrt((values.astype(np.float64) ** 2).mean(axis=(1, 2, 3)))
    count, channels, height, width = values.shape
    fine = high_frequency_share(values.reshape(-1, height, width, 1)).reshape(count, channels).mean(axis=1)
    return {
        "blank": blank(images),
        "noise": noise(images) | (fine >= LATENT_NOISE),
        "out of range": ~finite | (size > LATENT_RMS),
    }


@torch.no_grad()
def _draw(model: DiffusionModel, prompts: list[str], seeds: list[int]) -> dict[str, np.ndarray]:
    prompt = model.encode_anew(prompts)
    latents = sample_latents(model, prompt, initial_noise(model, seeds), steps=STEPS, guidance=GUIDANCE)
    return flaws(latents, model.decode(latents))


def check_images(base: DiffusionModel, hardened: DiffusionModel, prompts: list[str], seed: int) -> dict[str, Any]:
    """Draw benign prompts with the base model and the hardened one, and compare.

    Returns:
        For the record: the prompts, how many images of each model have each flaw, how many had one before, and how
        many are broken.

    Raises:
        TrainingFault: the hardened model draws nothing any more.
    """
    seeds = [derive(seed, "check image", index) for index in range(len(prompts))]
    before, after = (_draw(model, prompts, seeds) for model in (base, hardened))
    healthy = ~np.any(list(before.values()), axis=0)
    broken = int((np.any(list(after.values()), axis=0) & healthy).sum())
    if 2 * broken > len(prompts):
        worst = max(after, key=lambda flaw: (after[flaw] & healthy).sum())
        raise TrainingFault(
            f"the hardened model draws {FLAWS[worst]} for {broken} of {len(prompts)} benign prompts such as "
            f"{prompts[0]!r}, where the base model draws pictures, so {_NOT_WRITTEN}",
            fix="lower the learning rate or the steps, or raise the weight of preservation",
        )
    return {
        "prompts": prompts,
        "base": {flaw: int(found.sum()) for flaw, found in before.items()},
        "hardened": {flaw: int(found.sum()) for flaw, found in after.items()},
        "flawed_before": int((~healthy).sum()),
        "broken": broken,
    }
