"""The unlearned-only control: the policy's unlearner without its resilience objective, as a directory in the cache."""

from __future__ import annotations

from pathlib import Path

from safeguard.cache import address, cache_dir
from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.context import set_up
from safeguard.harden.engine import harden
from safeguard.io.opening import open_directory
from safeguard.io.saving import save_pipeline
from safeguard.policy.schema import Policy, ResilienceMethod
from safeguard.progress import Progress
from safeguard.provenance import code_digest


def unlearned_only(policy: Policy, base_dir: Path, base_digest: str, device: str, progress: Progress) -> Path:
    """The control's directory; made when it is not there yet, from the checkpoint that hardening left if there is one.

    Args:
        policy: already screened.
    """
    facts = {
        "base": base_digest,
        "concepts": [concept.model_dump(mode="json") for concept in policy.concepts],
        "retain": [subject.model_dump(mode="json") for subject in policy.retain],
        "harden": policy.harden.model_dump(mode="json", exclude={"resilience"}),
        "sampler": [policy.certification.sampler_steps, policy.certification.guidance],
        "seed": policy.seed,
        "code": code_digest(),
    }
    directory = cache_dir() / "controls" / address(facts)
    if not (directory / "model_index.json").exists():
        base = open_directory(base_dir, device=device)
        model = DiffusionModel(base.pipeline, base.stored)
        context = set_up(policy, model, progress)
        harden(context, base_digest, objective=ResilienceMethod(name="none"))
        save_pipeline(model.pipeline, directory, {}, stored=model.stored, overwrite=True)
    return directory
