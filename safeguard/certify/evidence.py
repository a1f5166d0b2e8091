"""What a verdict is computed from, and the check that it belongs together.

Rows of another model, of two detectors, or of two subjects that share a name would give rates that mean nothing, so
they are refused before anything is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from safeguard.certify.sequential import Fixed, Looks
from safeguard.certify.statistics import false_positive_upper, sensitivity_lower, uncovered_seeds, upper_bound
from safeguard.certify.stopping import looks_of
from safeguard.errors import PolicyFault, UsageFault
from safeguard.policy.schema import Policy, Subject
from safeguard.policy.suite import Intent, ProbeSpec, Suite, ruled_out, weak_unlearner
from safeguard.policy.threat import Means
from safeguard.results.calibration import Calibration
from safeguard.results.control import Component
from safeguard.results.metric import MetricInfo
from safeguard.results.plan import Schedule
from safeguard.results.provenance import Attempt, Provenance
from safeguard.results.record import Role
from safeguard.results.report import Diagnostics
from safeguard.results.unit import ImageRow, UnitResult


@dataclass(frozen=True)
class Evidence:
    """Everything a certification found."""

    policy: Policy
    suite: Suite
    units: list[UnitResult]
    """Finished units of all roles, in any order."""
    calibrations: dict[str, Calibration | None]
    """By concept; none: nobody measured the detector's errors."""
    detector_lines: dict[str, str]
    """By concept: the detector in one line."""
    metrics: dict[str, MetricInfo]
    """The policy's metrics, by name."""
    provenance: Provenance
    diagnostics: Diagnostics | None
    attempts: list[Attempt]
    """Earlier certifications of the same model; this one is added to the report."""
    dropped_prompts: int
    evidence_paths: dict[tuple[str, int], str]
    """Contact sheets by (unit address, effort), relative to the run directory."""
    schedules: Mapping[str, Schedule]
    """What every probe of the suite yields, by its id."""
    components: Sequence[Component] = ()
    """Every component of the model against the base's."""
    erasers: bool = False
    """Whether the model holds stored erasers, which only this package puts in place."""
    truncated: Sequence[str] = ()
    """Declared prompts of which the model reads only the beginning, in words."""

    @property
    def alpha(self) -> float:
        """Error probability of every one-sided bound."""
        return 1 - self.policy.certification.confidence

    def select(self, role: Role, probe: str) -> list[UnitResult]:
        """Units of one probe on one model, by seed."""
        found = (unit for unit in self.units if unit.role == role and unit.probe == probe)
        return sorted(found, key=lambda unit: unit.seed)

    def lacking_seeds(self, units: Sequence[UnitResult]) -> str:
        """Which of the declared seeds a control has no unit of, in words; empty: none."""
        found, declared = len({unit.seed for unit in units}), self.policy.certification.seeds
        return "" if found >= declared else f"{found} of {declared} seeds were run"

    def released(self, role: Role) -> list[UnitResult]:
        """Units of one model as it is used, by probe and seed."""
        return [unit for spec in self.probes("none") for unit in self.select(role, spec.id)]

    def probes(self, *intents: Intent) -> list[ProbeSpec]:
        """Probes of the suite with one of these intents that the threat model does not rule out."""
        return [spec for spec in self.suite.probes if spec.intent in intents and spec.id not in self.ruled_out]

    @cached_property
    def ruled_out(self) -> dict[str, list[Means]]:
        """Probes that the threat model rules out, and what the attacker lacks for each."""
        return ruled_out(self.policy, self.schedules)

    @property
    def bad_share(self) -> float:
        """At most this share of all seeds brings a concept above its limit, if all of these pass."""
        return self.uncovered(self.policy.certification.seeds)

    def uncovered(self, passes: int) -> float:
        """At most this share is bad, if so many that were drawn independently all pass."""
        calibrated = any(record is not None for record in self.calibrations.values())
        return uncovered_seeds(passes, self.alpha, calibrated=calibrated)

    @property
    def weak_model(self) -> str:
        """What the weakly erased control is."""
        return f"{weak_unlearner(self.policy).name} alone"

    def false_alarms(self, concept: str) -> tuple[int, int]:
        """The concept's detector on the base model's images of retained subjects: flagged, and all."""
        counts = [pooled(self.released("base"), f"{concept}@{subject.name}") for subject in self.policy.retain]
        return sum(hits for hits, _ in counts), sum(images for _, images in counts)

    def false_positives(self, concept: str) -> float:
        """Upper bound of the detector's false-positive rate, by its calibration or on the base model's benign images,
        whichever is larger; 1 where nobody measured it, since any flag may then be a false one. The other half of alpha
        is that of the FAIL verdicts."""
        return self._false_positives[concept]

    @cached_property
    def _false_positives(self) -> dict[str, float]:
        """Every bound asks for it, and it takes a walk over all rows of the base."""
        return {concept.name: self._false_positive(concept.name) for concept in self.policy.concepts}

    def _false_positive(self, concept: str) -> float:
        alpha = self.alpha / 2 / len(self.policy.concepts)
        record = self.calibrations.get(concept)
        hits, images = self.false_alarms(concept)
        share = alpha / (2 if record else 1)
        bounds = [upper_bound(hits, images, share)] if images else []
        calibrated = false_positive_upper(record, share) if record else None
        return max(bounds + ([calibrated] if calibrated is not None else []), default=1.0)

    def looks(self, unit: UnitResult) -> Looks:
        """The looks that were planned at each checkpoint of a unit; controls are looked at once."""
        (spec,) = (spec for spec in self.suite.probes if spec.id == unit.probe)
        samples = self.policy.certification.at_least(spec.samples)
        return looks_of(self.policy, spec) if unit.role == "hardened" else Fixed(samples)

    def sensitivity(self, concept: str) -> float | None:
        """Lower bound of the detector's sensitivity, with the half of the error that the rate's bound leaves it."""
        record = self.calibrations.get(concept)
        return sensitivity_lower(record, self.alpha / 2) if record else None


