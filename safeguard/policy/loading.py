"""From a policy file to a checked :class:`Policy`, and back to text.

Reading is strict and safe (:mod:`safeguard.policy.reading`), every mistake is named by file, line, column and field
(:mod:`safeguard.policy.validation`), and nothing here imports a method: :func:`check_methods` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from safeguard.cache import address
from safeguard.policy.consistency import contradictions, subjects
from safeguard.policy.methods import check_methods, method_problems, unknown_methods
from safeguard.policy.places import located, portable
from safeguard.policy.reading import FieldPath, Positions, load_yaml, plain_scalar
from safeguard.policy.records import read_records
from safeguard.policy.schema import DetectorMethod, Policy
from safeguard.policy.validation import Problem, fault, field_name, validate

__all__ = [
    "check_methods",
    "load_detector",
    "load_policy",
    "load_policy_text",
    "load_yaml",
    "policy_digest",
    "resolved_yaml",
]


def load_policy(path: Path) -> Policy:
    """Read and check a policy file; registered names are looked up, but no method is imported.

    Relative paths in it are resolved against its folder (:mod:`safeguard.policy.places`).

    Raises:
        PolicyFault: unreadable or invalid, with every problem and its place.
    """
    data, positions = load_yaml(path)
    problems = read_records(data, Path(path).parent)
    if problems:
        raise fault(problems, positions)
    return _policy(located(data, _policy(data, positions), path.resolve().parent), positions)


def load_detector(path: Path) -> DetectorMethod:
    """Read and check a file that declares one detector, ``{name: clip, …}``.

    Raises:
        PolicyFault: unreadable or invalid, or nobody registered it.
    """
    data, positions = load_yaml(path)
    problems = read_records(data, Path(path).parent)
    detector = None if problems else validate(DetectorMethod, data, positions)
    problems += list(method_problems(detector)) if detector else []
    if problems or detector is None:
        raise fault(problems, positions)
    return detector


def load_policy_text(text: str, name: str = "<text>") -> Policy:
    """The same for a text; messages call it ``name``.

    Raises:
        PolicyFault: invalid, with every problem and its place.
    """
    return _policy(*load_yaml(text, name=name))


def resolved_yaml(policy: Policy, *, plain: bool = False) -> str:
    """The policy as YAML with all defaults written out; it loads back to an equal policy.

    Args:
        plain: write other characters than ASCII's as escapes.
    """
    data = policy.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=not plain, width=110)


def policy_digest(policy: Policy) -> str:
    """sha256 (hexadecimal) of the policy with its defaults, as canonical JSON.

    Layout and comments do not count, and neither does where a model, a suite or a checkpoint lies: of an absolute path
    its last name does. What lies there has a digest of its own.
    """
    return address(portable(policy))


def _policy(data: Any, positions: Positions) -> Policy:
    policy = validate(Policy, data, positions)
    problems = [*unknown_methods(policy), *_repeated_names(policy), *contradictions(policy)]
    if problems:
        raise fault(problems, positions)
    return policy


def _repeated_names(policy: Policy) -> Iterator[Problem]:
    """Results are filed by subject name, so no two subjects of a policy may share one."""
    owners: dict[str, FieldPath] = {}
    for path, subject in subjects(policy):
        owner = owners.setdefault(subject.name, path)
        if owner != path:
            yield Problem(
                (*path, "name"), f"{subject.name!r} is already the name of {field_name(owner)}", also=(*owner, "name")
            )


class _Dumper(yaml.SafeDumper):
    """Writes what the reader reads: text that would be read as something else is quoted, nothing becomes an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        quoted = plain_scalar(text) != text
    except ValueError:
        quoted = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _write_text)
