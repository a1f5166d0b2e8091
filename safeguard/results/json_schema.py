"""The JSON Schema of ``report.json``; ``python -m safeguard.results.json_schema`` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path

from safeguard.files import write_text
from safeguard.results.report import Report

PATH = Path(__file__).with_name("report.schema.json")


def generate() -> str:
    """The schema's text, as it stands in :data:`PATH`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(PATH, generate())
