"""The report: ``report.json`` is the truth, everything else (HTML, Markdown, …) is a projection of it."""

from __future__ import annotations

from typing import Literal

from safeguard.results.record import Record, Role, Verdict

EXIT_CODES: dict[str, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


class Point(Record):
    """One checkpoint of a curve: k flagged of n images in the worst seed, with one-sided exact bounds."""

    step: int
    flagged: int
    samples: int
    rate: float
    lower: float
    """One-sided Clopper–Pearson lower bound at the declared confidence."""
    upper: float
    """One-sided upper bound on the true rate, detector sensitivity included."""
    wilson: tuple[float, float]
    """Two-sided Wilson interval, for reading only."""
    pooled_rate: float
    """All seeds together."""
    training_loss: float | None = None
    """Denoising loss on the fine-tune's own images, mean of the seeds: whether it learns; none: no fine-tune."""
    evidence: str | None = None
    """Path of a contact sheet, relative to the run directory."""


class Curve(Record):
    """Rate against fine-tuning steps, for one model under one probe and concept."""

    role: Role
    seeds: int
    points: list[Point]
    steps_to_relearn: int | None
    """First checkpoint whose rate reaches the policy's ``attack_control`` rate; none: not reached."""
    censored_at: int
    """Largest step that was looked at."""


class Claim(Record):
    """One requirement applied to one probe and concept."""

    probe: str
    concept: str
    title: str
    """In words: ``malicious fine-tune, LoRA, on images of weapons``."""
    limit: float
    budget: int | None
    worst_step: int
    """Checkpoint with the highest upper bound within the budget."""
    flagged: int
    samples: int
    rate: float
    lower: float
    upper: float
    verdict: Verdict
    reason: str
    """One sentence."""
    curves: list[Curve]


class Control(Record):
    """A check without which the verdict is INCONCLUSIVE."""

    id: Literal["positive", "attack", "utility", "negative", "placebo", "detector", "benign-learns"]
    title: str
    passed: bool
    measured: str
    """What was measured and what was needed, in one sentence."""


class UtilityRow(Record):
    """One subject that must survive, base against hardened."""

    subject: str
    relation: Literal["related", "retained"]
    metric: Literal["detection rate", "CLIP score"]
    base: float
    hardened: float
    samples: int
    required: float
    """Smallest acceptable value for the hardened model."""
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


class Provenance(Record):
    """Everything an auditor needs to repeat the run."""

    model: str
    """Directory name of the certified model."""
    model_digest: str
    base_model: str
    base_digest: str
    policy_digest: str
    suite: str
    suite_digest: str
    safeguard_version: str
    code_revision: str | None
    environment: dict[str, str]
    started: str
    """ISO 8601, UTC."""
    seconds: float
    units_run: int
    units_reused: int
    files: dict[str, str]
    """Every file of the model directory with its sha256."""


class Attempt(Record):
    """An earlier or this certification of the same model in the same run directory."""

    started: str
    verdict: Verdict
    policy_digest: str


class Report(Record):
    """A whole certification."""

    version: Literal[1] = 1
    title: str
    verdict: Verdict
    sentence: str
    """The verdict in one sentence, for people."""
    confidence: float
    seeds: int
    seeds_cover: float
    """Share of attack seeds the worst of these seeds stands for, at 95 % confidence (Wilks)."""
    attack_control: float
    concepts: list[ConceptInfo]
    claims: list[Claim]
    controls: list[Control]
    utility: list[UtilityRow]
    unlearned_utility: list[UtilityRow]
    """The same for the unlearned-only model, for comparison; empty when there is none."""
    limitations: list[str]
    diagnostics: Diagnostics | None
    provenance: Provenance
    attempts: list[Attempt]
    dropped_prompts: int
    """Prompts the content filter removed before any image was generated."""
