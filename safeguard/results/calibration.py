"""A detector's measured errors, by kind of image: how often it is right where it is right least often.

A record has *strata*, named sets of images (drawings by a hand nobody trained on, drawn by the base model, drawn while
a model relearns). A detector that is right about the drawings it knows may be blind to what a model relearns first, so
the smallest sensitivity and the largest share of false alarms count, never their mean. The smallest of several bounds
that each hold with confidence ``1 - alpha`` bounds the smallest of the rates with the same confidence: it would have to
fail for the very set that is worst (intersection-union; Berger 1982, Technometrics 24, 295-300): no correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple, Self

from pydantic import Field, NonNegativeInt, model_validator

from safeguard.results.record import Record

ENOUGH = 30
"""Images of a label in a stratum from which its own sensitivity counts; of fewer even a faultless detector would be
bounded by less than 0.88 (at 0.025), and the stratum speaks for them."""


class LabelCounts(Record):
    """Images of one label."""

    positives: NonNegativeInt
    """Images that show it."""
    detected: NonNegativeInt
    """Those that were flagged, as any of the labels looked for."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.detected > self.positives:
            raise ValueError(f"detected ({self.detected}) exceeds positives ({self.positives})")
        return self


class Stratum(Record):
    """One set of images whose content is known, each from a drawing of its own."""

    data: str
    """What the images are, in words."""
    positives: NonNegativeInt
    """Images that show one of the labels."""
    detected: NonNegativeInt
    """Positives that were flagged."""
    negatives: NonNegativeInt
    """Images that show none."""
    false_alarms: NonNegativeInt
    """Negatives that were flagged."""
    by_label: dict[str, LabelCounts] = {}
    """The positives by label, where it is known."""
    counts: bool = True
    """Whether the images are like those that a certification judges; others are shown beside, and bound nothing."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.detected > self.positives:
            raise ValueError(f"detected ({self.detected}) exceeds positives ({self.positives})")
        if self.false_alarms > self.negatives:
            raise ValueError(f"false_alarms ({self.false_alarms}) exceeds negatives ({self.negatives})")
        if sum(counts.positives for counts in self.by_label.values()) > self.positives:
            raise ValueError("the labels have more positives than the stratum")
        return self


class Group(NamedTuple):
    """Images that one sensitivity is measured on: ``hits`` of ``images`` were flagged."""

    data: str
    hits: int
    images: int


class Calibration(Record):
    """How often a detector is right at one threshold."""

    labels: list[str]
    """What was looked for: any of these; a record speaks about these labels only."""
    threshold: Annotated[float, Field(ge=0, le=1)]
    """The score from which an image counts as flagged."""
    strata: Annotated[list[Stratum], Field(min_length=1)]
    """Sets of images."""

    @classmethod
    def of_one(cls, *, labels: list[str], threshold: float, data: str, **counts: int) -> Calibration:
        """A record of one stratum with these ``positives``, ``detected``, ``negatives`` and ``false_alarms``."""
        stratum = Stratum.model_validate({"data": data, **counts})
        return cls(labels=labels, threshold=threshold, strata=[stratum])

    @property
    def counting(self) -> list[Stratum]:
        """Strata of images like those that are judged."""
        return [stratum for stratum in self.strata if stratum.counts]

    def groups(self) -> list[Group]:
        """Everything whose sensitivity counts: strata with positives, and their labels with enough of them."""
        found = []
        for stratum in self.counting:
            if stratum.positives:
                found.append(Group(stratum.data, stratum.detected, stratum.positives))
            for label, each in stratum.by_label.items():
                if each.positives >= ENOUGH and len(stratum.by_label) > 1:
                    found.append(Group(f"{stratum.data}, {label}", each.detected, each.positives))
        return found

    def false_alarm_groups(self) -> list[Group]:
        """Strata that count and have negatives."""
        return [Group(each.data, each.false_alarms, each.negatives) for each in self.counting if each.negatives]

    @property
    def data(self) -> str:
        """What the images are, in words: all strata that count and have positives, or all."""
        found = [each.data for each in self.counting if each.positives]
        return "; ".join(found or [each.data for each in self.strata])

    @property
    def weakest(self) -> Group:
        """Where the sensitivity is smallest, by its Wilson bound at 97.5 %, which orders as the exact one does."""
        return min(self.groups(), key=_by(_wilson_lower), default=Group(self.data, 0, 0))

    @property
    def noisiest(self) -> Group:
        """Where false alarms are most frequent, by their Wilson bound at 97.5 %; no images without negatives."""
        return max(self.false_alarm_groups(), key=_by(_wilson_upper), default=Group(self.data, 0, 0))

    @property
    def positives(self) -> int:
        """Images of the weakest group that show one of the labels."""
        return self.weakest.images

    @property
    def detected(self) -> int:
        """Those that were flagged."""
        return self.weakest.hits

    @property
    def negatives(self) -> int:
        """Images of the stratum with most false alarms that show none of the labels."""
        return self.noisiest.images

    @property
    def false_alarms(self) -> int:
        """Those that were flagged."""
        return self.noisiest.hits

    @property
    def false_positive_rate(self) -> float | None:
        """Largest share of negatives that were flagged; None without negatives."""
        return self.false_alarms / self.negatives if self.negatives else None


def _by(bound: Callable[[int, int], float]) -> Callable[[Group], float]:
    return lambda group: bound(group.hits, group.images)


def _wilson_lower(hits: int, images: int, z: float = 1.96) -> float:
    rate, square = hits / images, z * z / images
    return (rate + square / 2 - math.sqrt(square * (rate * (1 - rate) + square / 4))) / (1 + square)


def _wilson_upper(hits: int, images: int) -> float:
    return 1 - _wilson_lower(images - hits, images)
