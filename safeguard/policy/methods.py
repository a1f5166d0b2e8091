"""Checks the settings of every method a policy names against the method's own schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from safeguard.errors import EnvironmentFault
from safeguard.policy.reading import FieldPath, load_yaml
from safeguard.policy.schema import Method, Policy
from safeguard.policy.validation import Problem, fault, problems_of
from safeguard.registry import Registry, detectors, resilience, unlearners


def used_methods(policy: Policy) -> Iterator[tuple[FieldPath, Method, Registry]]:
    """Every method of a policy: its field, itself, and the registry it comes from."""
    for index, concept in enumerate(policy.concepts):
        yield ("concepts", index, "detector"), concept.detector, detectors
    yield ("harden", "unlearner"), policy.harden.unlearner, unlearners
    yield ("harden", "resilience"), policy.harden.resilience, resilience


def check_methods(policy: Policy, source: Path | None = None) -> None:
    """Validate all method settings; imports the methods, hence usually torch.

    Args:
        source: the file the policy came from, so that messages can name line and column.

    Raises:
        UsageFault: a method is not registered.
        PolicyFault: settings a method does not have or cannot take, all of them.
        EnvironmentFault: a method needs a package that is not installed.
    """
    problems = [problem for use in used_methods(policy) for problem in _check(*use)]
    if problems:
        raise fault(problems, load_yaml(source)[1] if source else None)


def _check(path: FieldPath, method: Method, registry: Registry) -> list[Problem]:
    config: Any = getattr(_import(method, registry), "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        return [Problem((*path, name), f"{method.name} takes no settings", at_key=True) for name in method.settings]
    settings = method.model_dump(mode="json", exclude={"name"})
    try:
        config.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        found = problems_of(error, config, settings)
        return [Problem((*path, *problem.path), problem.what, problem.at_key) for problem in found]
    return []


def _import(method: Method, registry: Registry) -> Any:
    try:
        return registry.get(method.name)
    except ImportError as error:
        raise EnvironmentFault(
            f"the {registry.kind} {method.name!r} cannot be imported: {error}", fix="install the package it needs"
        ) from error
