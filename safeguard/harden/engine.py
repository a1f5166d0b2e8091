"""One loop that runs an unlearner and a resilience objective, whatever they are, and can be killed at any moment.

A hardening is one or two *phases*: the unlearner alone (an edit, or a descent), then the objective around it. Each is
addressed by everything that determines it; its checkpoint lies in the cache under that address, so the same command
run again continues, and the unlearned-only control of a certification finds the phase already done.

Several processes (:mod:`safeguard.processes`) take the steps of an objective that distributed its simulations together;
of every other phase they wait for the end. Only the main one keeps checkpoints and checks the result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safeguard import __version__
from safeguard.cache import address, cache_dir
from safeguard.diffusion.erasers import fold
from safeguard.diffusion.parameters import parts_of
from safeguard.diffusion.storage import round_to_stored
from safeguard.errors import UsageFault, located
from safeguard.harden.checks import benign_prompts, check_images, check_weights, fingerprints
from safeguard.harden.phase import Phase
from safeguard.harden.record import Record, check_simulations, remarks
from safeguard.policy.schema import Method
from safeguard.processes import peak_memory
from safeguard.provenance import DECLARATIONS, code_digest
from safeguard.registry import resilience, unlearners
from safeguard.resilience.base import Objective
from safeguard.resilience.none import NoConfig, NoObjective
from safeguard.unlearn.base import HardeningContext, Unlearner

OF_NO_PHASE = (
    "api.py", "attack", "certify", "cli", "probe", "progress.py", "report", "results", "study", "wording.py",
    *DECLARATIONS,
)  # fmt: skip
"""Parts of the package that no phase's outcome depends on."""


def build(method: Method, context: HardeningContext) -> Unlearner:
    """The registered unlearner with validated settings."""
    return unlearners.make(method, context)


def harden(
    context: HardeningContext, base_digest: str, *, fresh: bool = False, objective: Method | None = None
) -> Record:
    """Run all phases on ``context.model`` in place; the weights end at values that their stored types can hold.

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
    started, cpu_started = time.monotonic(), time.process_time()
    run = _Hardening(context, base_digest, objective or context.policy.harden.resilience, fresh)
    run.unlearn()
    run.make_resilient()
    rounded = run.finish()
    record = run.record
    if context.processes.main:
        run.check()
        record.seconds = time.monotonic() - started
        record.cpu_seconds += time.process_time() - cpu_started
        record.peak_bytes = max(record.peak_bytes, peak_memory())
        record.notes += remarks(record, context, run.objective, rounded)
    return record


class _Hardening:
    """The phases of one run, and what they share.

    Args:
        method: the resilience objective.
    """

    def __init__(self, context: HardeningContext, base_digest: str, method: Method, fresh: bool) -> None:
        self.context, self.method, self.fresh = context, method, fresh
        self.record = Record()
        self.before = fingerprints(context.model.pipeline)
        declared = context.policy.harden.unlearner
        with located(f"harden.unlearner, {declared.name}"):
            self.unlearner = build(declared, context)
            context.model.exposed_parts |= parts_of(self.unlearner.parameters())
        with located(f"harden.resilience, {method.name}"):
            self.objective = _surround(method, context, self.unlearner)
            context.model.exposed_parts |= parts_of(self.objective.parameters())
        self.alone = NoObjective(NoConfig(), context, self.unlearner)
        self.intended = context.model.named_parameters().keys() - self.before.keys()
        """Names of the tensors that may change; those that building the method added are the first."""
        self.key = phase_key(context, base_digest, self.unlearner)

    def unlearn(self) -> None:
        """The first phase, unless the objective begins with the base model."""
        name = self.context.policy.harden.unlearner.name
        from_base = not (self.unlearner.closed_form or self.method.name == "none")
        if from_base and not getattr(self.objective.config, "warm_start", False):  # type: ignore[attr-defined]
            return
        self.intended |= set(self.unlearner.parameters())
        self.unlearner.prepare()
        if self.unlearner.steps:
            self._descend(self.alone, f"erase with {name}")
        self.unlearner.edit()

    def make_resilient(self) -> None:
        """The second phase, unless there is no objective."""
        if self.method.name == "none":
            return
        self.intended |= set(self.objective.parameters())
        self.key |= {"resilience": _resolved(self.method), "resilience data": self.objective.data_digest}
        self._descend(self.objective, f"{self.context.policy.harden.unlearner.name} + {self.method.name}")

    def _descend(self, objective: Objective, title: str) -> None:
        Phase(self.context, objective, title, checkpoint_path(self.key), self.record).run(fresh=self.fresh)

    def finish(self) -> Sequence[torch.dtype]:
        """Make of the trained model what will be used: folded, rounded to its stored types, in full precision."""
        context = self.context
        self.intended |= set(fold(context.model))
        self.record.count(context)
        for model in (context.model, context.teacher):
            model.execution.precision, model.execution.replays = "float32", False
        context.model.execution.graphs.forget()
        return round_to_stored(context.model.pipeline, context.model.stored)

    def check(self) -> None:
        """Refuse a model that changed elsewhere, was hardened against nothing, or draws nothing any more."""
        context = self.context
        check_simulations(self.record)
        self.record.checks = {
            "tensors": check_weights(context.model.pipeline, self.before, self.intended),
            "images": check_images(context.teacher, context.model, benign_prompts(context.policy), context.seed),
        }


def _surround(method: Method, context: HardeningContext, unlearner: Unlearner) -> Objective:
    built = resilience.make(method, context, unlearner)
    if context.model.execution.precision != "float32" and built.products() == "finite_difference":
        raise UsageFault("finite differences need float32", fix="precision: float32, or hvp: fused", where="harden")
    return built


def phase_key(context: HardeningContext, base_digest: str, unlearner: Unlearner) -> dict[str, Any]:
    """Everything that determines the first phase."""
    policy = context.policy
    return {
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
        "code": code_digest(OF_NO_PHASE),
        "format": 3,
    }


def _resolved(method: Method) -> dict[str, Any]:
    """A method with all its settings, defaults and presets included."""
    settings: dict[str, Any] = method.registry.config(method).model_dump(mode="json")
    return {"name": method.name, **settings}


def checkpoint_path(key: dict[str, Any]) -> Path:
    """Where a phase's state is kept."""
    return cache_dir() / "phases" / f"{address(key)}.safetensors"
