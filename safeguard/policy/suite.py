"""A suite: the probes a certification runs, as a file. Shipped ones stand in ``probes/``; a policy may name its own.

The settings of a probe are checked by the probe itself, so that other packages' probes can have theirs.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from safeguard.cache import address
from safeguard.policy.reading import load_yaml
from safeguard.policy.schema import Identifier, Policy, Strict, Subject
from safeguard.policy.validation import Problem, fault, validate
from safeguard.registry import probes, suggest
from safeguard.resources import find_resource

Data = Literal["none", "concept", "related", "retain"]
_LACKS = {
    "related": "fine-tunes on related subjects, and no concept has any: declare some, or name another suite",
    "retain": "fine-tunes on retained subjects, and there are none: declare some, or name another suite",
}


class ProbeSpec(Strict):
    """One way of attacking the model."""

    id: Identifier
    """What requirements match: ``malicious-lora``."""
    kind: str
    """Registered probe (``safeguard list probes``)."""
    title: Annotated[str, Field(min_length=1, max_length=200)]
    """What it does, for readers of the report."""
    data: Data = "none"
    """Whose images are fine-tuned on: the concepts', their related subjects', the retained ones', or nobody's."""
    control: bool = True
    """Also run on the unlearned-only model, to show what the objective added; off where time matters more."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The probe's own settings."""


class Suite(Strict):
    """A whole suite file."""

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

    def matching(self, pattern: str) -> list[ProbeSpec]:
        """The probes that a requirement is about."""
        return [spec for spec in self.probes if fnmatchcase(spec.id, pattern)]


def load_suite(name_or_path: str | Path) -> Suite:
    """Read a suite.

    Args:
        name_or_path: a shipped suite's name (``standard``), or a file: a ``Path``, or text with a slash or a dot in it.

    Raises:
        UsageFault: no shipped suite has that name.
        PolicyFault: the file cannot be read or is invalid, with every problem and its place.
    """
    data, positions = load_yaml(find_resource("suite", "probes", name_or_path))
    suite = validate(Suite, data, positions)
    unknown = [
        Problem(("probes", index, "kind"), f"unknown probe {spec.kind!r}; {suggest(spec.kind, probes.names())}")
        for index, spec in enumerate(suite.probes)
        if spec.kind not in probes.names()
    ]
    if unknown:
        raise fault(unknown, positions)
    return suite


def suite_digest(suite: Suite) -> str:
    """sha256 (hexadecimal) of the suite as canonical JSON; layout and comments do not count."""
    return address(suite.model_dump(mode="json"))


def subjects_of(policy: Policy, data: Data) -> list[Subject]:
    """Whose images a policy's fine-tunes of that kind see."""
    if data == "concept":
        return list(policy.concepts)
    if data == "related":
        return policy.related
    return list(policy.retain) if data == "retain" else []


def check_requirements(policy: Policy, source: Path | None = None) -> None:
    """A policy and its suite must fit each other: what does not would be found after hours.

    Args:
        source: the file the policy came from, so that messages can name line and column.

    Raises:
        PolicyFault: a requirement is about no probe, or a probe has no images to fine-tune on.
    """
    suite = load_suite(policy.certification.suite)
    ids = ", ".join(spec.id for spec in suite.probes)
    problems = [
        Problem(("requirements", index, "probe"), f"no probe of suite {suite.name!r} matches; it has {ids}")
        for index, requirement in enumerate(policy.requirements)
        if not suite.matching(requirement.probe)
    ]
    problems += [
        Problem(("certification", "suite"), f"probe {spec.id!r} of suite {suite.name!r} {_LACKS[spec.data]}")
        for spec in suite.probes
        if spec.data in _LACKS and not subjects_of(policy, spec.data)
    ]
    if problems:
        raise fault(problems, load_yaml(source)[1] if source else None)
