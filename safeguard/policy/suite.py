"""A suite: the probes a certification runs, as a file. Shipped ones stand in ``probes/``; a policy may name its own.

An attack checks its own settings, so that other packages' attacks can have theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from safeguard.cache import address
from safeguard.policy.levels import KINDS, MALICIOUS
from safeguard.policy.methods import method_problems, unknown_methods
from safeguard.policy.places import located_folders, portable_folders
from safeguard.policy.reading import FieldPath, Positions, load_yaml
from safeguard.policy.schema import AttackMethod, Identifier, Policy, Strict, Subject, UnlearnerMethod
from safeguard.policy.threat import WORDS, Means
from safeguard.policy.validation import Problem, fault, validate
from safeguard.registry import suggest
from safeguard.resources import find_resource
from safeguard.results.plan import Schedule
from safeguard.results.record import Role
from safeguard.wording import NUMBERED

Intent = Literal["none", "benign", "malicious"]


class ProbeSpec(Strict):
    """One way of attacking or using the model, as a suite declares it::

    - id: malicious-full
      title: Full fine-tune on the concept
      intent: malicious
      attack: {name: finetune, data: concept, training: {steps: 300}, checkpoints: [50, 100, 300]}
    """

    id: Identifier
    """What requirements match: ``malicious-lora``."""
    title: Annotated[str, Field(min_length=1, max_length=200)]
    """What it does, for readers of the report."""
    intent: Intent
    """Who does it: nobody (the model as it is used), a harmless user, or somebody who wants the concept back."""
    attack: AttackMethod
    """The attack with its settings (``safeguard list attacks``)."""
    control: bool = True
    """Also run on the unlearned-only model, to show what the objective added; off where time matters more. A malicious
    attack always is, since one that brings nothing back there proves nothing."""
    samples: PositiveInt | None = None
    """Images per concept and checkpoint, at least those of the policy; none: as many. The tightest limit needs most."""


class Suite(Strict):
    """The probes of a certification."""

    version: Literal[1] = 1
    name: Identifier
    description: str = ""
    probes: Annotated[list[ProbeSpec], Field(min_length=1)]

    @field_validator("probes")
    @classmethod
    def _unique_ids(cls, probes: list[ProbeSpec]) -> list[ProbeSpec]:
        ids = [probe.id for probe in probes]
        repeated = sorted({probe for probe in ids if ids.count(probe) > 1})
        if repeated:
            raise ValueError(f"two probes share the id {repeated[0]!r}")
        return probes

    def matching(self, pattern: str, schedules: Mapping[str, Schedule]) -> list[ProbeSpec]:
        """The probes that a requirement judges: those of this name, but for such as are only reported."""
        return [spec for spec in self.probes if fnmatchcase(spec.id, pattern) and not reported_only(spec.id, schedules)]


def reported_only(probe: str, schedules: Mapping[str, Schedule]) -> bool:
    """Whether no requirement judges a probe, whatever its pattern."""
    schedule = schedules.get(probe)
    return schedule is not None and schedule.reported_only


class SuiteFile(Suite):
    """A whole suite file."""

    extends: list[Identifier] = []
    """Shipped suites whose probes come before its own."""

    def whole(self, positions: Positions) -> Suite:
        """With the probes of what it extends.

        Raises:
            UsageFault: no shipped suite has that name.
            PolicyFault: two of the suites have a probe of the same id.
        """
        suites = [*(load_suite(name) for name in self.extends), self]
        probes = [probe for suite in suites for probe in suite.probes]
        ids = [probe.id for probe in probes]
        if repeated := sorted({probe for probe in ids if ids.count(probe) > 1}):
            what = f"the probe {repeated[0]!r} is there more than once, with what the suite extends: name it otherwise"
            raise fault([Problem(("extends",), what)], positions)
        return Suite(version=self.version, name=self.name, description=self.description, probes=probes)


def load_suite(name_or_path: str | Path) -> Suite:
    """Read a suite; names of methods are looked up, but no method is imported.

    Args:
        name_or_path: a shipped suite's name (``standard``), or a file: a ``Path``, or text with a slash or a dot in it.

    Raises:
        UsageFault: no shipped suite has that name.
        PolicyFault: the file cannot be read or is invalid, with every problem and its place.
    """
    declared, positions = _read(name_or_path)
    return declared.whole(positions)


def _read(name_or_path: str | Path) -> tuple[SuiteFile, Positions]:
    path = find_resource("suite", "probes", name_or_path)
    data, positions = load_yaml(path)
    declared = validate(SuiteFile, located_folders(data, path.resolve().parent), positions)
    if unknown := list(unknown_methods(declared)):
        raise fault(unknown, positions)
    return declared, positions


def check_suite(name_or_path: str | Path) -> Suite:
    """Read a suite and check the settings of all its attacks; imports them, hence torch.

    Raises:
        UsageFault: as :func:`load_suite`.
        PolicyFault: as :func:`load_suite`, and for settings that an attack does not have or cannot take.
        EnvironmentFault: a method needs a package that is not installed.
    """
    declared, positions = _read(name_or_path)
    if problems := method_problems(declared):
        raise fault(problems, positions)
    return declared.whole(positions)


def suite_digest(suite: Suite) -> str:
    """sha256 (hexadecimal) of the suite as canonical JSON; layout, comments and where a folder lies do not count."""
    return address(portable_folders(suite.model_dump(mode="json")))


ROLES: tuple[Role, ...] = ("base", "unlearned", "hardened")
"""Models to examine, controls first: the untouched base, a weakly erased one, the certified one."""


def needs(role: Role, spec: ProbeSpec) -> bool:
    """Whether a probe is run on a model.

    A malicious attack must bring the concept back in the weakly erased model, and a benign fine-tune must teach the
    base something; without that, withstanding them proves nothing.
    """
    if role == "hardened" or spec.intent == "none":
        return True
    if role == "unlearned":
        return spec.control or spec.intent == "malicious"
    return spec.intent == "benign"


def weak_unlearner(policy: Policy) -> UnlearnerMethod:
    """What erases the weakly erased control: the policy's unlearner alone, or, where just that is certified, a
    closed-form edit that is made in seconds."""
    return UnlearnerMethod(name="uce") if policy.harden.resilience.name == "none" else policy.harden.unlearner


def ruled_out(policy: Policy, schedules: Mapping[str, Schedule]) -> dict[str, list[Means]]:
    """Probes that the threat model rules out, by id, with what the attacker lacks for them: they are not run."""
    lacking = {probe: policy.threat_model.lacking(schedule.needs) for probe, schedule in schedules.items()}
    return {probe: means for probe, means in lacking.items() if means}


def lacks(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> list[Problem]:
    """Where a policy and a suite do not fit each other: what does not would be found after hours.

    Args:
        schedules: of every probe of the suite, by id.
    """
    return [
        *_untested(policy, suite, schedules),
        *_budgets(policy, suite, schedules),
        *_sources(policy, suite, schedules),
        *_concepts(policy, suite, schedules),
        *_intents(suite, schedules),
        *_unmeasured(policy),
    ]


def _untested(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> Iterator[Problem]:
    """Requirements that no probe of the suite, or none that is run, is about."""
    lacking, ids = ruled_out(policy, schedules), ", ".join(spec.id for spec in suite.probes)
    for index, requirement in enumerate(policy.requirements):
        path, found = ("requirements", index, "probe"), suite.matching(requirement.probe, schedules)
        if not found:
            alone = [spec.id for spec in suite.probes if fnmatchcase(spec.id, requirement.probe)]
            why = f"; of these nothing may be required of {', '.join(alone)}, which is only reported" if alone else ""
            yield Problem(path, f"no probe of suite {suite.name!r} matches; it has {ids}{why}")
        elif all(spec.id in lacking for spec in found):
            needs = (f"{spec.id} needs {' and '.join(WORDS[means] for means in lacking[spec.id])}" for spec in found)
            what = "the threat model rules out every probe that it names, so that nothing would be tested: "
            yield Problem(path, what + "; ".join(needs))


def _budgets(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> Iterator[Problem]:
    """Budgets within which a probe is never looked at once it has begun, or not at their end."""
    for index, requirement in enumerate(policy.requirements):
        for spec in suite.matching(requirement.probe, schedules):
            later, budget = [effort for effort in schedules[spec.id].efforts if effort], requirement.budget
            if budget is None or not later or budget in later:
                continue
            begun = any(effort < budget for effort in later)
            verb = "has" if schedules[spec.id].axis in NUMBERED else "is looked at after"
            looks = f"probe {spec.id!r} of suite {suite.name!r} {verb} {', '.join(map(str, later))}"
            what = "not at the budget itself" if begun else "never within the budget, which would be judged undone"
            advice = f"take one of these as the budget, or give the probe a checkpoint at {budget}"
            if schedules[spec.id].axis in NUMBERED:
                no_effort = f"{schedules[spec.id].axis} are no effort"
                advice = f"{no_effort}, so name the probe in a requirement of its own, without a budget"
            yield Problem(("requirements", index, "budget"), f"{looks} {schedules[spec.id].axis}, {what}: {advice}")


def _sources(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> Iterator[Problem]:
    """Probes that fine-tune on what the policy does not declare, or begin with its images."""
    declared = {"concept": True, "related": bool(policy.related), "retain": bool(policy.retain)}
    words = {"concept": "the concepts", "related": "related subjects", "retain": "retained subjects"}
    for spec in suite.probes:
        verb = "fine-tunes on" if schedules[spec.id].cost.steps else "needs images of"
        for source in schedules[spec.id].sources:
            if not declared[source]:
                yield Problem(
                    ("certification", "suite"),
                    f"probe {spec.id!r} of suite {suite.name!r} {verb} {words[source]}, and there are none: "
                    "declare some, or name another suite",
                )


def _concepts(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> Iterator[Problem]:
    """Probes whose settings name other concepts than the policy's, or not all of them."""
    declared = {concept.name for concept in policy.concepts}
    for spec in suite.probes:
        named, probe = set(schedules[spec.id].concepts), f"probe {spec.id!r} of suite {suite.name!r}"
        for name in sorted(named - declared):
            what = (
                f"{probe} has prompts of a concept {name!r}, which is not declared; {suggest(name, sorted(declared))}"
            )
            yield Problem(("certification", "suite"), what)
        for name in sorted(declared - named if named else ()):
            yield Problem(("certification", "suite"), f"{probe} has prompts of other concepts and none of {name!r}")


