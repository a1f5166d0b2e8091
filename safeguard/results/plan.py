"""What a certification will cost and can show, before it is run."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import NonNegativeInt, PositiveInt

from safeguard.config import Source
from safeguard.results.record import Record
from safeguard.results.unit import TrialKind


class Cost(Record):
    """What one attack does beside the drawing and judging of images."""

    training_images: NonNegativeInt = 0
    """Images in its training set; drawn once per data set and seed, and shared by all models and probes."""
    steps: NonNegativeInt = 0
    """Optimiser steps."""
    network_calls: NonNegativeInt = 0
    """Rows that go through the denoiser, forward passes alone counted."""
    sampler_steps: dict[NonNegativeInt, PositiveInt] = {}
    """Effort -> steps in which an image is drawn there, where these are not the policy's."""
    queries: NonNegativeInt = 0
    """Images of each concept that a search asks the attacked model for, beside those that are judged."""


class Needs(Record):
    """What an attacker must have for an attack (:class:`safeguard.policy.threat.ThreatModel`)."""

    weights: bool = False
    gradients: bool = False
    base_model: bool = False
    adapters: bool = False
    sampler: bool = False
    image_input: bool = False
    images: NonNegativeInt = 0
    """Images of the concept."""
    steps: NonNegativeInt = 0
    """Optimiser steps."""


class Schedule(Record):
    """What a probe yields, known without running it."""

    axis: str
    """What efforts count, in the plural: ``fine-tuning steps``."""
    efforts: list[NonNegativeInt]
    """After which efforts the concepts are looked for, ascending."""
    sources: list[Source]
    """Whose images it trains on."""
    training_set: str = ""
    """What describes its images; the same text, the same images."""
    concepts: list[str] = []
    """Concepts that its settings name, all of them if any; none: it takes the policy's."""
    everything: bool = False
    """Whether related and retained subjects are looked at beside the concepts."""
    reported_only: bool = False
    """Whether no requirement judges it, whatever its pattern."""
    trials: list[TrialKind] = []
    """What each effort above 0 tries, where efforts number fine-tunes; none: they do not."""
    own_noise: bool = False
    """Whether every effort above 0 is drawn from noise of its own: trials that are counted together must not share
    luck."""
    needs: Needs = Needs()
    """What an attacker must have for it."""
    covers: list[str] = []
    """Kinds of use and attack that it stands for, in the words of the assurance levels."""
    cost: Cost


class Stop(Record):
    """What is decided at one look at the images of a checkpoint."""

    samples: int
    """Images drawn by then."""
    most_to_pass: int | None
    """Most flagged images with which it passes; none: not even zero pass here."""
    least_to_fail: int | None
    """Fewest with which it fails; none: not even all of them fail here."""

    def decides(self, flagged: int) -> bool:
        """Whether so many flagged images end the drawing."""
        passes = self.most_to_pass is not None and flagged <= self.most_to_pass
        return passes or (self.least_to_fail is not None and flagged >= self.least_to_fail)


class StopRule(Record):
    """When one requirement has seen enough images of a concept at a checkpoint."""

    concept: str
    budget: int | None
    """Checkpoints up to this effort are judged; none: all."""
    stops: list[Stop]
    """At each look, in their order; the last has all the images."""


def looks(rules: Sequence[StopRule], concept: str, effort: int) -> list[list[Stop]]:
    """The looks at a concept at a checkpoint: what each requirement that judges it decides there. None: no look."""
    judging = [
        rule.stops for rule in rules if rule.concept == concept and (rule.budget is None or effort <= rule.budget)
    ]
    return [list(stops) for stops in zip(*judging, strict=True)]


class Chance(Record):
    """How likely a model passes if this share of its images shows the concept, in every seed and at every
    checkpoint."""

    rate: float
    probability: float


class SeedChance(Record):
    """How likely a model passes whose seeds differ."""

    share_of_limit: float
    """The mean over all seeds, as a share of each limit."""
    icc: float
    """Share of the rates' variance that lies between seeds; 0: they are alike."""
    probability: float


class SeedRow(Record):
    """A number of seeds: what a PASS would say of the others, and how likely it is."""

    seeds: int
    bad_share: float
    """Share of all seeds that may still bring the concept back after a PASS, at the policy's confidence."""
    chances: list[SeedChance]


class Power(Record):
    """One requirement on one probe and one concept."""

    requirement: str
    """The pattern of the requirement."""
    budget: int | None = None
    """Its budget; none: all the probe has."""
    probe: str
    concept: str
    limit: float
    samples: int
    """Images per seed and checkpoint."""
    bounds: int
    """Seeds times checkpoints within the budget: how many bounds must lie below the limit."""
    most_hits: int | None
    """Flagged images that each of them may have, when all images are drawn; none: not even zero pass."""
    stops: list[Stop] = []
    """The same at every look; one look: all images are drawn."""
    smallest_samples: int | None
    """Fewest samples at which zero hits pass; none: no number does."""
    sensitivity: float | None = None
    """Lower bound of the share of the concept's images that the detector flags; none: uncalibrated."""
    false_positive_rate: float | None = None
    """Share of other images that it was seen to flag."""
    chances: list[Chance]
    """Seeds and checkpoints taken as independent and alike; the detector as in the two fields above."""


class Memory(Record):
    """What one kind of work needs on the device, weights included, counted from the model's configuration."""

    work: str
    """``drawing``, or a fine-tuning method with its settings and its batch."""
    default: int
    """Bytes at most, where memory is never short."""
    smallest: int
    """Bytes at most with one image at a time: what a device must have."""
    images: int
    """Images at once by default."""
    within: int | None
    """Images at once on the device that was asked about; none: even one is too much for it."""


class Plan(Record):
    """A whole certification, not yet run."""

    units: int
    """Probe × seed × model."""
    units_by_role: dict[str, int]
    images: int
    """Images to draw, training sets included; at most, where drawing may stop early."""
    optimiser_steps: int
    network_calls: int
    """Rows that go through the denoiser for the attacks' own sake, forward passes alone counted: what they compute, and
    images that they draw in more steps than the policy's, as far as they have more."""
    powers: list[Power]
    chances: list[Chance]
    """The chance that all requirements pass, by true rate."""
    by_seeds: list[SeedRow] = []
    """The same by the number of seeds and by how much they differ."""
    impossible: list[str] = []
    """Why no model whatsoever could pass; empty: one can."""
    warnings: list[str]
    device_memory: int | None = None
    """Bytes of the device that was asked about."""
    memory: list[Memory] = []
    """What the work needs there; empty where nobody asked."""
