"""A finished certification computed again from its files: every digest, row, bound, claim, and the verdict.

Nothing here draws an image or needs a model: an image itself is compared by drawing it again (`certify --nonce`). What
somebody changed who rewrote every file consistently is not found, for the report is not signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safeguard.certify.basis import evidence_of, policy_and_suite
from safeguard.certify.consistency import contradictions
from safeguard.certify.evidence import Evidence
from safeguard.certify.stopping import stop_rules
from safeguard.certify.stored import Stored, recomputed, stored_units
from safeguard.errors import SafeguardError
from safeguard.policy.contradictions import Examination
from safeguard.policy.examination import asked
from safeguard.policy.loading import load_policy, policy_digest
from safeguard.policy.schema import Policy
from safeguard.policy.suite import Suite, suite_digest
from safeguard.results.attempts import FILE, Entry, Log
from safeguard.results.hardening import POLICY_FILE
from safeguard.results.merkle import rows_root
from safeguard.results.plan import Schedule
from safeguard.results.provenance import Integrity
from safeguard.results.report import Report
from safeguard.results.run_plan import PLAN_FILE, Limit, RunPlan, read_plan
from safeguard.results.verification import Check, Verification


@dataclass(frozen=True)
class Finished:
    """A finished certification and the model it is about.

    Attributes:
        run_dir: the run directory.
        changes: what distinguishes the model directory from the report's manifest, in words.
        model_digest: of the model directory as it is now.
        schedules: what each probe of the embedded suite yields.
    """

    report: Report
    run_dir: Path
    changes: list[str]
    model_digest: str
    schedules: Mapping[str, Schedule]

    @cached_property
    def embedded(self) -> tuple[Policy, Suite]:
        """Policy and suite of the report."""
        return policy_and_suite(self.report)

    @cached_property
    def evidence(self) -> Evidence:
        """What the report embeds of its evidence, without units."""
        return evidence_of(self.report, [])

    @cached_property
    def stored(self) -> Stored:
        """The units."""
        return stored_units(self.report, self.run_dir)

    @cached_property
    def integrity(self) -> Integrity:
        """What binds the report to its files."""
        assert self.report.integrity is not None, "only a report of a certification is verified"
        return self.report.integrity

    @cached_property
    def plan(self) -> tuple[RunPlan | None, list[str]]:
        """The plan, and why there is none."""
        try:
            found = read_plan(self.run_dir)
        except SafeguardError as error:
            return None, [error.what]
        return found, [] if found else [f"{PLAN_FILE} is missing"]

    def verify(self) -> Verification:
        """All checks."""
        checks = {
            "the report agrees with itself": contradictions(self.report),
            "files of the model": self._model(),
            "policy and suite": self._policy(),
            "the plan": self._plan(),
            "units": self.stored.problems,
            "rows of the units": self._rows(),
            "the tree over all rows": self._tree(),
            "bounds, controls, claims and verdict": self._verdict(),
            "attempts": self._attempts(),
        }
        return Verification(
            verdict=self.report.verdict,
            model_digest=self.model_digest,
            checks=[Check(title=title, deviations=list(told)) for title, told in checks.items()],
        )

    def _model(self) -> Iterator[str]:
        stated = self.report.provenance.model_digest
        yield from self.changes
        if self.model_digest != stated:
            yield f"the model's digest is {self.model_digest}, the report's {stated}"

    def _policy(self) -> Iterator[str]:
        """Embedded ones, and the policy that lies in the run directory."""
        (policy, suite), provenance = self.embedded, self.report.provenance
        if policy_digest(policy) != provenance.policy_digest:
            yield f"the embedded policy has digest {policy_digest(policy)}, the report's is {provenance.policy_digest}"
        if suite_digest(suite) != provenance.suite_digest:
            yield f"the embedded suite has digest {suite_digest(suite)}, the report's is {provenance.suite_digest}"
        if dict(self.evidence.schedules) != dict(self.schedules):
            yield "the report says of the suite's probes what they do not do"
        try:
            if policy_digest(load_policy(self.run_dir / POLICY_FILE)) != provenance.policy_digest:
                yield f"{POLICY_FILE} of the run directory is another policy"
        except SafeguardError as error:
            yield f"{POLICY_FILE} of the run directory: {error.what.splitlines()[0]}"

    def _plan(self) -> Iterator[str]:
        plan, problems = self.plan
        yield from problems
        if plan is None:
            return
        content = (self.run_dir / PLAN_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.integrity.plan:
            yield f"{PLAN_FILE} is not the file that the report was made with"
        policy, suite = self.embedded
        provenance, settings = self.report.provenance, policy.certification
        pairs = {
            "nonce": (plan.nonce, provenance.nonce),
            "repetition": (plan.repetition, provenance.repetition),
            "certified model": (plan.models.get("hardened"), provenance.model_digest),
            "base model": (plan.models.get("base"), provenance.base_digest),
            "policy": (plan.policy_digest, provenance.policy_digest),
            "suite": (plan.suite_digest, provenance.suite_digest),
            "confidence": (plan.confidence, settings.confidence),
            "seed of the policy": (plan.policy_seed, policy.seed),
            "seeds": (plan.seeds, settings.seeds),
            "samples": (plan.samples, settings.samples),
            "limits": (plan.limits, [Limit.of(requirement) for requirement in policy.requirements]),
        }
        yield from (
            f"{name}: {said!r} in the plan, {other!r} in the report"
            for name, (said, other) in pairs.items()
            if said != other
        )
        if plan.units != self.report.planned:
            yield "the units of the plan are not the planned ones of the report"
        if [unit.address for unit in plan.units] != [unit.address for unit in self.report.run]:
            yield "the units that the verdict rests on are not those of the plan"
        wanted = [(role, spec.id, seed) for role, spec, seed in asked(policy, suite, self.schedules)]
        if [(unit.role, unit.probe, unit.seed) for unit in plan.units] != wanted:
            yield "the units of the plan are not those that policy and suite ask for"

    def _rows(self) -> Iterator[str]:
        plan, _ = self.plan
        if plan is None:
            yield "they cannot be compared without a plan"
            return
        policy, suite = self.embedded
        examination = Examination(
            policy=policy,
            nonce=self.report.provenance.nonce,
            models=plan.models,
            schedules=self.schedules,
            digests={"detectors": plan.detectors, "metrics": plan.metrics},
            thresholds=plan.thresholds,
            code=plan.code,
            stops=stop_rules(policy, suite, self.schedules, self.evidence.calibrations),
        )
        for unit in self.stored.units:
            name = f"{unit.role}, {unit.probe}, seed {unit.seed} (units/{unit.address[:12]}…)"
            yield from (f"{name}: {what}" for what in examination.contradictions(unit))

    def _tree(self) -> Iterator[str]:
        units = self.stored.units
        rows, root = sum(len(unit.rows) for unit in units), rows_root(units)
        if rows != self.integrity.rows:
            yield f"there are {rows} rows, the report rests on {self.integrity.rows}"
        if root != self.integrity.rows_root:
            yield f"its root is {root}, the report's {self.integrity.rows_root}"

    def _verdict(self) -> list[str]:
        return recomputed(self.report, self.stored.units)

    def _attempts(self) -> Iterator[str]:
        """The log of the run directory: whole up to this certification, whose line is the one that the report names."""
        log = Log(self.run_dir / FILE, FILE)
        _, problems = log.entries()
        yield from problems
        lines = {hashlib.sha256(line).hexdigest(): line for line in log.lines()}
        if self.integrity.log not in lines:
            yield f"{FILE} lacks the line of this certification"
            return
        entry = Entry.model_validate_json(lines[self.integrity.log])
        this = self.report.attempts[-1] if self.report.attempts else None
        if this is None or (entry.verdict, entry.started, entry.model, entry.policy, entry.nonce) != (
            this.verdict,
            this.started,
            this.model_digest,
            this.policy_digest,
            this.nonce,
        ):
            yield f"{FILE} tells another verdict, model, policy or nonce of this certification than the report"
