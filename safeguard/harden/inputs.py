"""What a hardening reads, so that what it writes can be kept apart from it."""

from __future__ import annotations

from pathlib import Path

from safeguard.cache import cache_dir
from safeguard.files import check_apart
from safeguard.policy.schema import Policy

_FOLDERS = ("checkpoint", "examples")
"""Settings of detectors and unlearners that name a folder of the user's."""


def check_output(out: Path, policy_path: Path, policy: Policy, base: Path) -> None:
    """Refuse, before any work, an output that would replace something the hardening reads.

    Raises:
        UsageFault: it is, lies inside or holds the base model, the policy, the suite, a detector's checkpoint, example
            images, or the cache.
    """
    check_apart(out, base, "the base model")
    check_apart(out, policy_path, "the policy")
    check_apart(out, cache_dir(), "the cache")
    for method in (policy.harden.unlearner, policy.harden.resilience, *(one.detector for one in policy.concepts)):
        for name in _FOLDERS:
            value = method.settings.get(name)
            if isinstance(value, str) and value and Path(value).exists():
                check_apart(out, Path(value), f"the {name} of {method.name}")
    if Path(policy.certification.suite).is_file():
        check_apart(out, Path(policy.certification.suite), "the suite")
