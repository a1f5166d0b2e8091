"""One loop that runs an unlearner and a resilience objective, whatever they are, and can be killed at any moment.

A hardening is one or two *phases*: the unlearner alone (an edit, or a descent), then the objective around it. Each is
addressed by everything that determines it; its checkpoint lies in the cache under that address, so the same command
run again continues, and the unlearned-only control of a certification finds the phase already done.

Several processes (:mod:`safeguard.processes`) take the steps of an objective that distributed its simulations together;
of every other phase they wait for the end. Only the main one keeps checkpoints and checks the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from safeguard import __version__
from safeguard.cache import address, cache_dir
from safeguard.config import SCHEDULES
from safeguard.diffusion.erasers import fold, has_erasers
from safeguard.diffusion.parameters import parts_of
from safeguard.errors import EnvironmentFault, TrainingFault, UsageFault, located
from safeguard.harden.checks import benign_prompts, check_images, check_weights, fingerprints
from safeguard.io.checkpoint import held, load_state, save_state
from safeguard.policy.schema import Method
from safeguard.processes import peak_memory
from safeguard.registry import resilience, unlearners
from safeguard.resilience.base import Facts, Objective
from safeguard.resilience.none import NoConfig, NoObjective
from safeguard.resilience.second_order.solvers import GUARDS
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import kept_subjects

Series = dict[str, list[float | None]]

MAX_GRAD_NORM = 1.0
"""Every outer gradient is clipped to this norm: a safeguard of ours, few published implementations clip."""
CHECKPOINT_SECONDS = 30.0


@dataclass
class Record:
    """What a hardening did: written beside the model, shown in the report.

    Attributes:
        series: one list per logged quantity, one entry per outer step of all phases, in order; None where a step logged
            none.
        phases: what was run, in order, and the outer steps of each.
        notes: what a reader should know: guards that fired, phases resumed.
        checks: what was found when the finished model was checked (``safeguard.harden.checks``).
        seconds: wall time of this run.
        cpu_seconds: processor time of the main process, with that of earlier runs whose phases this one continued.
        peak_bytes: largest resident memory of the main process, in this run or in those.
        processes: how many took part.
        micro_batch: rows that went through the denoiser at once after the device ran out of memory; None: all.
        halved: how often it ran out of memory, in all processes.
    """

    series: Series = field(default_factory=dict)
    phases: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    processes: int = 1
    micro_batch: int | None = None
    halved: int = 0


def build(method: Method, context: HardeningContext) -> Unlearner:
    """The registered unlearner with validated settings."""
    return unlearners.make(method, context)


def _surround(method: Method, context: HardeningContext, unlearner: Unlearner) -> Objective:
    built = resilience.make(method, context, unlearner)
    if context.model.execution.precision != "float32" and built.products() == "finite_difference":
        raise UsageFault("finite differences need float32", fix="precision: float32, or hvp: fused", where="harden")
    return built


def harden(
    context: HardeningContext, base_digest: str, *, fresh: bool = False, objective: Method | None = None
) -> Record:
    """Run all phases on ``context.model`` in place.

    Args:
        base_digest: digest of the base model's files.
        fresh: ignore checkpoints.
        objective: override of the policy's resilience objective (``none`` makes the unlearned-only control).

    Returns:
        The record; complete in the main process, which alone checks the result.

    Raises:
        UsageFault: settings that exclude each other.
        TrainingFault: the gradient is not finite, or the finished model fails :mod:`safeguard.harden.checks`.
        EnvironmentFault: too little memory even for one image at a time, or processes that do not agree.
    """
    policy = context.policy
    method = objective or policy.harden.resilience
    record = Record()
    started, cpu_started = time.monotonic(), time.process_time()
    before = fingerprints(context.model.pipeline)
    with located(f"harden.unlearner, {policy.harden.unlearner.name}"):
        unlearner = build(policy.harden.unlearner, context)
        context.model.exposed_parts |= parts_of(unlearner.parameters())
    with located(f"harden.resilience, {method.name}"):
        around = _surround(method, context, unlearner)
        context.model.exposed_parts |= parts_of(around.parameters())
    alone = NoObjective(NoConfig(), context, unlearner)
    intended = context.model.named_parameters().keys() - before.keys()
    key: dict[str, Any] = {
        "base": base_digest,
        "concepts": [concept.model_dump(exclude={"detector", "labels"}) for concept in context.concepts],
        "retain": [subject.model_dump() for subject in policy.retain],
        "images": policy.harden.images,
        "seed": context.seed,
        "unlearner": _resolved(policy.harden.unlearner),
        "unlearner data": unlearner.data_digest,
        "schedule": policy.harden.schedule,
        "precision": policy.harden.precision,
        "version": __version__,
        "format": 3,
    }
    warm_start = unlearner.closed_form or method.name == "none" or getattr(around.config, "warm_start", False)  # type: ignore[attr-defined]
    if warm_start:
        intended |= set(unlearner.parameters())
        title = f"erase with {policy.harden.unlearner.name}"
        unlearner.prepare()
        if unlearner.steps:
            _descend(context, alone, key, title, record, fresh)
        unlearner.edit()
    if method.name != "none":
        intended |= set(around.parameters())
        key["resilience"] = _resolved(method)
        key["resilience data"] = around.data_digest
        title = f"{policy.harden.unlearner.name} + {method.name}"
        _descend(context, around, key, title, record, fresh)
    intended |= set(fold(context.model))
    if has_erasers(context.model.unet):
        record.notes.append(
            "this model holds erasers, which safeguard opens and plain diffusers ignores with a warning: opened by "
            "anything but safeguard it is not hardened"
        )
    _count(record, context)
    context.model.execution.precision = context.teacher.execution.precision = (
        "float32"  # what is checked is what will be used
    )
    context.model.execution.replays = context.teacher.execution.replays = False
    context.model.execution.graphs.forget()
    if context.processes.main:
        _check_simulations(record)
        record.checks = {
            "tensors": check_weights(context.model.pipeline, before, intended),
            "images": check_images(context.teacher, context.model, benign_prompts(policy), context.seed),
        }
        record.seconds = time.monotonic() - started
        record.cpu_seconds += time.process_time() - cpu_started
        record.peak_bytes = max(record.peak_bytes, peak_memory())
        _remark(record, context, around)
    return record


def _resolved(method: Method) -> dict[str, Any]:
    """A method with all its settings, defaults and presets included."""
    settings: dict[str, Any] = method.registry.config(method).model_dump(mode="json")
    return {"name": method.name, **settings}


def _count(record: Record, context: HardeningContext) -> None:
    """How many processes worked, and how short of memory they were."""
    micro = context.model.execution.micro_batches
    told = context.processes.gather((micro.size, micro.halved))
    record.processes = len(told)
    record.micro_batch = min((size for size, _ in told if size is not None), default=None)
    record.halved = sum(halved for _, halved in told)


def checkpoint_path(key: dict[str, Any]) -> Path:
    """Where a phase's state is kept."""
    return cache_dir() / "phases" / f"{address(key)}.safetensors"


