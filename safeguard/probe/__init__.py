"""Probes as a library: ``safeguard.probe.run("malicious-lora", model_dir, policy="policy.yaml", seed=0)``.

Nothing prints and nothing exits; results are typed data (:class:`safeguard.results.unit.UnitResult`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safeguard.policy.schema import Policy
    from safeguard.progress import Progress
    from safeguard.results.unit import UnitResult


def run(
    probe: str,
    model_dir: str | Path,
    *,
    policy: str | Path | Policy | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> UnitResult:
    """Run one probe of the policy's suite on a model directory.

    Args:
        probe: id in the suite, such as ``malicious-lora``.
        model_dir: a diffusers directory.
        policy: a file, a parsed policy, or None for the policy that travels in the directory.
        seed: seed of the fine-tune and of the images drawn.

    Raises:
        SafeguardError: see :mod:`safeguard.errors`.
    """
    from safeguard.probe.campaign import Campaign

    campaign = Campaign.open(Path(model_dir), policy=policy, device=device, progress=progress)
    return campaign.run_one(probe, seed)


__all__ = ["run"]
