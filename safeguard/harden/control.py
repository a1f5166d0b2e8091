"""The weakly erased control, as a directory in the cache: on it the attacks must succeed.

It is the policy's unlearner without its resilience objective; where a policy has no such objective, and so the
unlearner itself is certified, a closed-form edit that is made in seconds (UCE).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from safeguard.cache import address, cache_dir
from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.context import set_up
from safeguard.harden.engine import build, harden, phase_key
from safeguard.io.checkpoint import held
from safeguard.io.opening import open_directory
from safeguard.io.saving import save_pipeline
from safeguard.policy.schema import Policy, ResilienceMethod
from safeguard.policy.suite import weak_unlearner
from safeguard.progress import Progress


def unlearned_only(
    policy: Policy, base_dir: Path, base_digest: str, device: str, progress: Progress, *, fresh: bool = False
) -> Path:
    """The control's directory; made when it is not there yet, from the checkpoint that hardening left if there is one.

    Args:
        policy: already screened.
        fresh: make it anew, from no checkpoint.
    """
    weak = policy.harden.model_copy(update={"unlearner": weak_unlearner(policy)})
    policy = policy.model_copy(update={"harden": weak})
    directory = cache_dir() / "controls" / _address(policy, base_dir, base_digest, device, progress)
    busy = "another run is making the unlearned-only control; waiting for it"
    with held(directory, partial(progress.note, busy)):
        if fresh or not (directory / "model_index.json").exists():
            base = open_directory(base_dir, device=device)
            model = DiffusionModel(base.pipeline, base.stored)
            harden(set_up(policy, model, progress), base_digest, objective=ResilienceMethod(name="none"), fresh=fresh)
            save_pipeline(model.pipeline, directory, {}, stored=model.stored, overwrite=fresh)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what is held here is lost to the processes that run units
    return directory


def _address(policy: Policy, base_dir: Path, base_digest: str, device: str, progress: Progress) -> str:
    """Of all that determines the control: that of the unlearner's phase, its own files and detectors included."""
    base = open_directory(base_dir, device=device)
    context = set_up(policy, DiffusionModel(base.pipeline, base.stored), progress)
    return address(phase_key(context, base_digest, build(policy.harden.unlearner, context)))
