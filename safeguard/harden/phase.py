"""One phase of a hardening: Adam on the gradients of one objective, with a checkpoint that it goes on from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from safeguard.config import SCHEDULES
from safeguard.errors import EnvironmentFault, TrainingFault
from safeguard.harden.record import Record, pad
from safeguard.io.checkpoint import held, load_state, save_state
from safeguard.processes import peak_memory
from safeguard.resilience.base import Facts, Objective
from safeguard.results.hardening import Series
from safeguard.unlearn.base import HardeningContext

MAX_GRAD_NORM = 1.0
"""Every outer gradient is clipped to this norm: a safeguard of ours, few published implementations clip."""
CHECKPOINT_SECONDS = 30.0


class Used:
    """Processor time and memory of a phase, with those of the runs it continues."""

    def __init__(self) -> None:
        self._started = time.process_time()
        self.cpu_seconds = 0.0
        self.peak_bytes = 0

    def facts(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {
            "cpu_seconds": self.cpu_seconds + time.process_time() - self._started,
            "peak_bytes": max(self.peak_bytes, peak_memory()),
        }


class Phase:
    """One objective, descended.

    Args:
        title: what is shown and recorded.
        path: the checkpoint; its name is the digest of everything that determines the outcome.
        record: of the whole hardening; it gets the phase's series.
    """

    def __init__(self, context: HardeningContext, objective: Objective, title: str, path: Path, record: Record) -> None:
        self.context, self.objective, self.title, self.path, self.record = context, objective, title, path, record
        self.series: Series = {}
        self.first = 0
        """Outer step to begin with; more than 0 when the phase was resumed."""

    @property
    def takes_part(self) -> bool:
        """Whether this process takes the steps; the others wait for the end."""
        return self.objective.distributed or self.context.processes.main

    def run(self, *, fresh: bool) -> None:
        """From the checkpoint, unless ``fresh``, to the last step; another run that is at the same phase is waited for.

        Raises:
            TrainingFault: the gradient is not finite.
            EnvironmentFault: too little memory, or processes that do not agree.
        """
        processes = self.context.processes
        busy = f"{self.title}: another run is at this phase; waiting for it, to go on from there"
        with held(self.path, partial(self.context.progress.note, busy)) if processes.main else nullcontext():
            processes.gather(None)
            self._descend(fresh)

    def _descend(self, fresh: bool) -> None:
        context, objective = self.context, self.objective
        self.parameters = objective.trained()
        self._let_learn()
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=objective.learning_rate)
        self.state = objective.unlearner.state() | objective.state()
        self.used = Used()
        if self.path.exists() and not fresh and self.takes_part:
            self._resume()
        if objective.distributed and len(set(context.processes.gather(self.first))) > 1:
            raise EnvironmentFault(
                f"{self.title}: the processes find different checkpoints",
                fix="let SAFEGUARD_CACHE be a directory that all of them see",
            )
        before = context.step
        if self.takes_part:
            self._loop(before)
        context.step = before + objective.steps
        if not objective.distributed:
            context.processes.broadcast([*self.parameters.values(), *self.state.values()])
            objective.materialize()
        self.record.add_phase(self.title, objective.steps, self.series)
        context.model.freeze()

    def _let_learn(self) -> None:
        self.context.model.freeze()
        for value in self.parameters.values():
            value.requires_grad_(True)

    # -- the checkpoint ---------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        groups, facts = load_state(self.path, {"adam": self.optimizer})
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(groups["weights"][name])
            self.objective.materialize()
            for name, kept in self.state.items():
                kept.copy_(groups["unlearner"][name])
        self.first, self.series = facts["step"], facts["series"]
        self.used.cpu_seconds, self.used.peak_bytes = facts["cpu_seconds"], facts["peak_bytes"]
        self.record.cpu_seconds += self.used.cpu_seconds
        self.record.peak_bytes = max(self.record.peak_bytes, self.used.peak_bytes)
        note = f"{self.title}: continuing at step {self.first} of {self.objective.steps}"
        self.context.progress.note(note)
        self.record.notes.append(note)

    def _save(self, step: int) -> None:
        tensors: dict[str, Mapping[str, torch.Tensor]] = {"weights": self.parameters, "unlearner": self.state}
        facts = {"step": step, "series": self.series} | self.used.facts()
        save_state(self.path, tensors, {"adam": self.optimizer}, facts)

    # -- the descent ------------------------------------------------------------------------------------------------

    def _loop(self, before: int) -> None:
        """The outer steps that are left; ``before`` were taken in earlier phases."""
        objective, saved = self.objective, time.monotonic()
        with self.context.progress.task(self.title, objective.steps, self.first) as task:
            for step in range(self.first, objective.steps):
                self.context.step = before + step
                facts = self._step(step)
                for name, value in facts.items():
                    pad(self.series.setdefault(name, []), step).append(value)
                shown = {name: value for name, value in facts.items() if name.endswith(("loss", "tuning"))}
                task.update(step + 1, **shown)
                due = time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == objective.steps
                if due and self.context.processes.main:
                    self._save(step + 1)
                    saved = time.monotonic()

    def _step(self, step: int) -> Facts:
        """One step of the optimiser, and what the objective logged of it."""
        objective = self.objective
        share = SCHEDULES[self.context.policy.harden.schedule](step / objective.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = objective.learning_rate * share
        # An objective that exchanges with other processes tries again by itself: they wait for one exchange only.
        facts = (
            self._gradient(step)
            if objective.distributed
            else self.context.model.execution.within_memory(partial(self._gradient, step))
        )
        size = torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRAD_NORM)
        if not torch.isfinite(size):
            raise TrainingFault(
                f"{self.title}: the gradient of step {step + 1} is not finite",
                fix="lower the learning rate; the last checkpoint is kept, nothing was written",
            )
        self.optimizer.step()
        objective.materialize()
        objective.after_step()
        if objective.distributed:  # what losses left in the state for after_step is only right in the main process
            self.context.processes.broadcast(list(self.state.values()))
        return facts

    def _gradient(self, step: int) -> Facts:
        self._let_learn()
        self.optimizer.zero_grad(set_to_none=True)
        return self.objective.compute_gradients(step)
