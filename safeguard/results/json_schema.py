"""The JSON Schemas of what is written down; ``python -m safeguard.results.json_schema`` writes them anew."""

from __future__ import annotations

import json
from pathlib import Path

from safeguard.files import write_text
from safeguard.results.hardening import HardeningRecord
from safeguard.results.measured import MeasuredErrors
from safeguard.results.record import Record
from safeguard.results.report import Report
from safeguard.results.run_plan import RunPlan
from safeguard.results.verification import Verification

SCHEMAS: dict[str, type[Record]] = {
    "report": Report,
    "hardening": HardeningRecord,
    "calibration": MeasuredErrors,
    "plan": RunPlan,
    "verification": Verification,
}
"""Name → what it describes."""


def path(name: str) -> Path:
    """Where a schema stands."""
    return Path(__file__).with_name(f"{name}.schema.json")


def generate(name: str) -> str:
    """A schema's text, as it stands in :func:`path`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[name].model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in SCHEMAS:
        write_text(path(each), generate(each))
