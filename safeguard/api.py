"""The verbs as functions: :func:`harden`, :func:`plan` and :func:`certify`; they only compose what the rooms do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safeguard import __version__
from safeguard.certify import planning
from safeguard.certify.assessment import assess
from safeguard.certify.evidence import Evidence
from safeguard.data.screening import screen
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import ModelFault, UsageFault
from safeguard.files import check_apart, run_directory, write_text
from safeguard.harden import engine
from safeguard.harden.context import set_up
from safeguard.harden.control import unlearned_only
from safeguard.harden.inputs import check_output
from safeguard.harden.record import Record
from safeguard.io.companions import Companions
from safeguard.io.hub import network, resolve
from safeguard.io.manifest import POLICY_FILE, difference, manifest, model_digest
from safeguard.io.opening import open_directory, pick_device
from safeguard.io.saving import check_target, save_pipeline
from safeguard.policy.loading import load_policy, policy_digest, resolved_yaml
from safeguard.policy.methods import check_methods
from safeguard.policy.schema import Policy
from safeguard.policy.suite import suite_digest
from safeguard.probe.calibrations import calibrations
from safeguard.probe.campaign import Campaign, find_policy, fitting_suite
from safeguard.probe.executors import Executor, choose
from safeguard.probe.memory import memory
from safeguard.probe.units import Units
from safeguard.processes import join
from safeguard.progress import Progress, SilentProgress
from safeguard.provenance import code_revision, environment
from safeguard.report.writing import write_all
from safeguard.results.attempts import earlier, remember
from safeguard.results.hardening import RECORD_FILE, HardeningRecord, read_record
from safeguard.results.plan import Plan
from safeguard.results.report import Attempt, Diagnostics, Provenance, Report
from safeguard.results.unit import UnitResult


@dataclass(frozen=True)
class HardenedModel:
    """What :func:`harden` wrote."""

    path: Path
    digest: str
    """What identifies it: the digest of everything but the record."""
    record: dict[str, Any]
    """The hardening record, as in ``hardening.json``."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _record(policy: Policy, record: Record, base_digest: str, started: str) -> HardeningRecord:
    return HardeningRecord.model_validate(
        {
            "policy": policy.name,
            "policy_digest": policy_digest(policy),
            "base_model": policy.model,
            "base_digest": base_digest,
            "unlearner": policy.harden.unlearner.model_dump(),
            "resilience": policy.harden.resilience.model_dump(),
            "seed": policy.seed,
            "started": started,
            "environment": environment(),
            **asdict(record),
        }
    )


def _checked(path: Path, progress: Progress) -> tuple[Policy, Policy]:
    """A policy as declared, and the same without the prompts that the content filter drops."""
    declared = load_policy(path)
    check_methods(declared, path)
    fitting_suite(declared, path)
    policy, dropped = screen(declared)
    if dropped:
        progress.note(f"content filter: {dropped} prompts dropped before any image was generated")
    return declared, policy


def _device(name: str, cuda_graphs: bool) -> str:
    chosen = pick_device(name)
    if cuda_graphs and not chosen.startswith("cuda"):
        raise UsageFault(f"CUDA graphs record work on a GPU; the device is {chosen}", fix="leave --cuda-graphs out")
    return chosen


def harden(
    policy_path: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    fresh: bool = False,
    overwrite: bool = False,
    offline: bool = False,
    cuda_graphs: bool = False,
    progress: Progress | None = None,
) -> HardenedModel:
    """Erase the policy's concepts so that fine-tuning does not bring them back, and write a diffusers directory.

    Run again after a kill, it continues from the last checkpoint (unless ``fresh``). The directory appears complete or
    not at all, with the resolved policy and the hardening record inside.

    With ``cuda_graphs`` the denoiser's work is recorded on a GPU and replayed (:mod:`safeguard.diffusion.graphs`):
    faster where batches are small, for more memory.

    Processes that ``accelerate launch`` or ``torchrun`` started work on it together; the main one writes and reports,
    and all return the same.

    Raises:
        SafeguardError: invalid policy, refused base model, unusable result, unwritable output.
    """
    processes, device = join(device)
    progress, target, started = progress if progress and processes.main else SilentProgress(), Path(out), _now()
    declared, policy = _checked(Path(policy_path), progress)
    chosen = _device(device, cuda_graphs)
    base_dir = resolve(policy.model, policy.revision, offline=offline)
    check_output(target, Path(policy_path), policy, base_dir)
    if processes.main:
        check_target(target, overwrite)
    base = open_directory(base_dir, device=chosen)
    model = DiffusionModel(base.pipeline, base.stored)
    model.execution.replays = cuda_graphs
    context = set_up(policy, model, progress, processes)
    with network(not offline):
        record = engine.harden(context, base.digest, fresh=fresh)
    written = None
    if processes.main:
        companions = Companions.of(base)
        record.notes += companions.notes
        facts = _record(policy, record, base.digest, started)
        texts = {POLICY_FILE: resolved_yaml(declared), RECORD_FILE: facts.text()}
        stored = model.stored
        files = save_pipeline(model.pipeline, target, texts, stored=stored, companions=companions, overwrite=overwrite)
        written = HardenedModel(target, model_digest(target, files), facts.model_dump(mode="json"))
    return processes.broadcast_object(written)


