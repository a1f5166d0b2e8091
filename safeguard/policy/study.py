"""A study: the same tasks under many policies.

A study file shares one policy among all its cells; a *task* says what is to be erased, a *variant* how. The policy of a
cell is the shared one with the task's fields and then the variant's laid over it, mapping by mapping. The same cell may
be run with several seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from safeguard.cache import address
from safeguard.errors import PolicyFault
from safeguard.policy.loading import load_policy_text
from safeguard.policy.methods import method_problems
from safeguard.policy.reading import load_yaml
from safeguard.policy.schema import Identifier, Policy, Strict, Text
from safeguard.policy.validation import fault, validate
from safeguard.resources import find_resource


class Part(Strict):
    """A row or a column of a study."""

    title: Text
    """For readers of the table."""
    policy: dict[str, Any]
    """Fields of a policy, laid over those that all cells share."""


class Study(Strict):
    """A whole study file."""

    version: Literal[1]
    name: Identifier
    title: Text
    description: str = ""
    policy: dict[str, Any]
    """What the policies of all cells share."""
    tasks: Annotated[dict[Identifier, Part], Field(min_length=1)]
    """What is to be erased: one table each."""
    variants: Annotated[dict[Identifier, Part], Field(min_length=1)]
    """How: one row each."""

    @property
    def digest(self) -> str:
        """sha256 of the study as canonical JSON."""
        return address(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Cell:
    """One variant on one task with one seed, as a policy."""

    task: str
    variant: str
    policy: Policy

    @property
    def name(self) -> str:
        """``weapons/esd``."""
        return f"{self.task}/{self.variant}"

    @property
    def seed(self) -> int:
        """That of the policy."""
        return self.policy.seed


def load_study(name_or_path: str) -> Study:
    """Read a study: a shipped one by name, or a file (text with a slash or a dot in it).

    Raises:
        UsageFault: no shipped study has that name.
        PolicyFault: the file cannot be read or is invalid.
    """
    data, positions = load_yaml(find_resource("study", "studies", name_or_path))
    return validate(Study, data, positions)


def cells(study: Study, seeds: Sequence[int] = ()) -> Iterator[Cell]:
    """Every variant on every task; the settings of their methods are checked.

    Args:
        seeds: each cell once with each, instead of the seed that its policy has.

    Raises:
        PolicyFault: a cell whose fields do not make a valid policy.
    """
    for task, what in study.tasks.items():
        for variant, how in study.variants.items():
            data = merged(merged(study.policy, what.policy), how.policy)
            data |= {"version": 1, "name": f"{study.name}-{task}-{variant}"}
            for own in [{"seed": seed} for seed in dict.fromkeys(seeds)] or [{}]:
                yield Cell(task, variant, _policy(data | own, f"cell {task}/{variant} of study {study.name!r}"))


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``: mappings are merged, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def _policy(data: dict[str, Any], where: str) -> Policy:
    try:
        policy = load_policy_text(json.dumps(data, ensure_ascii=False), name=where)  # JSON is YAML
        if problems := method_problems(policy):
            raise fault(problems, None)
    except PolicyFault as refused:
        raise PolicyFault(refused.what, fix=refused.fix, where=where) from refused
    return policy