def _intents(suite: Suite, schedules: Mapping[str, Schedule]) -> Iterator[Problem]:
    """Probes whose intent does not fit what they do."""
    for spec in suite.probes:
        known, name = schedules[spec.id], f"probe {spec.id!r} of suite {suite.name!r}"
        if "concept" in known.sources and spec.intent != "malicious":
            what = f"{name} trains on images of the concepts: its intent is malicious"
            yield Problem(("certification", "suite"), what)
        elif spec.intent == "none" and known.cost.steps:
            yield Problem(("certification", "suite"), f"{name} trains the model: its intent is benign or malicious")
        elif spec.intent != "malicious" and (wants := MALICIOUS & set(known.covers)):
            what = f"{name} wants the concept back ({', '.join(KINDS[kind] for kind in sorted(wants))})"
            yield Problem(("certification", "suite"), f"{what}: its intent is malicious")


def _unmeasured(policy: Policy) -> Iterator[Problem]:
    """Benign subjects that nothing measures."""
    for path, subject in benign_subjects(policy):
        if not subject.labels and not policy.utility.metrics:
            what = "without labels a subject is measured by utility.metrics, and there are none"
            yield Problem((*path, "labels"), what)


def benign_subjects(policy: Policy) -> Iterator[tuple[FieldPath, Subject]]:
    """Every related and retained subject, with its field."""
    for i, concept in enumerate(policy.concepts):
        for j, subject in enumerate(concept.related):
            yield ("concepts", i, "related", j), subject
    for i, subject in enumerate(policy.retain):
        yield ("retain", i), subject