def plan(model_dir: str | Path, *, policy: str | Path | Policy | None = None, device_memory: int | None = None) -> Plan:
    """What certifying a model would cost and could show; nothing is run.

    Args:
        device_memory: bytes of a device, to count what fits it; none: memory is not counted.
    """
    declared, _ = screen(find_policy(Path(model_dir), policy))
    suite, schedules = fitting_suite(declared, Path(policy) if isinstance(policy, str | Path) else None)
    known, absent = calibrations(declared)
    planned = planning.plan(declared, suite, schedules, known)
    planned = planned.model_copy(update={"warnings": [*planned.warnings, *absent]})
    if device_memory is None:
        return planned
    needed = memory(Path(model_dir), suite, device_memory)
    return planned.model_copy(update={"memory": needed, "device_memory": device_memory})


def certify(
    model_dir: str | Path,
    *,
    policy: str | Path | Policy | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    offline: bool = True,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> Report:
    """Attack the model as downstream users and adversaries will, and say whether the policy holds.

    Units that are finished in ``out`` (by default :func:`safeguard.files.run_directory`) are not run again.

    Args:
        workers: units run at the same time, each in a process of its own; none: one per GPU, or per core as far as
            memory goes. Processes import the script that starts them: more than one needs the usual
            ``if __name__ == "__main__":`` around it.

    Raises:
        SafeguardError: invalid policy or suite, refused model, unwritable output.
    """
    model_path, progress = Path(model_dir).resolve(), progress or SilentProgress()
    run_dir = Path(out) if out is not None else run_directory(model_path)
    check_apart(run_dir, model_path)
    started, clock = _now(), time.monotonic()
    diagnostics = _diagnostics(model_path)  # first: a record that cannot be read would be found after hours
    campaign = Campaign.open(model_path, policy=policy, device=device, offline=offline)
    check_apart(run_dir, campaign.directories["base"], "the base model")
    write_text(run_dir / POLICY_FILE, resolved_yaml(campaign.policy))
    if campaign.dropped_prompts:
        progress.note(f"content filter: {campaign.dropped_prompts} prompts dropped before any image was generated")
    executor = choose(workers, campaign.device, model_path)
    campaign = _with_control(campaign, progress)
    results, reused = _run(campaign, Units(run_dir), executor, progress)
    _unchanged(campaign)
    provenance = _provenance(campaign, started, time.monotonic() - clock, len(results) - reused, reused)
    attempts = earlier(run_dir, campaign.digests["hardened"])
    report = assess(_evidence(campaign, results, provenance, diagnostics, attempts))
    remember(run_dir, campaign.digests["hardened"], report.attempts[-1])
    write_all(report, run_dir)
    return report


def _with_control(campaign: Campaign, progress: Progress) -> Campaign:
    """The campaign with the weakly erased model."""
    base_dir, base_digest = campaign.directories["base"], campaign.digests["base"]
    return campaign.with_control(unlearned_only(campaign.policy, base_dir, base_digest, campaign.device, progress))


def _evidence(
    campaign: Campaign,
    results: list[UnitResult],
    provenance: Provenance,
    diagnostics: Diagnostics | None,
    attempts: list[Attempt],
) -> Evidence:
    return Evidence(
        policy=campaign.policy,
        suite=campaign.suite,
        units=results,
        calibrations=campaign.judges.calibrations,
        detector_lines=campaign.judges.lines,
        metrics=campaign.judges.metrics,
        provenance=provenance,
        diagnostics=diagnostics,
        attempts=attempts,
        dropped_prompts=campaign.dropped_prompts,
        evidence_paths=_evidence_paths(results),
        erasers=campaign.erasers,
        schedules=campaign.schedules,
    )


def _run(campaign: Campaign, units: Units, executor: Executor, progress: Progress) -> tuple[list[UnitResult], int]:
    """Results of all units in their order, and how many of them were found finished."""
    specs = campaign.units()
    found = {spec.address: result for spec in specs if (result := units.find(spec.address))}
    reused = len(found)
    todo = [spec for spec in specs if spec.address not in found]
    if todo:
        found |= {result.address: result for result in executor.run(campaign, todo, units, progress)}
    return [found[spec.address] for spec in specs], reused


def _unchanged(campaign: Campaign) -> None:
    changes = difference(campaign.files, manifest(campaign.model_dir))
    if changes:
        raise ModelFault(
            f"the model directory changed while it was examined: {'; '.join(changes[:3])}",
            fix="certify a directory nobody writes to",
            where=str(campaign.model_dir),
        )


def _evidence_paths(results: Sequence[UnitResult]) -> dict[tuple[str, int], str]:
    return {
        (unit.address, point.effort): f"units/{unit.address}/{point.evidence}"
        for unit in results
        for point in unit.checkpoints
        if point.evidence
    }


def _diagnostics(model_path: Path) -> Diagnostics | None:
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


def _provenance(campaign: Campaign, started: str, seconds: float, run: int, reused: int) -> Provenance:
    return Provenance(
        model=campaign.model_dir.name,
        model_digest=campaign.digests["hardened"],
        base_model=campaign.policy.model,
        base_digest=campaign.digests["base"],
        policy_digest=policy_digest(campaign.policy),
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
    )
