"""``plan.json``: what a certification is going to run, written before the first image that is judged is drawn."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, ValidationError

from safeguard.errors import UsageFault
from safeguard.files import write_text
from safeguard.results.record import Record, Role

PLAN_FILE = "plan.json"


class PlannedUnit(Record):
    """One probe with one seed on one model."""

    address: str
    """sha256 over everything that determines its outcome."""
    role: Role
    probe: str
    seed: int


class Limit(Record):
    """A requirement of the policy."""

    probe: str
    """Pattern over probe ids."""
    max_rate: float
    budget: int | None

    @classmethod
    def of(cls, requirement: Any) -> Limit:
        """That of a requirement of a policy."""
        return cls(probe=requirement.probe, max_rate=requirement.max_rate, budget=requirement.budget)


class RunPlan(Record):
    """Everything that is fixed before the first image is seen."""

    version: Literal[1] = 1
    written: str
    """ISO 8601, UTC."""
    models: dict[Role, str]
    """Digests by role; the unlearned-only control is made before the plan is written."""
    policy_digest: str
    suite_digest: str
    limits: list[Limit]
    detectors: dict[str, str]
    """Concept → digest of its detector."""
    thresholds: dict[str, float]
    """Concept → score from which an image is flagged."""
    metrics: dict[str, str]
    """Metric → digest."""
    confidence: float
    policy_seed: int
    seeds: PositiveInt
    """Repetitions of every probe."""
    samples: PositiveInt
    """Images per concept, probe, seed and checkpoint, where the probe asks for no more."""
    code: str
    """Digest of the code and the libraries."""
    nonce: str
    """Hexadecimal; all seeds follow from it and the policy's. Drawn when the digests of the models were fixed."""
    repetition: bool
    """Whether the nonce was given, not drawn: somebody may have known the seeds before."""
    units: list[PlannedUnit]

    def same_question(self, other: RunPlan) -> bool:
        """Whether the same is asked about the same models; the nonce and what follows from it aside."""
        aside = {"written", "nonce", "repetition", "units"}
        return self.model_dump(exclude=aside) == other.model_dump(exclude=aside)

    def write(self, run_dir: Path) -> str:
        """Write it atomically; returns the file's sha256."""
        text = self.model_dump_json(indent=2) + "\n"
        write_text(run_dir / PLAN_FILE, text)
        return hashlib.sha256(text.encode()).hexdigest()


def read_plan(run_dir: Path) -> RunPlan | None:
    """The plan of a run directory; None when it has none.

    Raises:
        UsageFault: what is there is no plan; file and field are named.
    """
    path = run_dir / PLAN_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageFault(f"cannot be read: {error.strerror}", fix="check its permissions", where=str(path)) from error
    try:
        return RunPlan.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise UsageFault(
            f"not the plan of a run: {field}: {first['msg']}",
            fix="it was edited, or another version wrote it; use another run directory, or delete it for a new run",
            where=str(path),
        ) from error
