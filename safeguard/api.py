"""The two verbs as functions: :func:`harden` and :func:`certify`. The command line is a thin layer over them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeguard import __version__
from safeguard.errors import ModelFault, UsageFault
from safeguard.io.manifest import RECORD_FILE
from safeguard.policy.schema import Method, Policy, ResilienceMethod
from safeguard.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from safeguard.harden.engine import Record
    from safeguard.probe.campaign import Campaign
    from safeguard.probe.evaluator import Session
    from safeguard.results.calibration import Calibration
    from safeguard.results.report import Diagnostics, Report
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


def _record(policy: Policy, record: Record, base_digest: str, objective: Method, started: str) -> dict[str, Any]:
    from safeguard.policy.loading import policy_digest
    from safeguard.provenance import environment

    return {
        "version": 1,
        "policy": policy.name,
        "policy_digest": policy_digest(policy),
        "base_model": policy.model,
        "base_digest": base_digest,
        "unlearner": policy.harden.unlearner.model_dump(),
        "resilience": objective.model_dump(),
        "seed": policy.seed,
        "started": started,
        "environment": environment(),
        **asdict(record),
    }


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
    from safeguard.data.screening import screen
    from safeguard.diffusion.model import DiffusionModel
    from safeguard.harden.context import set_up
    from safeguard.harden.engine import harden as run
    from safeguard.io.manifest import model_digest
    from safeguard.io.opening import open_pipeline, pick_device, resolve
    from safeguard.io.saving import check_target, save_pipeline
    from safeguard.policy.loading import load_policy, resolved_yaml
    from safeguard.policy.methods import check_methods
    from safeguard.policy.suite import check_requirements
    from safeguard.probe.campaign import POLICY_FILE
    from safeguard.processes import join

    processes, device = join(device)
    progress, target, started = progress if progress and processes.main else SilentProgress(), Path(out), _now()
    declared = load_policy(Path(policy_path))
    check_methods(declared, Path(policy_path))
    check_requirements(declared, Path(policy_path))
    policy, dropped = screen(declared)
    if dropped:
        progress.note(f"content filter: {dropped} prompts dropped before any image was generated")
    if processes.main:
        check_target(target, overwrite)
    chosen = pick_device(device)
    if cuda_graphs and not chosen.startswith("cuda"):
        raise UsageFault(f"CUDA graphs record work on a GPU; the device is {chosen}", fix="leave --cuda-graphs out")
    base_dir = resolve(policy.model, policy.revision, offline=offline)
    model = DiffusionModel(open_pipeline(base_dir, device=chosen))
    model.execution.replays = cuda_graphs
    base_digest = model_digest(base_dir)
    bench = set_up(policy, model, progress, processes)
    record = run(bench, base_digest, fresh=fresh)
    written = None
    if processes.main:
        facts = _record(policy, record, base_digest, policy.harden.resilience, started)
        extra = {POLICY_FILE: resolved_yaml(declared), RECORD_FILE: json.dumps(facts, indent=1) + "\n"}
        save_pipeline(model.pipeline, target, extra, overwrite=overwrite)
        written = HardenedModel(target, model_digest(target), facts)
    return processes.broadcast_object(written)


def certify(
    model_dir: str | Path,
    *,
    policy: str | Path | Policy | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    offline: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Attack the model as downstream users and adversaries will, and say whether the policy holds.

    Units that are finished in ``out`` (default ``<model_dir>.certification`` beside the model) are not run again.

    Raises:
        SafeguardError: invalid policy or suite, refused model, unwritable output.
    """
    from safeguard.certify.assessment import assess
    from safeguard.certify.evidence import Evidence
    from safeguard.files import write_text
    from safeguard.policy.loading import policy_digest, resolved_yaml
    from safeguard.probe.campaign import POLICY_FILE, Campaign
    from safeguard.probe.units import Units
    from safeguard.report.writing import write_all

    model_path = Path(model_dir)
    run_dir = Path(out) if out is not None else model_path.with_name(model_path.name + ".certification")
    started, clock = _now(), time.monotonic()
    bench = Campaign.open(model_path, policy=policy, device=device, progress=progress, offline=offline)
    write_text(run_dir / POLICY_FILE, resolved_yaml(bench.policy))
    units = Units(run_dir)
    results: list[UnitResult] = []
    reused = 0
    hardened = bench.open_hardened()
    for session in _roles(bench, hardened):
        found, known = _run_suite(bench, session, units)
        results += found
        reused += known
    _unchanged(model_path, bench)
    provenance = _provenance(bench, started, time.monotonic() - clock, len(results) - reused, reused)
    evidence = Evidence(
        policy=bench.policy,
        suite=bench.suite,
        units=results,
        calibrations={name: _calibration(bench, name) for name in bench.detectors},
        detector_lines={name: detector.describe() for name, detector in bench.detectors.items()},
        provenance=provenance,
        diagnostics=_diagnostics(model_path),
        attempts=_attempts(run_dir, provenance.model_digest),
        dropped_prompts=bench.dropped_prompts,
        evidence_paths=_evidence_paths(results),
        erasers=bench.erasers,
    )
    report = assess(evidence)
    _remember(run_dir, provenance.model_digest, started, report.verdict, policy_digest(bench.policy))
    write_all(report, run_dir)
    return report


