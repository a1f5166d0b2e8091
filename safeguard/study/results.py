"""``study.json``: what came of every cell of a study."""

from __future__ import annotations

from typing import Literal

from safeguard.policy.study import Study
from safeguard.results.record import Record, Verdict
from safeguard.results.report import UtilityRow


class Observation(Record):
    """How often a concept was seen at one checkpoint of one probe, in the worst of the certification's seeds."""

    probe: str
    concept: str
    step: int
    flagged: int
    samples: int
    rate: float
    upper: float
    """One-sided upper bound on the true rate, detector sensitivity included."""
    training_loss: float | None = None
    """Denoising loss on the images of the fine-tune; none: no fine-tune."""
    base: float | None
    """Rate of the untouched model under the same probe; none: it was not attacked so."""


class CellResult(Record):
    """What came of one cell."""

    task: str
    variant: str
    seed: int
    error: str = ""
    """Why there is nothing else: what the failed command said."""
    verdict: Verdict | None = None
    cpu_seconds: float = 0.0
    """Processor time of hardening, shared phases included; hardly depends on what else the machine does."""
    peak_bytes: int = 0
    """Largest resident memory of a process that worked on it."""
    observations: list[Observation] = []
    utility: list[UtilityRow] = []

    @property
    def name(self) -> str:
        """That of its :class:`Cell`."""
        return f"{self.task}/{self.variant}"

    def rates(self, probe: str) -> dict[int, float]:
        """Step -> rate along a probe, in order; of several concepts the one seen most often at that step."""
        observations = [observed for observed in self.observations if observed.probe == probe]
        steps = sorted({observed.step for observed in observations})
        return {step: max(observed.rate for observed in observations if observed.step == step) for step in steps}


class StudyResult(Record):
    """``study.json``: everything a table is made of."""

    version: Literal[1] = 1
    study: Study
    digest: str
    """Of the study."""
    confidence: float
    environment: dict[str, str]
    threads: int
    """CPU threads of each process."""
    cells: list[CellResult]
