"""Runs units of work: one probe x one seed on one model. A finished unit is one file; a run fills the gaps.

``units/<digest>/unit.json`` appears, renamed into place, when the unit is complete; its digest covers everything that
determines the outcome, so a unit found there, or in the shared cache, need not be run again.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from safeguard.cache import address, cache_dir
from safeguard.errors import EnvironmentFault, PolicyFault
from safeguard.files import atomic_directory, write_text
from safeguard.metrics.image_statistics import image_statistics
from safeguard.policy.methods import method_problems
from safeguard.policy.suite import ProbeSpec
from safeguard.policy.validation import fault, problems_of
from safeguard.probe.evaluator import Probe, Session, stopwatch
from safeguard.provenance import environment
from safeguard.registry import probes
from safeguard.results.unit import UnitResult


def make_probe(spec: ProbeSpec) -> Probe:
    """The registered probe with its settings validated.

    Raises:
        PolicyFault: a setting the probe does not have, or with a value it cannot take.
    """
    registered = probes.get(spec.kind)
    try:
        config = registered.Config(**spec.settings)
        problems = method_problems(config)
    except ValidationError as error:
        problems = problems_of(error, registered.Config, spec.settings)
    if problems:
        refused = fault(problems, None)
        raise PolicyFault(refused.what, fix=refused.fix, where=f"settings of probe {spec.id!r}")
    built: Probe = registered(config, spec)
    return built


def unit_digest(session: Session, probe: Probe, seed: int, base_digest: str) -> str:
    """Address of a unit."""
    policy = session.policy
    facts: dict[str, Any] = {
        "version": 1,
        "model": session.model_digest,
        "base": base_digest,
        "role": session.role,
        "exposed_parts": sorted(session.model.exposed_parts),
        "probe": probe.spec.model_dump(exclude={"title", "control"}),
        "settings": probe.config.model_dump(),
        "seed": seed,
        "policy seed": policy.seed,
        "concepts": [concept.model_dump() for concept in policy.concepts],
        "retain": [subject.model_dump() for subject in policy.retain],
        "samples": policy.certification.samples,
        "sampler": [policy.certification.sampler_steps, policy.certification.guidance],
        "detectors": {name: detector.digest for name, detector in session.detectors.items()},
    }
    return address(facts)


class Units:
    """Finished units of a run directory, with the shared cache behind it."""

    def __init__(self, run_dir: Path, *, shared: bool = True) -> None:
        self.folder = run_dir / "units"
        self._shared = cache_dir() / "units" if shared else None

    def find(self, digest: str) -> UnitResult | None:
        """The unit, copied from the shared cache if only that has it."""
        own = self.folder / digest
        if not (own / "unit.json").exists() and self._shared and (self._shared / digest / "unit.json").exists():
            with suppress(EnvironmentFault):  # another process may be replacing it: then this one makes its own
                self._copy(self._shared / digest, own)
        try:
            return UnitResult.model_validate_json((own / "unit.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, result: UnitResult, folder: Path) -> None:
        """Move a finished unit into place, and into the shared cache."""
        write_text(folder / "unit.json", result.model_dump_json(indent=1))
        self._copy(folder, self.folder / result.digest)
        if self._shared:
            try:
                self._copy(folder, self._shared / result.digest)
            except EnvironmentFault:
                if not (self._shared / result.digest / "unit.json").exists():  # or another process was first
                    raise

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        with atomic_directory(target) as temporary:
            for item in source.iterdir():
                shutil.copyfile(item, temporary / item.name)


def run_unit(session: Session, spec: ProbeSpec, seed: int, base_digest: str, units: Units) -> tuple[UnitResult, bool]:
    """The unit's result, and whether it was found finished."""
    probe = make_probe(spec)
    digest = unit_digest(session, probe, seed, base_digest)
    found = units.find(digest)
    if found is not None:
        return found, True
    started = stopwatch()
    title = f"{session.role} · {spec.id} · seed {seed}"
    with (
        tempfile.TemporaryDirectory(prefix="safeguard-unit-") as scratch,
        session.progress.task(title, probe.work) as task,
    ):
        folder = Path(scratch)
        seen = probe.run(session, seed, folder, task)
        result = UnitResult(
            digest=digest,
            probe=spec.id,
            kind=spec.kind,
            role=session.role,
            seed=seed,
            settings=probe.config.model_dump(mode="json"),
            model_digest=session.model_digest,
            data_digest=seen.data_digest,
            detectors={name: detector.digest for name, detector in session.detectors.items()},
            checkpoints=seen.checkpoints,
            rows=seen.rows,
            image_statistics=image_statistics(np.concatenate(seen.images)),
            seconds=stopwatch() - started,
            environment=environment(),
        )
        units.keep(result, folder)
    return result, False