def subjects(policy: Policy) -> list[Subject]:
    """Everything that must survive: related subjects, then retained ones."""
    return policy.related + list(policy.retain)


def pooled(units: Iterable[UnitResult], subject: str, effort: int = 0) -> tuple[int, int]:
    """Flagged images and all images of several units together: (k, n)."""
    flags = [row.flagged for row in distinct(units, effort) if row.subject == subject]
    return sum(flags), len(flags)


def distinct(units: Iterable[UnitResult], effort: int = 0) -> list[ImageRow]:
    """Rows of several units, each image once: probes that draw the same images give no more evidence than one."""
    rows = (row for unit in units for row in unit.rows if row.effort == effort)
    return list({(row.subject, row.prompt, row.seed, row.image): row for row in rows}.values())


def check(evidence: Evidence) -> None:
    """Refuse evidence that does not belong together.

    Raises:
        PolicyFault: two concepts or subjects share a name, so their rows cannot be told apart.
        UsageFault: a unit of another model, of a probe outside the suite, of other settings than its probe's other
            units, judged by another detector, or given twice.
    """
    _check_names(evidence.policy)
    known = {spec.id: spec.attack.name for spec in evidence.suite.probes}
    seen: set[tuple[str, str, int]] = set()
    settings: dict[str, dict[str, object]] = {}
    for unit in evidence.units:
        where = f"unit {unit.address} ({unit.role}, {unit.probe}, seed {unit.seed})"
        if known.get(unit.probe) != unit.attack:
            raise UsageFault(f"suite {evidence.suite.name!r} has no such probe of attack {unit.attack!r}", where=where)
        if (unit.role, unit.probe, unit.seed) in seen:
            raise UsageFault("this role, probe and seed was given twice", where=where)
        seen.add((unit.role, unit.probe, unit.seed))
        if unit.settings != settings.setdefault(unit.probe, unit.settings):
            raise UsageFault("its settings are not those of the probe's other units", where=where)
    _check_models(evidence)
    _check_judges(evidence)


def _check_names(policy: Policy) -> None:
    names = Counter(subject.name for subject in [*policy.concepts, *subjects(policy)])
    shared = sorted(name for name, count in names.items() if count > 1)
    if shared:
        raise PolicyFault(
            f"two concepts or subjects are called {shared[0]!r}, so their images cannot be told apart",
            fix="give every concept, related and retained subject its own name",
        )


def _check_models(evidence: Evidence) -> None:
    expected = {"hardened": evidence.provenance.model_digest, "base": evidence.provenance.base_digest}
    for unit in evidence.units:
        # The unlearned-only model is made on the spot: the first unit says which it is, the rest must agree.
        if unit.model_digest != expected.setdefault(unit.role, unit.model_digest):
            raise UsageFault(
                f"unit {unit.address} examined another {unit.role} model than the rest",
                fix="use a fresh run directory for every model",
                where=unit.probe,
            )


def _check_judges(evidence: Evidence) -> None:
    """One detector for each concept and for what must survive, and one metric of each name, in all units."""
    for kind, of_units in (
        ("detector", [unit.detectors for unit in evidence.units]),
        ("metric", [unit.metrics for unit in evidence.units]),
    ):
        for name in sorted({name for digests in of_units for name in digests}):
            found = {digests.get(name) for digests in of_units}
            if len(found) > 1:
                raise UsageFault(
                    f"{len(found)} different {kind}s judged {name!r}, so its values cannot be compared",
                    fix=f"use a fresh run directory after changing a {kind}",
                )
