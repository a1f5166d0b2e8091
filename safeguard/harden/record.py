"""What a hardening says of itself: series and facts while it runs, sentences at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from safeguard.diffusion.erasers import has_erasers
from safeguard.errors import TrainingFault
from safeguard.resilience.base import Objective
from safeguard.resilience.second_order.solvers import GUARDS
from safeguard.results.hardening import Series
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import kept_subjects


@dataclass
class Record:
    """What a hardening did; :class:`safeguard.results.hardening.HardeningRecord` is what is written of it.

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

    def add_phase(self, title: str, steps: int, series: Series) -> None:
        """Go on with the series of a phase that has ended."""
        done = sum(before for _, before in self.phases)
        self.phases.append((title, steps))
        for name, values in series.items():
            pad(self.series.setdefault(name, []), done).extend(values)
        for values in self.series.values():
            pad(values, done + steps)

    def count(self, context: HardeningContext) -> None:
        """How many processes worked, and how short of memory they were."""
        micro = context.model.execution.micro_batches
        told = context.processes.gather((micro.size, micro.halved))
        self.processes = len(told)
        self.micro_batch = min((size for size, _ in told if size is not None), default=None)
        self.halved = sum(halved for _, halved in told)

    def logged(self, name: str) -> list[float]:
        """A series without the steps that logged nothing."""
        return [value for value in self.series.get(name, []) if value is not None]


def pad(values: list[float | None], steps: int) -> list[float | None]:
    """Make up for the steps that logged no value."""
    values += [None] * (steps - len(values))
    return values


def check_simulations(record: Record) -> None:
    """Refuse what was hardened against nothing.

    Raises:
        TrainingFault: no simulated fine-tune had a say.
    """
    skipped = record.logged("simulations skipped")
    if skipped and min(skipped) == 1:
        raise TrainingFault(
            "none of the simulated fine-tunes stayed finite, so none had a say; nothing was written",
            fix="lower the distribution's learning_rates, or let max_grad_norm clip its gradients",
        )


def remarks(
    record: Record, context: HardeningContext, objective: Objective, rounded: Sequence[torch.dtype]
) -> list[str]:
    """In words, what the weights are and what the series and the checks show."""
    return [
        *_on_the_model(context, rounded),
        *_on_checks(record.checks),
        *_on_the_run(record, context),
        *_on_second_order(record, objective),
    ]


def _on_the_model(context: HardeningContext, rounded: Sequence[torch.dtype]) -> list[str]:
    found = []
    if has_erasers(context.model.unet):
        found.append(
            "this model holds erasers, which safeguard opens and plain diffusers ignores with a warning: opened by "
            "anything but safeguard it is not hardened"
        )
    if rounded:
        names = " and ".join(str(dtype).removeprefix("torch.") for dtype in rounded)
        found.append(f"the weights were rounded to {names}, in which the base model stores them, and checked as such")
    return found


def _on_checks(checks: dict[str, Any]) -> list[str]:
    found = []
    if still := checks["tensors"]["unchanged"]:
        found.append(f"{len(still)} tensors that were meant to change did not; the first is {still[0]}")
    if 2 * checks["images"]["flawed_before"] >= len(checks["images"]["prompts"]):
        found.append("the base model draws noise or blank images itself; the hardened one was not held to more")
    return found


def _on_the_run(record: Record, context: HardeningContext) -> list[str]:
    found = []
    if not kept_subjects(context):
        found.append("the policy names no related or retained subject, so no image of anything else was kept")
    if record.halved:
        found.append(
            f"the device ran out of memory {record.halved} times: in the end {record.micro_batch} images at a time "
            "went through the denoiser, which changes nothing but time"
        )
    return found


def _on_second_order(record: Record, objective: Objective) -> list[str]:
    found = []
    if cosines := record.logged("cosine of hypergradient and first order"):
        found.append(_on_cosines(cosines, objective.first_order))
    for guard, consequence in GUARDS.items():
        if fired := sum(record.logged(f"guard: {guard}")):
            found.append(f"guard of the hypergradient: {guard}, {fired:.0f} times; {consequence}")
    if any(skipped := record.logged("simulations skipped")):
        share = sum(skipped) / len(skipped)
        found.append(f"{share:.1%} of the simulated fine-tunes were not finite and were skipped")
    return found


def _on_cosines(cosines: list[float], instead: str) -> str:
    mean, least = sum(cosines) / len(cosines), min(cosines)
    numbers = f"cosine of the hypergradient with its first-order part: mean {mean:.3f}, least {least:.3f}"
    if least > 0.99:
        return f"second order never changed the direction: {instead} goes the same way for less ({numbers})"
    return f"second order {'hardly mattered' if mean > 0.99 else 'changed the direction'} ({numbers})"
