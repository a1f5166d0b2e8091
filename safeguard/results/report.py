"""The report: ``report.json`` is the truth, everything else (HTML, Markdown, …) is a projection of it."""

from __future__ import annotations

from typing import Any, Literal

from safeguard.results.provenance import Attempt, Integrity, Provenance, RunUnit
from safeguard.results.record import Record, Role, Verdict
from safeguard.results.run_plan import PlannedUnit

EXIT_CODES: dict[str, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


class Point(Record):
    """One checkpoint of a curve: k flagged of n images in the worst seed, with one-sided exact bounds."""

    effort: int
    flagged: int
    samples: int
    rate: float
    lower: float
    """One-sided lower bound on the rate of the concept, the detector's false positives taken off."""
    upper: float
    """One-sided upper bound on the rate of the concept, the detector's sensitivity accounted for."""
    working: bool = True
    """Whether the attacked model still drew other things, in every seed."""
    wilson: tuple[float, float]
    """Two-sided Wilson interval, for reading only."""
    pooled_rate: float
    """All seeds together."""
    loss: float | None = None
    """The attack's own loss, mean of the seeds: of a fine-tune the denoising loss on its images; none: it has none."""
    evidence: str | None = None
    """Path of a contact sheet, relative to the run directory."""


class Curve(Record):
    """Rate against effort, for one model under one probe and concept."""

    role: Role
    axis: str
    """What efforts count, in the plural: ``fine-tuning steps``."""
    seeds: int
    points: list[Point]
    effort_to_relearn: int | None
    """First checkpoint whose rate reaches the policy's ``relearned_rate`` rate; none: not reached."""
    censored_at: int
    """Largest effort that was looked at."""


class Gap(Record):
    """What the policy declared and the evidence lacks."""

    what: Literal["seeds", "images"]
    found: int
    wanted: int
    effort: int | None = None
    """Of the checkpoint that lacks images."""
    seed: int | None = None


Reason = Literal[
    "below the limit",
    "above the limit",
    "one prompt above its limit",
    "perhaps by chance",
    "perhaps one prompt",
    "between the bounds",
    "broken",
    "no power",
    "incomplete",
    "not run",
    "nothing within the budget",
    "nothing at the budget",
    "no probe",
]
"""Why a claim has its verdict; sentences are made of it and the numbers (:mod:`safeguard.results.words`)."""


class Finding(Record):
    """One part of a control, in numbers: of one concept, one probe, or one subject."""

    about: str
    """Whom it is about: ``weapons, malicious-full``."""
    measure: str
    """What was counted or measured: ``base images flagged``, ``CLIP score``."""
    passed: bool
    role: Role | None = None
    """The model it was measured on, where controls differ in that."""
    effort: int | None = None
    axis: str = ""
    hits: int | None = None
    samples: int | None = None
    measured: float | None = None
    bound: float | None = None
    """One-sided bound of the measured value, on the side that matters."""
    required: float | None = None
    direction: Literal["at least", "at most", "above"] = "at least"
    """How the measured value must lie to the required one."""
    share: bool = True
    """Whether measured, bound and required are shares of one."""
    problem: str = ""
    """Why nothing, or not all, could be measured; or what is wrong with it."""


class Group(Record):
    """One declared prompt, or all that share a word of their template, at one checkpoint, all seeds together."""

    name: str
    """The prompt or the word."""
    prompts: int
    """How many prompts it stands for."""
    effort: int
    flagged: int
    samples: int
    p_value: float
    """Of "flagged at most as often as one prompt may be", times the number of groups and checkpoints (Bonferroni)."""


class Claim(Record):
    """One requirement applied to one probe and concept."""

    requirement: str
    """Its pattern over probe ids."""
    probe: str
    concept: str
    title: str
    """In words: ``malicious fine-tune, LoRA, on images of weapons``."""
    axis: str
    """What efforts count, in the plural: ``fine-tuning steps``."""
    limit: float
    budget: int | None
    worst_effort: int
    """Checkpoint with the highest upper bound within the budget."""
    worst_seed: int | None
    """Seed of that bound; none: nothing was measured."""
    flagged: int
    samples: int
    rate: float
    lower: float
    upper: float
    p_value: float = 1.0
    """Smallest of its p-values for "at most the limit", adjusted for all bounds of the certification (Holm)."""
    verdict: Verdict
    reason: Reason
    gap: Gap | None = None
    """What is missing where the claim is incomplete."""
    prompt_limit: float = 1.0
    """What no single prompt or word may reach."""
    groups: list[Group] = []
    """The worst prompts and words within the budget, worst first."""
    power: Finding | None = None
    """Whether the same attack brings a weakly erased concept back within the budget; none: not a malicious one."""
    most_hits: int | None = None
    """Flagged images that so many samples may have and still pass; none: not even zero do."""
    smallest_samples: int | None = None
    """Fewest samples at which zero hits pass; none: no number does."""
    curves: list[Curve]


ControlId = Literal[
    "positive", "attack", "benign-learns", "works", "utility", "negative", "placebo", "detector", "same-model"
]


class Component(Record):
    """One component of the certified model, compared with the base model's."""

    name: str
    """``unet``, ``text_encoder``, ``tokenizer``, ``scheduler``; ``pipeline`` for what ``model_index.json`` says."""
    differs: bool
    """Weights as numbers; configurations, tokenizers and schedules as they are read."""
    declared: bool
    """Whether it may: it is the base's, or the hardening record or the policy says so, or it is the denoiser of a model
    without a record, or nobody opens it."""
    what: str
    """In a clause: how many tensors differ, or which settings, and who declares it."""


class Control(Record):
    """A check without which the verdict is INCONCLUSIVE."""

    id: ControlId
    title: str
    passed: bool
    findings: list[Finding]
    """What was measured and what was needed; empty: the suite has nothing that it would control."""

    @property
    def applies(self) -> bool:
        """Whether there was anything to control; a control that does not apply is not counted as passed."""
        return bool(self.findings)


class Measured(Record):
    """What was measured and no requirement judges: a whole probe, or its checkpoints beyond a budget."""

    probe: str
    concept: str
    title: str
    axis: str
    why: Literal["no requirement", "beyond the budget"]
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
