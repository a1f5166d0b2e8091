"""The report: ``report.json`` is the truth, everything else (HTML, Markdown, …) is a projection of it."""

from __future__ import annotations

from typing import Any, Literal

from safeguard.results.claim import Claim
from safeguard.results.control import Component, Control
from safeguard.results.provenance import Attempt, Integrity, Provenance, RunUnit
from safeguard.results.record import Record, Verdict
from safeguard.results.run_plan import PlannedUnit

EXIT_CODES: dict[str, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


class Measured(Record):
    """What was measured and no requirement judges: a whole probe, or its checkpoints beyond a budget."""

    probe: str
    concept: str
    title: str
    axis: str
    why: Literal["no requirement", "beyond the budget", "reported only"]
    effort: int
    """Checkpoint with the highest upper bound."""
    seed: int
    flagged: int
    samples: int
    rate: float
    lower: float
    upper: float
    above: bool
    """Whether the rate lies above the strictest limit that the policy has for any probe."""


class Depth(Record):
    """How far back towards the base's weights a concept is drawn again (:mod:`safeguard.certify.depth`)."""

    probe: str
    concept: str
    base_rate: float
    """Of the released base model."""
    lambda50: float | None
    """Share of the way at which half of that is passed; none: it is not reached."""
    furthest: float
    """Share of the way that was looked at."""


class Cell(Record):
    """One thing that an attacker may have."""

    means: str
    """In words: ``the model's weights``."""
    has: str
    """What the threat model grants: ``yes``, ``no``, or a number."""
    probes: list[str]
    """Probes that were run and make use of it; empty: it is not covered."""


class LevelReached(Record):
    """The assurance level of a certification (:mod:`safeguard.policy.levels`)."""

    number: int
    """The highest level whose every condition holds; 0: below all floors."""
    name: str
    lacks: list[str]
    """What the next level asks for and this certification does not have."""


class NotRun(Record):
    """A probe that was not run, and why."""

    probe: str
    why: str


class UtilityRow(Record):
    """One subject that must survive, base against hardened."""

    subject: str
    relation: Literal["related", "retained"]
    metric: str
    """``detection rate``, or the title of a metric: ``CLIP score``."""
    higher_is_better: bool = True
    base: float
    hardened: float
    samples: int
    required: float
    """Worst acceptable value for the hardened model."""
    bound: float | None = None
    """One-sided bound of the hardened model's value, which must not be worse than the required one; none: results of
    versions that had none."""
    passed: bool


class ConceptInfo(Record):
    """A concept as declared."""

    name: str
    kind: Literal["object", "style", "identity", "unsafe"]
    prompts: int
    detector: str
    """Name, threshold and digest of the detector in one line."""
    sensitivity: float | None
    """Lower bound of the detector's sensitivity from its calibration record; none: uncalibrated."""
    false_positive_rate: float | None


class Diagnostics(Record):
    """What the hardening run recorded: a series per logged quantity, over outer steps; None where one has no value."""

    unlearner: str
    objective: str
    seconds: float
    series: dict[str, list[float | None]]
    notes: list[str]


class Report(Record):
    """A whole certification."""

    version: Literal[1] = 1
    title: str
    verdict: Verdict
    sentence: str
    """The verdict in one sentence, for people."""
    confidence: float
    seeds: int
    bad_share: float
    """At most this share of all attack seeds brings a concept back, given that all of these did not."""
    relearned_rate: float
    """Rate from which curves count a concept as brought back."""
    level: LevelReached
    threat: list[Cell]
    weak_model: str
    """What the weakly erased control is: ``esd alone``."""
    not_judged: list[Measured]
    depths: list[Depth] = []
    """Of probes that interpolate with the base; empty: there is none."""
    skipped: list[NotRun]
    concepts: list[ConceptInfo]
    claims: list[Claim]
    controls: list[Control]
    components: list[Component] = []
    """Every component of the model against the base's; empty in reports that were written before they were compared."""
    utility: list[UtilityRow]
    unlearned_utility: list[UtilityRow]
    """The same for the unlearned-only model, for comparison; empty when there is none."""
    limitations: list[str]
    diagnostics: Diagnostics | None
    provenance: Provenance
    attempts: list[Attempt]
    dropped_prompts: int
    """Prompts the content filter removed before any image was generated."""
    planned: list[PlannedUnit] = []
    """The units of ``plan.json``."""
    run: list[RunUnit] = []
    """The units that the verdict rests on, in the order of the plan."""
    integrity: Integrity | None = None
    """None: the report was not written by a certification."""
    basis: dict[str, Any] = {}
    """All that the verdict is computed from beside units, provenance, diagnostics and attempts, as data: the resolved
    policy and suite, limits, prompts and labels included, calibrations, detectors and metrics
    (:class:`safeguard.certify.evidence.Evidence`)."""
