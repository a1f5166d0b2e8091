"""Opens everything a certification or a single probe needs, once: models, detectors, data sets, suite."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safeguard.data.screening import screen
from safeguard.detect.base import Detector
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import ModelFault, UsageFault
from safeguard.io.manifest import manifest, model_digest
from safeguard.io.opening import open_pipeline, pick_device, resolve
from safeguard.metrics.clip_score import ClipScore
from safeguard.policy.loading import load_policy
from safeguard.policy.methods import check_methods
from safeguard.policy.schema import Policy
from safeguard.policy.suite import ProbeSpec, Suite, load_suite
from safeguard.probe.evaluator import DataSets, Session
from safeguard.probe.units import Units, make_probe, run_unit
from safeguard.progress import Progress, SilentProgress
from safeguard.registry import detectors, suggest
from safeguard.results.record import Role
from safeguard.results.unit import UnitResult

POLICY_FILE = "policy.resolved.yaml"
"""Name under which a policy travels inside a hardened model directory."""


def find_policy(model_dir: Path, policy: str | Path | Policy | None) -> Policy:
    """The given policy, or the one inside the directory."""
    if isinstance(policy, Policy):
        return policy
    path = Path(policy) if policy is not None else model_dir / POLICY_FILE
    if policy is None and not path.exists():
        raise ModelFault(
            f"the directory carries no {POLICY_FILE}",
            fix="say which policy it must meet with --policy FILE",
            where=str(model_dir),
        )
    return load_policy(path)


def open_model(directory: Path, device: str) -> tuple[DiffusionModel, str, dict[str, str]]:
    """A checked directory in memory, its digest, and its manifest."""
    pipeline = open_pipeline(directory, device=device)
    files = manifest(directory)
    return DiffusionModel(pipeline), model_digest(directory, files), files


@dataclass
class Campaign:
    """What all units of a run share."""

    policy: Policy
    dropped_prompts: int
    suite: Suite
    device: str
    progress: Progress
    model_dir: Path
    base_dir: Path
    base_digest: str
    base: DiffusionModel
    detectors: dict[str, Detector]
    data: DataSets
    clip_score: ClipScore | None
    files: dict[str, str] = field(default_factory=dict)
    model_digest: str = ""
    erasers: bool = False
    """Whether the hardened model holds stored erasers."""
    exposed_parts: frozenset[str] = frozenset({"unet"})
    """Parts that fine-tunes train, in every role: the denoiser, and what the hardened model changed besides."""

    @classmethod
    def open(
        cls,
        model_dir: Path,
        *,
        policy: str | Path | Policy | None = None,
        device: str = "auto",
        progress: Progress | None = None,
        offline: bool = True,
    ) -> Campaign:
        """Read the policy, and open the base model and the detectors."""
        from safeguard.io.preflight import inspect

        info = inspect(model_dir)
        declared, dropped = screen(find_policy(model_dir, policy))
        check_methods(declared, Path(policy) if isinstance(policy, str | Path) else None)
        chosen = pick_device(device)
        suite = load_suite(declared.certification.suite)
        for spec in suite.probes:
            make_probe(spec)
        base_dir = resolve(declared.model, declared.revision, offline=offline)
        base, base_digest, _ = open_model(base_dir, chosen)
        found: dict[str, Detector] = {}
        for concept in declared.concepts:
            registered = detectors.get(concept.detector.name)
            found[concept.name] = registered(registered.Config(**concept.detector.settings), chosen)
        checkpoint = next(
            (
                c.detector.settings.get("checkpoint", "reference")
                for c in declared.concepts
                if c.detector.name == "clip"
            ),
            None,
        )
        return cls(
            policy=declared,
            dropped_prompts=dropped,
            suite=suite,
            device=chosen,
            progress=progress or SilentProgress(),
            model_dir=model_dir,
            erasers=bool(info.erasers),
            base_dir=base_dir,
            base_digest=base_digest,
            base=base,
            detectors=found,
            data=DataSets(base, declared),
            clip_score=ClipScore(checkpoint, chosen) if checkpoint else None,
        )

    def session(self, role: Role, model: DiffusionModel, digest: str) -> Session:
        """A session for one role."""
        model.exposed_parts = self.exposed_parts
        return Session(
            policy=self.policy,
            role=role,
            model=model,
            model_digest=digest,
            detectors=self.detectors,
            clip_score=self.clip_score,
            data=self.data,
            progress=self.progress,
        )

    def open_hardened(self) -> Session:
        """The session of the model directory itself."""
        model, self.model_digest, self.files = open_model(self.model_dir, self.device)
        self.exposed_parts = model.exposed_parts | model.differing_parts(self.base)
        return self.session("hardened", model, self.model_digest)

    def open_base(self) -> Session:
        """The session of the untouched base model; it has its own denoiser, since the data sets use the first."""
        pipeline: Any = self.base.frozen_copy()
        return self.session("base", pipeline, self.base_digest)

    def spec(self, probe: str) -> ProbeSpec:
        """The probe of that id in the suite."""
        known = {spec.id: spec for spec in self.suite.probes}
        if probe not in known:
            raise UsageFault(
                f"suite {self.suite.name!r} has no probe {probe!r}", fix=suggest(probe, list(known)), where="probe"
            )
        return known[probe]

    def run_one(self, probe: str, seed: int) -> UnitResult:
        """One probe on the model directory, kept nowhere."""
        spec = self.spec(probe)
        with TemporaryDirectory(prefix="safeguard-probe-") as scratch:
            units = Units(Path(scratch), shared=False)
            return run_unit(self.open_hardened(), spec, seed, self.base_digest, units)[0]
