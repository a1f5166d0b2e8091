"""``attempts.jsonl``: every certification of a run directory, so that trying until it passes stays visible."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safeguard.results.report import Attempt

FILE = "attempts.jsonl"


def earlier(run_dir: Path, model_digest: str) -> list[Attempt]:
    """Certifications of this model in this run directory, oldest first."""
    path = run_dir / FILE
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [Attempt(**row["attempt"]) for row in rows if row["model"] == model_digest]


def remember(run_dir: Path, model_digest: str, attempt: Attempt) -> None:
    """Append one."""
    run_dir.mkdir(parents=True, exist_ok=True)
    row = {"model": model_digest, "attempt": attempt.model_dump()}
    with (run_dir / FILE).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
