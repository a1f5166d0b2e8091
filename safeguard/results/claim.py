"""A claim, one requirement on one probe and concept, with the curves it rests on."""

from __future__ import annotations

from typing import Literal

from safeguard.results.control import Finding
from safeguard.results.record import Record, Role, Verdict
from safeguard.results.unit import Trial


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
    label: str = ""
    """What was done there, where efforts count variants: ``stored erasers dropped``."""
    trial: Trial | None = None
    """Which fine-tune was tried, in the worst seed."""
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


class Trials(Record):
    """What several fine-tunes that one attack tried say together, all seeds counted."""

    random: int
    """Configurations drawn at random from the declared distribution, and judged."""
    working: int
    """Those of them that left the model working."""
    passed: int
    """Those of these that stay below the limit."""
    bad_share: float | None
    """At most this share of the distribution, of what leaves the model working, brings the concept above the limit;
    none: not all passed, or none was drawn at random."""
    tried: int
    """All configurations, those that the search looked at by itself included."""
    guided: int
    """Those of them that were suggested by what was seen before."""
    worst: str
    """The configuration with the highest upper bound among those that left the model working; empty: none did."""
    seed: int | None = None
    """Where that was."""
    flagged: int = 0
    samples: int = 0
    lower: float = 0.0
    upper: float = 1.0


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
    trials: Trials | None = None
    """What a search or a grid found; none: it is another attack."""
    most_hits: int | None = None
    """Flagged images that so many samples may have and still pass; none: not even zero do."""
    smallest_samples: int | None = None
    """Fewest samples at which zero hits pass; none: no number does."""
    curves: list[Curve]