def _descend(
    context: HardeningContext, objective: Objective, key: dict[str, Any], title: str, record: Record, fresh: bool
) -> None:
    """One phase; another run that is at the same one is waited for, and gone on from."""
    path = checkpoint_path(key)
    busy = f"{title}: another run is at this phase; waiting for it, to go on from there"
    with held(path, partial(context.progress.note, busy)) if context.processes.main else nullcontext():
        context.processes.gather(None)
        _adam(context, objective, path, title, record, fresh)


def _adam(context: HardeningContext, objective: Objective, path: Path, title: str, record: Record, fresh: bool) -> None:
    """Adam on the objective's gradients, from the phase's checkpoint if there is one."""
    processes, distributed = context.processes, objective.distributed
    parameters = objective.trained()
    context.model.freeze()
    for value in parameters.values():
        value.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters.values(), lr=objective.learning_rate)
    series: Series = {}
    state = objective.unlearner.state() | objective.state()
    start, cpu_started, cpu_before, peak_before = 0, time.process_time(), 0.0, 0
    if path.exists() and not fresh and (distributed or processes.main):
        groups, facts = load_state(path, {"adam": optimizer})
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(groups["weights"][name])
            objective.materialize()
            for name, kept in state.items():
                kept.copy_(groups["unlearner"][name])
        start, series = facts["step"], facts["series"]
        cpu_before, peak_before = facts["cpu_seconds"], facts["peak_bytes"]
        record.cpu_seconds += cpu_before
        record.peak_bytes = max(record.peak_bytes, peak_before)
        note = f"{title}: continuing at step {start} of {objective.steps}"
        context.progress.note(note)
        record.notes.append(note)
    if distributed and len(set(processes.gather(start))) > 1:
        raise EnvironmentFault(
            f"{title}: the processes find different checkpoints",
            fix="let SAFEGUARD_CACHE be a directory that all of them see",
        )

    def save(step: int) -> None:
        tensors: dict[str, Mapping[str, torch.Tensor]] = {"weights": parameters, "unlearner": state}
        used = {
            "cpu_seconds": cpu_before + time.process_time() - cpu_started,
            "peak_bytes": max(peak_before, peak_memory()),
        }
        save_state(path, tensors, {"adam": optimizer}, {"step": step, "series": series} | used)

    before = context.step
    if distributed or processes.main:
        _loop(context, objective, optimizer, title, series, start, list(state.values()), save)
    context.step = before + objective.steps
    if not distributed:
        processes.broadcast([*parameters.values(), *state.values()])
        objective.materialize()
    done = sum(steps for _, steps in record.phases)
    record.phases.append((title, objective.steps))
    for name, values in series.items():
        _pad(record.series.setdefault(name, []), done).extend(values)
    for values in record.series.values():
        _pad(values, done + objective.steps)
    context.model.freeze()


