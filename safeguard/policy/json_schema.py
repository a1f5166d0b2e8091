"""The JSON Schema of a policy, for editors; ``python -m safeguard.policy.json_schema`` writes the shipped copy anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safeguard.policy.schema import Policy

SCHEMA_FILE = Path(__file__).with_name("policy.schema.json")
"""The copy that is shipped; policy files point their editor at it."""


def policy_json_schema() -> dict[str, Any]:
    """Draft 2020-12, with the fields' descriptions; what a file may say, without defaults being required."""
    schema = Policy.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "safeguard policy"}


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Write the schema as indented JSON."""
    from safeguard.files import write_json

    write_json(path, policy_json_schema())


if __name__ == "__main__":
    write_schema()
