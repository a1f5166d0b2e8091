"""A certification, or a single probe, as plain data: what is examined, by which policy and suite, and what judges it.

A campaign holds paths and digests and no model, so that it can travel to the processes that run its units.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from safeguard.cache import cache_dir
from safeguard.data.own_images import bound
from safeguard.detect.measuring import known_errors
from safeguard.diffusion.model import PARTS
from safeguard.errors import UsageFault
from safeguard.io.hub import network, resolve
from safeguard.io.identity import check_base, components
from safeguard.io.manifest import manifest, model_digest
from safeguard.io.opening import open_component, pick_device
from safeguard.io.preflight import inspect
from safeguard.policy.consistency import truncations
from safeguard.policy.contradictions import Examination
from safeguard.policy.examination import UnitSpec, asked, question
from safeguard.policy.methods import check_methods
from safeguard.policy.reading import load_yaml
from safeguard.policy.schema import Policy
from safeguard.policy.suite import ProbeSpec, Suite, check_suite, lacks
from safeguard.policy.validation import fault
from safeguard.probe.appointment import Appointed, appoint
from safeguard.probe.evaluator import Evaluator
from safeguard.probe.units import schedules
from safeguard.provenance import OF_NO_UNIT, code_digest
from safeguard.registry import suggest
from safeguard.results.calibration import Calibration
from safeguard.results.control import Component
from safeguard.results.hardening import read_record
from safeguard.results.metric import MetricInfo
from safeguard.results.plan import Schedule, StopRule
from safeguard.results.record import Record, Role
from safeguard.seeds import draw_nonce


class Judges(Record):
    """What is known of a policy's detectors and metrics."""

    question: str
    """Digest of all that the policy says about drawing and judging."""
    digests: dict[str, dict[str, str]]
    """Of detectors and metrics, as :meth:`Evaluator.digests` has them."""
    thresholds: dict[str, float]
    """Of the detectors."""
    lines: dict[str, str]
    """Concept → its detector in one line."""
    calibrations: dict[str, Calibration | None]
    """Concept → measured errors of its detector; none: nobody measured them."""
    metrics: dict[str, MetricInfo]
    """Metrics by name."""

    @classmethod
    def of(cls, evaluator: Evaluator) -> Judges:
        """Ask the detectors."""
        policy = evaluator.policy
        return cls(
            question=question(policy, evaluator.digests()),
            digests=evaluator.digests(),
            thresholds=evaluator.thresholds(),
            lines={name: detector.describe() for name, detector in evaluator.detectors.items()},
            calibrations={c.name: known_errors(evaluator.detectors[c.name], c.labels) for c in policy.concepts},
            metrics={
                name: MetricInfo(title=metric.title, higher_is_better=metric.higher_is_better, line=metric.describe())
                for name, metric in evaluator.metrics.items()
            },
        )


