"""What the verdict and the report are made of, beside the units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safeguard import __version__
from safeguard.certify.basis import evidence_paths
from safeguard.certify.evidence import Evidence
from safeguard.policy.suite import suite_digest
from safeguard.probe.campaign import Campaign
from safeguard.provenance import code_revision, environment
from safeguard.results.hardening import RECORD_FILE, read_record
from safeguard.results.provenance import Attempt, Provenance
from safeguard.results.report import Diagnostics
from safeguard.results.run_plan import RunPlan
from safeguard.results.unit import UnitResult


def diagnostics_of(model_path: Path) -> Diagnostics | None:
    """What the record of the hardening says; none: the directory has none."""
    record = read_record(model_path)
    if record is None:
        return None
    return Diagnostics(
        unlearner=record.unlearner.name,
        objective=record.resilience.name,
        seconds=record.seconds,
        series=record.series,
        notes=record.notes,
    )


def evidence_of(
    campaign: Campaign,
    results: Sequence[UnitResult],
    provenance: Provenance,
    diagnostics: Diagnostics | None,
    earlier: list[Attempt],
) -> Evidence:
    """All of a campaign's."""
    return Evidence(
        policy=campaign.policy,
        suite=campaign.suite,
        units=list(results),
        calibrations=campaign.judges.calibrations,
        detector_lines=campaign.judges.lines,
        metrics=campaign.judges.metrics,
        provenance=provenance,
        diagnostics=diagnostics,
        attempts=earlier,
        dropped_prompts=campaign.appointed.dropped,
        evidence_paths=evidence_paths(results),
        components=campaign.components,
        erasers=campaign.erasers,
        truncated=campaign.truncated,
        schedules=campaign.schedules,
    )


def provenance_of(
    campaign: Campaign, plan: RunPlan, started: str, seconds: float, run: int, reused: int, again: bool
) -> Provenance:
    """Of a campaign that was carried out.

    Args:
        run, reused: how many units.
        again: whether the run directory had finished with the same nonce.
    """
    return Provenance(
        model=campaign.model_dir.name,
        model_digest=campaign.digests["hardened"],
        base_model=campaign.policy.model,
        base_digest=campaign.digests["base"],
        policy=campaign.policy.name,
        policy_digest=campaign.appointed.digest,
        suite=campaign.suite.name,
        suite_digest=suite_digest(campaign.suite),
        safeguard_version=__version__,
        code_revision=code_revision(),
        environment=environment() | {"device": campaign.device},
        started=started,
        seconds=seconds,
        units_run=run,
        units_reused=reused,
        files=campaign.files,
        policy_source=campaign.appointed.source,
        travelling_policy=campaign.appointed.travelling,
        hardening_record=campaign.files.get(RECORD_FILE),
        nonce=plan.nonce,
        repetition=plan.repetition,
        again=again,
    )
