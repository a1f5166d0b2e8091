"""What a report embeds so that its verdict can be computed again: of the evidence, all that stands nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from safeguard.certify.evidence import Evidence
from safeguard.errors import UsageFault
from safeguard.policy.schema import Policy
from safeguard.policy.suite import Suite
from safeguard.results.report import Report
from safeguard.results.unit import UnitResult

_ELSEWHERE = {"units", "evidence_paths", "provenance", "diagnostics", "attempts", "dropped_prompts"}
"""Fields of the evidence that the report or the run directory has anyway."""
_ADAPTER = TypeAdapter(Evidence)


def embedded(evidence: Evidence) -> dict[str, Any]:
    """The evidence as data, without what stands elsewhere."""
    found: dict[str, Any] = _ADAPTER.dump_python(evidence, mode="json", exclude=_ELSEWHERE)
    return found


def evidence_paths(units: Iterable[UnitResult]) -> dict[tuple[str, int], str]:
    """Contact sheets by (unit address, effort), relative to the run directory."""
    return {
        (unit.address, point.effort): f"units/{unit.address}/{point.evidence}"
        for unit in units
        for point in unit.checkpoints
        if point.evidence
    }


def evidence_of(report: Report, units: Sequence[UnitResult]) -> Evidence:
    """The evidence that a report speaks of.

    Raises:
        UsageFault: what the report embeds is no policy, suite or other part of an evidence.
    """
    elsewhere = {
        "units": units,
        "evidence_paths": evidence_paths(units),
        "provenance": report.provenance,
        "diagnostics": report.diagnostics,
        "attempts": report.attempts[:-1],
        "dropped_prompts": report.dropped_prompts,
    }
    try:
        return _ADAPTER.validate_python({**report.basis, **elsewhere})
    except ValidationError as error:
        raise _broken(error) from error


def policy_and_suite(report: Report) -> tuple[Policy, Suite]:
    """The embedded ones.

    Raises:
        UsageFault: one of them is none.
    """
    try:
        return Policy.model_validate(report.basis.get("policy")), Suite.model_validate(report.basis.get("suite"))
    except ValidationError as error:
        raise _broken(error) from error


def _broken(error: ValidationError) -> UsageFault:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return UsageFault(
        f"basis.{field}: {first['msg']}", fix="the report was edited, or another version of safeguard wrote it"
    )