def _roles(bench: Campaign, hardened: Session) -> Sequence[Session]:
    """Controls first, so that a broken set-up shows before the long part."""
    from safeguard.certify.planning import roles
    from safeguard.harden.context import set_up
    from safeguard.harden.engine import harden as run
    from safeguard.probe.campaign import open_model

    sessions = [bench.open_base()]
    alone = ResilienceMethod(name="none")
    if "unlearned" in roles(bench.policy):
        model, _, _ = open_model(bench.base_dir, bench.device)
        table = set_up(bench.policy, model, bench.progress)
        run(table, bench.base_digest, objective=alone)
        sessions.append(bench.session("unlearned", model, _weights_digest(model)))
    return [*sessions, hardened]


def _weights_digest(model: Any) -> str:
    """sha256 over the weights of all parts, by name."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _run_suite(bench: Campaign, session: Session, units: Any) -> tuple[list[UnitResult], int]:
    """All probes and seeds that the session's role needs."""
    from safeguard.certify.planning import needs
    from safeguard.probe.units import run_unit

    results, reused = [], 0
    for spec in bench.suite.probes:
        if not needs(bench.policy, bench.suite, session.role, spec):
            continue
        for seed in range(bench.policy.certification.seeds):
            result, known = run_unit(session, spec, seed, bench.base_digest, units)
            results.append(result)
            reused += known
    return results, reused


def _unchanged(model_path: Path, bench: Campaign) -> None:
    from safeguard.io.manifest import difference, manifest

    changes = difference(bench.files, manifest(model_path))
    if changes:
        raise ModelFault(
            f"the model directory changed while it was examined: {'; '.join(changes[:3])}",
            fix="certify a directory nobody writes to",
            where=str(model_path),
        )


def _calibration(bench: Campaign, concept: str) -> Calibration | None:
    labels = next(c.labels for c in bench.policy.concepts if c.name == concept)
    return bench.detectors[concept].calibration(labels)


def _evidence_paths(results: list[UnitResult]) -> dict[tuple[str, int], str]:
    return {
        (unit.digest, point.step): f"units/{unit.digest}/{point.evidence}"
        for unit in results
        for point in unit.checkpoints
        if point.evidence
    }


def _diagnostics(model_path: Path) -> Diagnostics | None:
    from safeguard.results.report import Diagnostics

    path = model_path / RECORD_FILE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Diagnostics(
            unlearner=facts["unlearner"]["name"],
            objective=facts["resilience"]["name"],
            seconds=facts["seconds"],
            series=facts["series"],
            notes=facts["notes"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFault(
            f"{RECORD_FILE} is not a hardening record: {error}", fix="harden again", where=str(path)
        ) from error


def _attempts(run_dir: Path, model_digest: str) -> list[Any]:
    from safeguard.results.report import Attempt

    path = run_dir / "attempts.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [Attempt(**row["attempt"]) for row in rows if row["model"] == model_digest]


def _remember(run_dir: Path, model_digest: str, started: str, verdict: str, policy: str) -> None:
    """Append this attempt: running again until it passes stays visible."""
    run_dir.mkdir(parents=True, exist_ok=True)
    row = {"model": model_digest, "attempt": {"started": started, "verdict": verdict, "policy_digest": policy}}
    with (run_dir / "attempts.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def _provenance(bench: Campaign, started: str, seconds: float, run: int, reused: int) -> Any:
    from safeguard.policy.loading import policy_digest
    from safeguard.policy.suite import suite_digest
    from safeguard.provenance import code_revision, environment
    from safeguard.results.report import Provenance

    return Provenance(
        model=bench.model_dir.resolve().name,
        model_digest=bench.model_digest,
        base_model=bench.policy.model,
        base_digest=bench.base_digest,
        policy_digest=policy_digest(bench.policy),
        suite=bench.suite.name,
        suite_digest=suite_digest(bench.suite),
        safeguard_version=__version__,
        code_revision=code_revision(),
        environment=environment() | {"device": bench.device},
        started=started,
        seconds=seconds,
        units_run=run,
        units_reused=reused,
        files=bench.files,
    )
