"""Units of work: one probe × one seed on one model. A finished unit is one file; a run fills the gaps.

``units/<address>/unit.json`` appears, renamed into place, when the unit is complete; its address covers everything that
determines the outcome, the code and the libraries included, so a unit found there, or in the shared cache, need not be
run again. One that contradicts itself or what was asked (:mod:`safeguard.policy.contradictions`) is refused.
"""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.target import Target
from safeguard.cache import cache_dir
from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.files import atomic_directory, write_text
from safeguard.metrics.image_statistics import image_statistics
from safeguard.policy.contradictions import Examination
from safeguard.policy.examination import UnitSpec, seed_of_look
from safeguard.policy.schema import Policy
from safeguard.policy.suite import ProbeSpec, Suite
from safeguard.probe.evaluator import Evaluator, Look
from safeguard.probe.unfinished import Judged, Unfinished, unfinished
from safeguard.progress import Progress
from safeguard.provenance import environment
from safeguard.registry import attacks
from safeguard.results.contact_sheets import contact_sheet
from safeguard.results.plan import Schedule
from safeguard.results.unit import UNIT_FILE, Checkpoint, UnitResult


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
        fresh: whether nothing that is there already is used; what is finished is kept all the same.
    """

    def __init__(self, run_dir: Path, *, shared: bool = True, fresh: bool = False) -> None:
        self.folder = run_dir / "units"
        self._unfinished = run_dir / "unfinished"
        self._shared = cache_dir() / "units" if shared else None
        self._fresh = fresh

    def find(self, address: str, examination: Examination | None = None) -> UnitResult | None:
        """A finished unit; one that only the cache has is copied into the run directory, evidence included.

        Args:
            examination: what was asked; none: the unit is given as it is.

        Raises:
            UsageFault: the unit contradicts itself or what was asked.
        """
        if self._fresh:
            return None
        found = self._read(self.folder, address, examination)
        if found is None and self._shared and (found := self._read(self._shared, address, examination)):
            self._copy(self._shared / address, self.folder / address)
        return found

    def _read(self, folder: Path, address: str, examination: Examination | None) -> UnitResult | None:
        path = folder / address / UNIT_FILE
        try:
            result = UnitResult.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):  # not there, or of another version
            return None
        told = [] if result.address == address else [f"its address is {result.address!r}, its folder's another"]
        told += examination.contradictions(result) if examination else []
        if told:
            more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
            raise UsageFault(
                f"this finished unit was edited: {told[0]}{more}",
                fix=f"find out who wrote to it; {path.parent} can be deleted, or ignored with --fresh",
                where=str(path),
            )
        return result

    def unfinished(self, address: str) -> Path:
        """Where a unit is kept until it is finished; nothing is there that must not be used."""
        folder = self._unfinished / address
        if self._fresh:
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    def keep(self, result: UnitResult, folder: Path) -> None:
        """Put a finished unit, whose evidence images lie in ``folder``, in place."""
        write_text(folder / UNIT_FILE, result.model_dump_json(indent=1))
        self._copy(folder, self.folder / result.address)
        if self._shared:
            try:
                self._copy(folder, self._shared / result.address)
            except EnvironmentFault:
                if not (self._shared / result.address / UNIT_FILE).exists():  # or another process was first
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
    target.data.used.clear()
    target.data.looked.clear()
    with unfinished(units.unfinished(spec.address) if attack.resumable else None) as place:
        released, found = _look_at_all(spec, attack, target, evaluator, place, progress)
        judges = evaluator.digests()
        result = UnitResult(
            address=spec.address,
            facts=spec.facts,
            probe=spec.probe.id,
            attack=spec.probe.attack.name,
            axis=attack.axis,
            efforts=attack.efforts(),
            role=spec.role,
            seed=spec.seed,
            nonce=spec.nonce,
            settings=attack.config.model_dump(mode="json"),
            model_digest=spec.model,
            data_digests=list(target.data.used),
            training_images=list(target.data.looked),
            detectors=judges["detectors"],
            metrics=judges["metrics"],
            thresholds=evaluator.thresholds(),
            checkpoints=[each.checkpoint for each in found],
            rows=[row for each in found for row in each.rows],
            image_statistics=image_statistics(np.concatenate(released)),
            seconds=time.monotonic() - started,
            cpu_seconds=time.process_time() - cpu_started,
            environment=environment(),
        )
        units.keep(result, place.evidence)
    return result


def _look_at_all(
    spec: UnitSpec, attack: Attack[Any], target: Target, evaluator: Evaluator, place: Unfinished, progress: Progress
) -> tuple[list[np.ndarray], list[Judged]]:
    """The images of each subject in the released model, and what was found in every attempt, by effort."""
    released: list[np.ndarray] = []
    found, began = place.judged(), time.monotonic()
    target.scratch, target.judged = place.scratch, frozenset(each.checkpoint.effort for each in found)
    with (
        progress.task(spec.title, len(attack.efforts())) as task,
        closing(attack.run(target, spec.seed)) as attempts,
    ):
        for attempt in attempts:
            look = evaluator.look(
                target.model,
                attempt,
                seed_of_look(spec.seed, attempt.effort, own_noise=attack.own_noise),
                samples=spec.probe.samples,
                everything=attack.judges_everything,
                stops=spec.stops,
            )
            released += look.images.values() if attempt.effort == 0 else []
            seconds, evidence = time.monotonic() - began, keep_evidence(target.policy, look, attempt, place.evidence)
            found.append(Judged(checkpoint=_checkpoint(attempt, look, seconds, evidence), rows=look.rows))
            if attack.resumable and attempt.effort:
                place.keep(found[-1])
            task.update(len(found), effort=str(attempt.effort), rate=look.rate(target.policy))
    return released, sorted(found, key=lambda each: each.checkpoint.effort)


def _checkpoint(attempt: Attempt, look: Look, seconds: float, evidence: str) -> Checkpoint:
    return Checkpoint(
        effort=attempt.effort,
        loss=attempt.loss,
        label=attempt.label,
        trial=attempt.trial,
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
