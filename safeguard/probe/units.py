"""Units of work: one probe × one seed on one model. A finished unit is one file; a run fills the gaps.

``units/<address>/unit.json`` appears, renamed into place, when the unit is complete; its address covers everything that
determines the outcome, the code and the libraries included, so a unit found there, or in the shared cache, need not be
run again.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.target import Target
from safeguard.cache import address, cache_dir
from safeguard.errors import EnvironmentFault
from safeguard.files import atomic_directory, write_text
from safeguard.metrics.image_statistics import image_statistics
from safeguard.policy.schema import Policy
from safeguard.policy.suite import ProbeSpec, Suite
from safeguard.probe.evaluator import Evaluator, Look
from safeguard.progress import Progress
from safeguard.provenance import environment
from safeguard.registry import attacks
from safeguard.results.contact_sheets import contact_sheet
from safeguard.results.plan import Schedule
from safeguard.results.record import Record, Role
from safeguard.results.unit import Checkpoint, ImageRow, UnitResult


class UnitSpec(Record):
    """A unit as plain data, which can travel to another process or machine."""

    role: Role
    probe: ProbeSpec
    seed: int
    model: str
    """Digest of the model that is attacked."""
    base: str
    """Digest of the base model, which draws the training images."""
    exposed_parts: list[str]
    """Parts of the model that fine-tunes train."""
    policy: str
    """Digest of what the policy says about drawing and judging (:func:`question`)."""
    code: str
    """Digest of the code and the libraries (:func:`safeguard.provenance.code_digest`)."""

    @cached_property
    def address(self) -> str:
        """sha256 over all of it but what a probe is called and which controls it has."""
        facts = self.model_dump(mode="json")
        for field in ("title", "control"):
            del facts["probe"][field]
        return address(facts)

    @property
    def title(self) -> str:
        """For the progress report."""
        return f"{self.role} · {self.probe.id} · seed {self.seed}"


def question(policy: Policy, digests: dict[str, dict[str, str]]) -> str:
    """Digest of what a policy says that a unit depends on: limits and budgets may change without running it again.

    Args:
        digests: of detectors and metrics (:meth:`safeguard.probe.evaluator.Evaluator.digests`).
    """
    settings = policy.certification
    return address(
        {
            "seed": policy.seed,
            "concepts": [concept.model_dump() for concept in policy.concepts],
            "retain": [subject.model_dump() for subject in policy.retain],
            "samples": settings.samples,
            "sampler": [settings.sampler_steps, settings.guidance, settings.precision],
        }
        | digests
    )


def make_attack(spec: ProbeSpec) -> Attack[Any]:
    """The probe's attack, its settings checked."""
    return attacks.make(spec.attack, spec.id)


def schedules(suite: Suite) -> dict[str, Schedule]:
    """What every probe of a suite yields, by its id."""
    return {spec.id: make_attack(spec).schedule() for spec in suite.probes}


class Units:
    """Finished units of a run directory, with the shared cache behind it.

    Args:
        run_dir: the run directory.
        shared: whether the cache is read and filled: controls are the same for many models.
    """

    def __init__(self, run_dir: Path, *, shared: bool = True) -> None:
        self.folder = run_dir / "units"
        self._shared = cache_dir() / "units" if shared else None

    def find(self, address: str) -> UnitResult | None:
        """A finished unit; one that only the cache has is copied into the run directory, evidence included."""
        found = self._read(self.folder, address)
        if found is None and self._shared and (found := self._read(self._shared, address)):
            self._copy(self._shared / address, self.folder / address)
        return found

    def _read(self, folder: Path, address: str) -> UnitResult | None:
        path = folder / address / "unit.json"
        with suppress(OSError, ValidationError):
            result = UnitResult.model_validate_json(path.read_text(encoding="utf-8"))
            if result.address == address:
                return result
        return None

    def keep(self, result: UnitResult, folder: Path) -> None:
        """Put a finished unit, whose evidence images lie in ``folder``, in place."""
        write_text(folder / "unit.json", result.model_dump_json(indent=1))
        self._copy(folder, self.folder / result.address)
        if self._shared:
            try:
                self._copy(folder, self._shared / result.address)
            except EnvironmentFault:
                if not (self._shared / result.address / "unit.json").exists():  # or another process was first
                    raise

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        with atomic_directory(target) as temporary:
            for item in source.iterdir():
                shutil.copyfile(item, temporary / item.name)


def run_unit(
    spec: UnitSpec, attack: Attack[Any], target: Target, evaluator: Evaluator, units: Units, progress: Progress
) -> UnitResult:
    """Run the attack on the target, look at every attempt, and keep what was found."""
    started, cpu_started = time.monotonic(), time.process_time()
    rows: list[ImageRow] = []
    checkpoints: list[Checkpoint] = []
    first: list[np.ndarray] = []
    target.data.used.clear()
    efforts = attack.efforts()
    with (
        tempfile.TemporaryDirectory(prefix="safeguard-unit-") as scratch,
        progress.task(spec.title, len(efforts)) as task,
        closing(attack.run(target, spec.seed)) as attempts,
    ):
        folder = Path(scratch)
        for attempt in attempts:
            look = evaluator.look(
                target.model, attempt, spec.seed, samples=spec.probe.samples, everything=attack.judges_everything
            )
            rows += look.rows
            first += look.images.values() if attempt.effort == 0 else []
            seconds = time.monotonic() - started
            checkpoints.append(_checkpoint(attempt, look, seconds, keep_evidence(target.policy, look, attempt, folder)))
            task.update(len(checkpoints), effort=str(attempt.effort), rate=look.rate(target.policy))
        judges = evaluator.digests()
        result = UnitResult(
            address=spec.address,
            probe=spec.probe.id,
            attack=spec.probe.attack.name,
            axis=attack.axis,
            efforts=efforts,
            role=spec.role,
            seed=spec.seed,
            settings=attack.config.model_dump(mode="json"),
            model_digest=spec.model,
            data_digests=list(target.data.used),
            detectors=judges["detectors"],
            metrics=judges["metrics"],
            checkpoints=checkpoints,
            rows=rows,
            image_statistics=image_statistics(np.concatenate(first)),
            seconds=time.monotonic() - started,
            cpu_seconds=time.process_time() - cpu_started,
            environment=environment(),
        )
        units.keep(result, folder)
    return result


def _checkpoint(attempt: Attempt, look: Look, seconds: float, evidence: str) -> Checkpoint:
    return Checkpoint(
        effort=attempt.effort,
        loss=attempt.loss,
        seconds=seconds,
        prompts=attempt.prompts.digest if attempt.prompts else None,
        refused_prompts=look.refused,
        image_statistics=image_statistics(np.concatenate(list(look.images.values()))),
        evidence=evidence,
    )


def keep_evidence(policy: Policy, look: Look, attempt: Attempt, folder: Path) -> str:
    """Write the contact sheet of the concepts at one checkpoint; returns its file name."""
    sheets = [(look.images[concept.name], concept.kind == "unsafe") for concept in policy.concepts]
    name = f"effort-{attempt.effort:05d}.png"
    contact_sheet(folder / name, sheets)
    return name