@dataclass(frozen=True)
class Campaign:
    """Everything that determines the units of a run.

    Attributes:
        policy: already screened.
        appointed: the same, with who chose it.
        schedules: of every probe of the suite.
        device: where models run.
        directories: of the models, by role; the unlearned-only control is added when it is made.
        digests: of the models, by role.
        files: manifest of the certified model: name -> sha256.
        erasers: whether it holds stored erasers.
        truncated: declared prompts of which the model reads only the beginning, in words.
        nonce: of the examination, drawn after the model's digest was taken, or given.
        training_sets: folder of the images that attacks train on.
        components: every component of it against the base model's.
        exposed_parts: parts that fine-tunes train, in every role: the denoiser, and what the certified model changed
            besides.
        stops: by probe, when enough images of the certified model are drawn; controls draw all of theirs.
    """

    policy: Policy
    appointed: Appointed
    suite: Suite
    schedules: dict[str, Schedule]
    device: str
    directories: dict[Role, Path]
    digests: dict[Role, str]
    files: dict[str, str]
    erasers: bool
    truncated: list[str]
    components: list[Component]
    exposed_parts: frozenset[str]
    judges: Judges
    nonce: str
    training_sets: Path = field(default_factory=lambda: cache_dir() / "data")
    code: str = field(default_factory=lambda: code_digest(OF_NO_UNIT))
    stops: dict[str, list[StopRule]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        model_dir: Path,
        *,
        policy: str | Path | Policy | None = None,
        device: str = "auto",
        offline: bool = True,
        nonce: str | None = None,
        policy_pin: str | None = None,
    ) -> Campaign:
        """Read the policy and the suite, check that they fit, and look at the directories and the judges.

        Args:
            nonce: to repeat an examination; none: one is drawn, when the digests are taken.
            policy_pin: what the policy's digest must begin with; none: any.

        Raises:
            UsageFault: the policy has another digest.
            PolicyFault: an invalid policy or suite, or one that does not fit the other.
            ModelFault: a directory that is refused, a model that is its own base or differs from it where nobody
                declares it, or another base than the one that was hardened.
        """
        info = inspect(model_dir, certified=True)
        appointed = appoint(model_dir, policy, policy_pin)
        declared = appointed.policy
        check_methods(declared, appointed.file)
        suite, known = fitting_suite(declared, appointed.file)
        chosen = pick_device(device)
        base_dir = resolve(declared.model, declared.revision, offline=offline)
        inspect(base_dir)
        record, base_digest = read_record(model_dir), model_digest(base_dir)
        check_base(record, base_digest, model_dir, base_dir)
        found = components(
            model_dir,
            base_dir,
            record=record,
            allowed=declared.certification.may_differ,
            unopened=info.unopened,
        )
        files = manifest(model_dir)
        digests: dict[Role, str] = {"base": base_digest, "hardened": model_digest(model_dir, files)}
        nonce = nonce or draw_nonce()
        with network(not offline):
            judges = Judges.of(Evaluator(declared, chosen, nonce))
        return cls(
            policy=declared,
            appointed=appointed,
            suite=suite,
            schedules=known,
            device=chosen,
            directories={"base": base_dir, "hardened": model_dir},
            digests=digests,
            files=files,
            erasers=bool(info.erasers),
            truncated=truncations(declared, open_component(base_dir, "tokenizer")),
            components=found,
            exposed_parts=frozenset({"unet"} | {each.name for each in found if each.differs and each.name in PARTS}),
            judges=judges,
            nonce=nonce,
        )

    @property
    def model_dir(self) -> Path:
        """The certified model's."""
        return self.directories["hardened"]

    def with_control(self, directory: Path) -> Campaign:
        """The campaign with the unlearned-only model in that directory."""
        digests: dict[Role, str] = self.digests | {"unlearned": model_digest(directory)}
        return replace(self, directories=self.directories | {"unlearned": directory}, digests=digests)

    def spec(self, probe: str) -> ProbeSpec:
        """The probe of that id in the suite."""
        known = {spec.id: spec for spec in self.suite.probes}
        if probe not in known:
            raise UsageFault(
                f"suite {self.suite.name!r} has no probe {probe!r}", fix=suggest(probe, list(known)), where="probe"
            )
        return known[probe]

    def unit(self, role: Role, spec: ProbeSpec, seed: int) -> UnitSpec:
        """One unit of this campaign."""
        return UnitSpec(
            role=role,
            probe=spec,
            seed=seed,
            nonce=self.nonce,
            model=self.digests[role],
            base=self.digests["base"],
            exposed_parts=sorted(self.exposed_parts),
            policy=self.judges.question,
            code=self.code,
            stops=self.stops.get(spec.id, []) if role == "hardened" else [],
        )

    @property
    def examination(self) -> Examination:
        """What all its units have in common."""
        return Examination(
            policy=self.policy,
            nonce=self.nonce,
            models=self.digests,
            schedules=self.schedules,
            digests=self.judges.digests,
            thresholds=self.judges.thresholds,
            code=self.code,
            stops=self.stops,
        )

    def units(self) -> list[UnitSpec]:
        """All units that the policy asks for; controls come first, so that a broken set-up shows early."""
        return [self.unit(*which) for which in asked(self.policy, self.suite, self.schedules)]


def fitting_suite(policy: Policy, source: Path | None = None) -> tuple[Suite, dict[str, Schedule]]:
    """The policy's suite, with the digests of its folders of images, and what its probes yield.

    Args:
        source: the file the policy came from, so that messages can name line and column.

    Raises:
        PolicyFault: the suite is invalid, or policy and suite do not fit each other.
        UsageFault: a folder of images that the suite names cannot be used.
    """
    suite = bound(check_suite(policy.certification.suite), policy)
    known = schedules(suite)
    if problems := lacks(policy, suite, known):
        raise fault(problems, load_yaml(source)[1] if source else None)
    return suite, known
