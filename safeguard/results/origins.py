"""Where a report comes from, in words: who chose the exam, and who could know its seeds."""

from __future__ import annotations

from safeguard.results.provenance import PolicySource, Provenance

UNREADABLE = "unreadable"
"""In the place of a digest: a policy lies in the model directory and cannot be read."""


def whose(name: str, source: PolicySource, digest: str, travelling: str | None) -> str:
    """The sentence that ``certify`` begins with.

    Args:
        name: of the policy that was applied.
        source: where it came from.
        digest: of the policy that was applied.
        travelling: digest of the policy in the model directory; none: there is none.
    """
    if source == "travelled":
        return f"policy {name}, which travelled in the model directory: whoever delivers the model chose this exam"
    if travelling == digest:
        return f"policy {name}, given to certify: the same as the one the model was hardened with"
    if travelling is None:
        return f"policy {name}, given to certify: the model directory carries none"
    if travelling == UNREADABLE:
        return f"policy {name}, given to certify: the one in the model directory cannot be read"
    return f"policy {name}, given to certify: not the one the model was hardened with"


def policy(provenance: Provenance) -> str:
    """Whose policy was applied."""
    return whose(provenance.policy, provenance.policy_source, provenance.policy_digest, provenance.travelling_policy)


def nonce(provenance: Provenance) -> str:
    """Where the nonce came from."""
    if provenance.repetition:
        return "given, not drawn: this repeats an earlier run, and its seeds may have been known before"
    if provenance.again:
        return "drawn for an earlier run in this directory, which had finished: the same evidence, looked at again"
    return "drawn after the model’s digest was fixed"
