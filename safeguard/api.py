"""The verbs as functions: :func:`harden`, :func:`plan`, :func:`certify`, :func:`verify`; they compose the rooms."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safeguard.certification import checking, running
from safeguard.certification.preparation import Order
from safeguard.certify import planning
from safeguard.data.screening import screen
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.files import run_directory
from safeguard.harden import engine
from safeguard.harden.context import set_up
from safeguard.harden.inputs import check_output
from safeguard.harden.record import Record
from safeguard.io.companions import Companions
from safeguard.io.hub import network, resolve
from safeguard.io.manifest import model_digest
from safeguard.io.opening import open_directory, pick_device
from safeguard.io.preflight import inspect
from safeguard.io.saving import check_target, save_pipeline
from safeguard.policy.consistency import truncations
from safeguard.policy.loading import load_policy, policy_digest, resolved_yaml
from safeguard.policy.methods import check_methods
from safeguard.policy.schema import Policy
from safeguard.probe.appointment import appoint
from safeguard.probe.calibrations import calibrations
from safeguard.probe.campaign import fitting_suite
from safeguard.probe.memory import memory
from safeguard.processes import join
from safeguard.progress import Progress, SilentProgress
from safeguard.provenance import environment
from safeguard.results.hardening import POLICY_FILE, RECORD_FILE, HardeningRecord
from safeguard.results.plan import Plan
from safeguard.results.report import Report
from safeguard.results.verification import Verification
from safeguard.seeds import check_nonce


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
    truncated = truncations(policy, model.pipeline.tokenizer)
    for note in truncated:
        progress.note(note)
    context = set_up(policy, model, progress, processes)
    with network(not offline):
        record = engine.harden(context, base.digest, fresh=fresh)
    written = None
    if processes.main:
        companions = Companions.of(base)
        record.notes += companions.notes + truncated
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
    appointed = appoint(Path(model_dir), policy)
    check_methods(appointed.policy, appointed.file)
    suite, schedules = fitting_suite(appointed.policy, appointed.file)
    known, absent = calibrations(appointed.policy)
    planned = planning.plan(appointed.policy, suite, schedules, known)
    planned = planned.model_copy(update={"warnings": [*planned.warnings, *absent]})
    if device_memory is None:
        return planned
    needed = memory(Path(model_dir), suite, device_memory)
    return planned.model_copy(update={"memory": needed, "device_memory": device_memory})


def whose(model_dir: str | Path, *, policy: str | Path | Policy | None = None, policy_digest: str | None = None) -> str:
    """Whose policy a certification would apply, in a sentence; nothing is run.

    Raises:
        SafeguardError: no policy, an invalid one, or another than the pinned one.
    """
    inspect(Path(model_dir), certified=True)  # a directory that is refused is not read from
    return appoint(Path(model_dir), policy, policy_digest).sentence


def certify(
    model_dir: str | Path,
    *,
    policy: str | Path | Policy | None = None,
    policy_digest: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    offline: bool = True,
    workers: int | None = 1,
    nonce: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Attack the model as downstream users and adversaries will, and say whether the policy holds.

    Units that are finished in ``out`` (by default :func:`safeguard.files.run_directory`) are not run again.

    Args:
        policy: a file or a policy; none: the one that travels in the directory, which whoever delivers the model chose.
        policy_digest: what the digest of the policy must begin with (16 digits at least), or the policy is refused.
        workers: units run at the same time, each in a process of its own; none: one per GPU, or per core as far as
            memory goes. Processes import the script that starts them: more than one needs the usual
            ``if __name__ == "__main__":`` around it.
        nonce: of a finished run, to repeat it: all seeds follow from it, and the report says that it was given. None:
            that of the run that was interrupted here, or a new one, drawn after the model's digest is fixed.
        fresh: use nothing that was finished before, neither here nor in the cache, and draw new seeds.

    Raises:
        SafeguardError: invalid policy or suite, refused model, edited evidence, unwritable output.
    """
    model_path = Path(model_dir).resolve()
    order = Order(
        model_dir=model_path,
        run_dir=Path(out) if out is not None else run_directory(model_path),
        policy=policy,
        policy_pin=policy_digest,
        device=device,
        offline=offline,
        workers=workers,
        nonce=check_nonce(nonce) if nonce is not None else None,
        fresh=fresh,
    )
    return running.carry_out(order, progress or SilentProgress())


def verify(run_dir: str | Path, model_dir: str | Path) -> Verification:
    """Compute a finished certification again from its files: digests, rows, bounds, verdict; nothing is drawn.

    Raises:
        SafeguardError: no readable report, or no readable model directory.
    """
    return checking.check(Path(run_dir), Path(model_dir))
