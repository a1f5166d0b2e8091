"""The shipped JSON Schema is current, valid, and agrees with what loads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from safeguard.policy.json_schema import SCHEMA_FILE, policy_json_schema, write_schema
from safeguard.policy.loading import load_yaml
from safeguard.policy.schema import Policy
from safeguard.policy.template import starting_policy
from safeguard.resources import resource_dir


def starting_data() -> Any:
    return load_yaml(starting_policy("demo"))[0]


def test_shipped_copy_is_current(tmp_path):
    write_schema(tmp_path / "now.json")
    hint = "run: python -m safeguard.policy.json_schema"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == (tmp_path / "now.json").read_text(encoding="utf-8"), hint


def test_it_is_a_schema():
    schema = policy_json_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "safeguard policy"
    assert "$id" not in schema


@pytest.mark.parametrize("path", sorted(resource_dir("policies").glob("*.yaml")), ids=lambda path: path.stem)
def test_it_accepts_what_loads(path):
    Draft202012Validator(policy_json_schema()).validate(load_yaml(path)[0])


def test_it_accepts_the_starting_policy():
    Draft202012Validator(policy_json_schema()).validate(starting_data())


@pytest.mark.parametrize(
    "change",
    [{"extra": 1}, {"version": 2}, {"concepts": []}, {"requirements": [{"probe": "a", "max_rate": 2}]}, {"seed": "0"}],
)
def test_it_refuses_what_does_not_load(change: dict[str, object]):
    assert not Draft202012Validator(policy_json_schema()).is_valid(starting_data() | change)


def test_required_fields_are_those_of_the_model():
    required = {name for name, field in Policy.model_fields.items() if field.is_required()}
    assert set(policy_json_schema()["required"]) == required


def test_it_is_regenerated_as_json(tmp_path):
    write_schema(tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == policy_json_schema()
