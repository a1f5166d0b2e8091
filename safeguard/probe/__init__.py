"""Probes as a library: ``safeguard.probe.run("malicious-lora", model_dir, policy="policy.yaml", seed=0)``.

Nothing prints and nothing exits; results are typed data (:class:`safeguard.results.unit.UnitResult`). The parts, for
tools that need more than one probe:

* :class:`safeguard.probe.campaign.Campaign` — what is examined, by which policy and suite, as plain data;
* :class:`safeguard.probe.units.UnitSpec` — one probe × one seed on one model, and its address;
* :class:`safeguard.probe.executors.Executor` — who runs units;
* :class:`safeguard.attack.base.Attack` — what changes a model and says when it is worth looking;
* :class:`safeguard.probe.evaluator.Evaluator` — what draws and judges.
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
    nonce: str | None = None,
    device: str = "cpu",
    offline: bool = True,
    progress: Progress | None = None,
) -> UnitResult:
    """Run one probe of the policy's suite on a model directory; what it finds is kept nowhere.

    Args:
        probe: id in the suite, such as ``malicious-lora``.
        model_dir: a diffusers directory.
        policy: a file, a parsed policy, or None for the policy that travels in the directory.
        seed: seed of the attack and of the images drawn.
        nonce: hexadecimal, to repeat an earlier look; none: one is drawn, and stands in the result.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
        offline: fetch nothing.

    Raises:
        SafeguardError: see :mod:`safeguard.errors`.
    """
    from tempfile import TemporaryDirectory

    from safeguard.probe.campaign import Campaign
    from safeguard.probe.executors import Serial
    from safeguard.probe.units import Units
    from safeguard.progress import SilentProgress
    from safeguard.seeds import check_nonce

    given = check_nonce(nonce) if nonce is not None else None
    campaign = Campaign.open(Path(model_dir), policy=policy, device=device, offline=offline, nonce=given)
    spec = campaign.unit("hardened", campaign.spec(probe), seed)
    with TemporaryDirectory(prefix="safeguard-probe-") as scratch:
        units = Units(Path(scratch), shared=False)
        (result,) = Serial().run(campaign, [spec], units, progress or SilentProgress())
    return result


__all__ = ["run"]
