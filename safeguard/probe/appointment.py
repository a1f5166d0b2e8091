"""Which policy is applied, and who chose it: whoever delivers a model must not choose its exam unseen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safeguard.data.screening import screen
from safeguard.errors import ModelFault, SafeguardError, UsageFault
from safeguard.policy.consistency import contradictions
from safeguard.policy.loading import load_policy, policy_digest
from safeguard.policy.schema import Policy
from safeguard.policy.validation import fault
from safeguard.results.hardening import POLICY_FILE
from safeguard.results.origins import UNREADABLE, whose
from safeguard.results.provenance import PolicySource


@dataclass(frozen=True)
class Appointed:
    """A policy as it is applied.

    Attributes:
        policy: without the prompts that the content filter removes.
        dropped: how many these are.
        file: where it was read; none: it was given as an object.
        digest: of the policy as it is applied.
        travelling: the same of the one in the model directory; none: there is none.
    """

    policy: Policy
    dropped: int
    file: Path | None
    source: PolicySource
    digest: str
    travelling: str | None

    @property
    def sentence(self) -> str:
        """Whose policy it is."""
        return whose(self.policy.name, self.source, self.digest, self.travelling)


def appoint(model_dir: Path, policy: str | Path | Policy | None, pin: str | None = None) -> Appointed:
    """The given policy, or the one inside the directory.

    Args:
        pin: the digest that it must have, or at least sixteen digits of its beginning; none: any.

    Raises:
        ModelFault: no policy was given, and the directory has none.
        PolicyFault: an invalid policy.
        UsageFault: it is another policy than the pinned one.
    """
    inside = model_dir / POLICY_FILE
    if policy is None and not inside.exists():
        raise ModelFault(
            f"the directory carries no {POLICY_FILE}",
            fix="say which policy it must meet with --policy FILE",
            where=str(model_dir),
        )
    if isinstance(policy, Policy) and (problems := list(contradictions(policy))):
        raise fault(problems, None)
    file = None if isinstance(policy, Policy) else Path(policy) if policy is not None else inside
    applied, dropped = screen(policy if isinstance(policy, Policy) else load_policy(file or inside))
    digest = policy_digest(applied)
    if pin is not None:
        _check_pin(pin, digest, file)
    travelling = digest if policy is None else _travelling(inside)
    return Appointed(applied, dropped, file, "travelled" if policy is None else "given", digest, travelling)


def _travelling(inside: Path) -> str | None:
    if not inside.exists():
        return None
    try:
        return policy_digest(screen(load_policy(inside))[0])
    except SafeguardError:
        return UNREADABLE


def _check_pin(pin: str, digest: str, file: Path | None) -> None:
    if len(pin) < 16 or not digest.startswith(pin.lower()):
        raise UsageFault(
            f"the policy's digest is {digest}, not {pin}",
            fix="give the policy that was agreed upon with --policy FILE, or at least 16 digits of its digest",
            where=str(file or "policy"),
        )
