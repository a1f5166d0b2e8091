"""Carry out what was ordered: plan, units, log of attempts, verdict, report."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from safeguard.certification.facts import diagnostics_of, evidence_of, provenance_of
from safeguard.certification.preparation import Order, Past, entry, finished, known, make_plan, planned_units
from safeguard.certify.assessment import assess
from safeguard.certify.basis import embedded
from safeguard.certify.planning import impossible
from safeguard.data.own_images import refused_rows
from safeguard.errors import ModelFault
from safeguard.files import check_apart, write_text
from safeguard.harden.control import unlearned_only
from safeguard.io.manifest import difference, manifest
from safeguard.policy.loading import resolved_yaml
from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Executor, choose
from safeguard.probe.units import Units
from safeguard.progress import Progress
from safeguard.report.writing import write_all
from safeguard.results.attempts import attempts
from safeguard.results.hardening import POLICY_FILE
from safeguard.results.merkle import rows_root
from safeguard.results.provenance import Integrity, RunUnit
from safeguard.results.report import Report
from safeguard.results.unit import UNIT_FILE, UnitResult


def carry_out(order: Order, progress: Progress) -> Report:
    """Run what was ordered, judge it, and write the report.

    Raises:
        SafeguardError: unreadable record, plan or log; edited units; a model that changes meanwhile.
    """
    run_dir, clock = order.run_dir, time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    check_apart(run_dir, order.model_dir)
    diagnostics = diagnostics_of(order.model_dir)  # first: a record that cannot be read would be found after hours
    campaign = order.campaign()
    check_apart(run_dir, campaign.directories["base"], "the base model")
    past = known(campaign, order)
    _tell(campaign, past, progress)
    write_text(run_dir / POLICY_FILE, resolved_yaml(campaign.policy))
    executor = choose(order.workers, campaign.device, order.model_dir)
    with _training_sets(campaign, order.fresh) as campaign:
        campaign = _with_control(campaign, order.fresh, progress)
        plan = make_plan(campaign, order, past, started)
        campaign = replace(campaign, nonce=plan.nonce)
        plan = plan.model_copy(update={"units": planned_units(campaign)})
        again = finished(past, plan)
        if again:
            progress.note("this run had finished: the same evidence is looked at again; --fresh draws new seeds")
        written = plan.write(run_dir)
        past.history.add(entry(past.history, plan, started, None))
        results, reused = _run(campaign, Units(run_dir, fresh=order.fresh), executor, progress)
    _unchanged(campaign)
    seconds = time.monotonic() - clock
    provenance = provenance_of(campaign, plan, started, seconds, len(results) - len(reused), len(reused), again)
    evidence = evidence_of(campaign, results, provenance, diagnostics, attempts(past.entries, unless=plan.nonce))
    report = assess(evidence)
    line = past.history.add(entry(past.history, plan, started, report.verdict))
    integrity = Integrity(
        plan=written,
        rows=sum(len(unit.rows) for unit in results),
        rows_root=rows_root(results),
        log=line,
        log_problems=past.problems,
    )
    report = report.model_copy(
        update={
            "planned": plan.units,
            "run": [_run_unit(run_dir, unit, unit.address in reused) for unit in results],
            "integrity": integrity,
            "basis": embedded(evidence),
        }
    )
    write_all(report, run_dir)
    return report


def _tell(campaign: Campaign, past: Past, progress: Progress) -> None:
    if dropped := campaign.appointed.dropped:
        progress.note(f"content filter: {dropped} prompts dropped before any image was generated")
    if refused := refused_rows(campaign.suite):
        progress.note(f"content filter: {refused} rows of image folders dropped before any of their images was opened")
    for problem in past.problems:
        progress.note(problem)
    judges = campaign.judges
    for why in impossible(campaign.policy, campaign.suite, campaign.schedules, judges.calibrations):
        progress.note(f"no model can pass: {why}")


@contextmanager
def _training_sets(campaign: Campaign, fresh: bool) -> Iterator[Campaign]:
    """The campaign; a fresh one draws the images that attacks train on anew."""
    if not fresh:
        yield campaign
        return
    with tempfile.TemporaryDirectory(prefix="safeguard-data-") as folder:
        yield replace(campaign, training_sets=Path(folder))


def _with_control(campaign: Campaign, fresh: bool, progress: Progress) -> Campaign:
    """The campaign with the weakly erased model."""
    base_dir, base_digest = campaign.directories["base"], campaign.digests["base"]
    control = unlearned_only(campaign.policy, base_dir, base_digest, campaign.device, progress, fresh=fresh)
    return campaign.with_control(control)


def _run(
    campaign: Campaign, units: Units, executor: Executor, progress: Progress
) -> tuple[list[UnitResult], frozenset[str]]:
    """Results of all units in their order, and the addresses of those that were found finished."""
    specs, examination = campaign.units(), campaign.examination
    found = {spec.address: result for spec in specs if (result := units.find(spec.address, examination))}
    reused = frozenset(found)
    todo = [spec for spec in specs if spec.address not in found]
    if todo:
        found |= {result.address: result for result in executor.run(campaign, todo, units, progress)}
    return [found[spec.address] for spec in specs], reused


def _run_unit(run_dir: Path, unit: UnitResult, reused: bool) -> RunUnit:
    content = (run_dir / "units" / unit.address / UNIT_FILE).read_bytes()
    return RunUnit(address=unit.address, digest=hashlib.sha256(content).hexdigest(), reused=reused)


def _unchanged(campaign: Campaign) -> None:
    changes = difference(campaign.files, manifest(campaign.model_dir))
    if changes:
        raise ModelFault(
            f"the model directory changed while it was examined: {'; '.join(changes[:3])}",
            fix="certify a directory nobody writes to",
            where=str(campaign.model_dir),
        )