def _loop(
    context: HardeningContext,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    title: str,
    series: Series,
    start: int,
    state: list[torch.Tensor],
    save: Callable[[int], None],
) -> None:
    values = [value for group in optimizer.param_groups for value in group["params"]]
    saved, before, processes = time.monotonic(), context.step, context.processes

    def gradient(step: int) -> Facts:
        context.model.freeze()
        for value in values:
            value.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        return objective.compute_gradients(step)

    with context.progress.task(title, objective.steps, start) as task:
        for step in range(start, objective.steps):
            context.step = before + step
            for group in optimizer.param_groups:
                group["lr"] = objective.learning_rate * SCHEDULES[context.policy.harden.schedule](
                    step / objective.steps
                )
            # An objective that exchanges with other processes tries again by itself: they wait for one exchange only.
            facts = (
                gradient(step)
                if objective.distributed
                else context.model.execution.within_memory(partial(gradient, step))
            )
            size = torch.nn.utils.clip_grad_norm_(values, MAX_GRAD_NORM)
            if not torch.isfinite(size):
                raise TrainingFault(
                    f"{title}: the gradient of step {step + 1} is not finite",
                    fix="lower the learning rate; the last checkpoint is kept, nothing was written",
                )
            optimizer.step()
            objective.materialize()
            objective.after_step()
            if objective.distributed:
                processes.broadcast(state)  # what losses left there for after_step is only right in the main process
            for name, value in facts.items():
                _pad(series.setdefault(name, []), step).append(value)
            task.update(step + 1, **{name: value for name, value in facts.items() if name.endswith(("loss", "tuning"))})
            due = time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == objective.steps
            if due and processes.main:
                save(step + 1)
                saved = time.monotonic()


def _pad(values: list[float | None], steps: int) -> list[float | None]:
    """Make up for the steps that logged no value."""
    values += [None] * (steps - len(values))
    return values


def _logged(record: Record) -> dict[str, list[float]]:
    """The series without the steps that logged nothing."""
    return {name: [value for value in values if value is not None] for name, values in record.series.items()}


def _check_simulations(record: Record) -> None:
    """Refuse what was hardened against nothing.

    Raises:
        TrainingFault: no simulated fine-tune had a say.
    """
    skipped = _logged(record).get("simulations skipped", [])
    if skipped and min(skipped) == 1:
        raise TrainingFault(
            "none of the simulated fine-tunes stayed finite, so none had a say; nothing was written",
            fix="lower the distribution's learning_rates, or let max_grad_norm clip its gradients",
        )


def _remark(record: Record, context: HardeningContext, objective: Objective) -> None:
    """Say in words what the series and the checks show."""
    still = record.checks["tensors"]["meant to change but did not"]
    if still:
        record.notes.append(f"{len(still)} tensors that were meant to change did not; the first is {still[0]}")
    images = record.checks["images"]
    if 2 * images["flawed before"] >= len(images["prompts"]):
        record.notes.append("the base model draws noise or blank images itself; the hardened one was not held to more")
    if not kept_subjects(context):
        record.notes.append("the policy names no related or retained subject, so no image of anything else was kept")
    if record.halved:
        record.notes.append(
            f"the device ran out of memory {record.halved} times: in the end {record.micro_batch} images at a time "
            "went through the denoiser, which changes nothing but time"
        )
    logged = _logged(record)
    cosines = logged.get("cosine of hypergradient and first order")
    if cosines:
        record.notes.append(_on_second_order(cosines, objective.first_order))
    for guard, consequence in GUARDS.items():
        fired = sum(logged.get(f"guard: {guard}", []))
        if fired:
            record.notes.append(f"guard of the hypergradient: {guard}, {fired:.0f} times; {consequence}")
    skipped = logged.get("simulations skipped", [])
    if any(skipped):
        share = sum(skipped) / len(skipped)
        record.notes.append(f"{share:.1%} of the simulated fine-tunes were not finite and were skipped")


def _on_second_order(cosines: list[float], instead: str) -> str:
    mean, least = sum(cosines) / len(cosines), min(cosines)
    numbers = f"cosine of the hypergradient with its first-order part: mean {mean:.3f}, least {least:.3f}"
    if least > 0.99:
        return f"second order never changed the direction: {instead} goes the same way for less ({numbers})"
    return f"second order {'hardly mattered' if mean > 0.99 else 'changed the direction'} ({numbers})"
