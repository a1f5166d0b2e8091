"""What `safeguard verify` found: one check after the other, and every deviation by name."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field

from safeguard.results.record import Record, Verdict


class Check(Record):
    """One thing that was computed again."""

    title: str
    deviations: list[str]
    """Each in words; empty: it agrees."""


class Verification(Record):
    """A finished certification, looked at again without drawing an image."""

    version: Literal[1] = 1
    verdict: Verdict
    """As the report states it; it counts for something where everything agrees."""
    model_digest: str
    checks: list[Check]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def agrees(self) -> bool:
        """Whether there is no deviation."""
        return not any(check.deviations for check in self.checks)
