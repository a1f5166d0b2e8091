"""Checks the settings of every method a policy names against the method's own schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from safeguard.errors import EnvironmentFault
from safeguard.policy.reading import FieldPath, load_yaml
from safeguard.policy.schema import DetectorMethod, Method, Policy, Subject
from safeguard.policy.validation import Problem, fault, problems_of
from safeguard.registry import suggest


def used_methods(value: object, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Method]]:
    """Every method that a model names, at any depth, with its field; settings of methods are not looked into."""
    if isinstance(value, Method):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from used_methods(getattr(value, name), (*path, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from used_methods(item, (*path, index))


def unknown_methods(value: object, path: FieldPath = ()) -> Iterator[Problem]:
    """Methods of a model that nobody registered."""
    for field, method in used_methods(value, path):
        known = method.registry.names()
        if method.name not in known:
            what = f"unknown {method.registry.kind} {method.name!r}; {suggest(method.name, known)}"
            yield Problem((*field, "name"), what)


def check_methods(policy: Policy, source: Path | None = None) -> None:
    """Validate all method settings; imports the methods, hence usually torch.

    Args:
        source: the file the policy came from, so that messages can name line and column.

    Raises:
        UsageFault: a method is not registered.
        PolicyFault: settings a method does not have or cannot take, all of them.
        EnvironmentFault: a method needs a package that is not installed.
    """
    problems = method_problems(policy) or list(label_problems(policy))
    if problems:
        raise fault(problems, load_yaml(source)[1] if source else None)


def label_problems(policy: Policy) -> Iterator[Problem]:
    """Labels that the detector which is asked for them cannot work with; settings of methods are valid by then."""
    for path, subject, detector, own in _asked(policy):
        check = getattr(detector.registry.get(detector.name), "check_labels", None)
        if check is None:  # of another package, from before detectors could say
            continue
        for what in check(detector.registry.config(detector), list(subject.labels), own=own):
            yield Problem((*path, "labels"), what)


def _asked(policy: Policy) -> Iterator[tuple[FieldPath, Subject, DetectorMethod, bool]]:
    """Every subject with the detector that is asked for its labels, and whether it is a concept asked of its own."""
    benign, first = policy.utility.detector, policy.concepts[0].detector
    for i, concept in enumerate(policy.concepts):
        yield ("concepts", i), concept, concept.detector, True
        for j, related in enumerate(concept.related):
            yield ("concepts", i, "related", j), related, benign or concept.detector, False
    for i, subject in enumerate(policy.retain):
        yield ("retain", i), subject, benign or first, False


def method_problems(value: object, path: FieldPath = ()) -> list[Problem]:
    """What is wrong with the methods a model names, and with those that their settings name in turn."""
    unknown = list(unknown_methods(value, path))
    return unknown or [problem for use in used_methods(value, path) for problem in _check(*use)]


def _check(path: FieldPath, method: Method) -> list[Problem]:
    config: Any = getattr(_import(method), "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        return [Problem((*path, name), f"{method.name} takes no settings", at_key=True) for name in method.settings]
    settings = method.model_dump(mode="json", include=set(method.settings))
    try:
        checked = config.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        found = problems_of(error, config, settings)
        return [Problem((*path, *problem.path), problem.what, problem.at_key) for problem in found]
    return method_problems(checked, path)


def _import(method: Method) -> Any:
    try:
        return method.registry.get(method.name)
    except ImportError as error:
        raise EnvironmentFault(
            f"the {method.registry.kind} {method.name!r} cannot be imported: {error}",
            fix="install the package it needs",
        ) from error
