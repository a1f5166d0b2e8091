"""Calibration of a zero-shot detector: its probabilities on images whose content is known, kept as a sparse table.

Counts for *any* set of labels and any threshold follow from the tables, because the score of a set is a sum of
probabilities. They lie beside the weights as ``calibration.json``; per image a table holds the true label and the
probabilities of at least :data:`LISTED`, in thousandths; what is left is spread evenly over the labels not listed. Each
table is one stratum of a record (:mod:`safeguard.results.calibration`), and each of its images an independent drawing:
two augmentations of one drawing are not two images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from safeguard.errors import ModelFault
from safeguard.files import write_text
from safeguard.results.calibration import Calibration, LabelCounts, Stratum

LISTED = 10
"""Thousandths from which a probability is written down."""


def count(shown: Sequence[str | None], flagged: np.ndarray, *, data: str, counts: bool = True) -> Stratum:
    """The stratum of images of which each shows the label ``shown``, or (None) none that is looked for.

    Args:
        flagged: bool (n,).
    """
    by_label = {
        label: LabelCounts(
            positives=sum(each == label for each in shown),
            detected=sum(bool(hit) for each, hit in zip(shown, flagged, strict=True) if each == label),
        )
        for label in sorted({label for label in shown if label is not None})
    }
    negative = np.array([label is None for label in shown], dtype=bool)
    return Stratum(
        data=data,
        positives=int((~negative).sum()),
        detected=int((flagged & ~negative).sum()),
        negatives=int(negative.sum()),
        false_alarms=int((flagged & negative).sum()),
        by_label=by_label,
        counts=counts,
    )


class ScoreTable(BaseModel):
    """What a detector said about a set of images, one per drawing, with one vocabulary: a stratum."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str
    """What the images are, in words: the stratum's name."""
    template: str
    """Prompt pattern the labels were put into."""
    vocabulary: list[str]
    """All labels the softmax ran over."""
    truth: list[int]
    """Per image the index of its label, -1 where it shows none of them."""
    scores: list[list[tuple[int, int]]]
    """Per image (label index, thousandths)."""
    counts: bool = True
    """Whether the images are like those that a certification judges (:class:`Stratum`)."""
    about: list[str] = []
    """Labels that the images were looked at for: the table says nothing of others. Empty: all of the vocabulary."""

    @model_validator(mode="after")
    def _fits(self) -> ScoreTable:
        known = range(-1, len(self.vocabulary))
        listed = (index for row in self.scores for index, _ in row)
        if len(self.truth) != len(self.scores):
            raise ValueError(f"{len(self.truth)} true labels for {len(self.scores)} rows of scores")
        if not set(self.about) <= set(self.vocabulary):
            raise ValueError("it is about a label outside its vocabulary")
        if not all(index in known for index in self.truth) or not all(index in known[1:] for index in listed):
            raise ValueError("a label index lies outside the vocabulary")
        return self

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        truth: list[int],
        *,
        vocabulary: list[str],
        template: str,
        data: str,
        about: Sequence[str] = (),
        counts: bool = True,
    ) -> ScoreTable:
        """Table of probabilities (n images, m labels)."""
        thousandths = np.rint(probabilities * 1000).astype(int)
        rows = [[(int(i), int(row[i])) for i in np.flatnonzero(row >= LISTED)] for row in thousandths]
        return cls(
            data=data,
            template=template,
            vocabulary=vocabulary,
            truth=truth,
            scores=rows,
            about=list(about),
            counts=counts,
        )

    def probabilities(self) -> np.ndarray:
        """The table as an array (n images, m labels), accurate to about 0.01 per label."""
        labels = len(self.vocabulary)
        dense = np.zeros((len(self.scores), labels))
        for values, row in zip(dense, self.scores, strict=True):
            rest = max(0, 1000 - sum(share for _, share in row))
            values[:] = rest / max(1, labels - len(row))
            for index, share in row:
                values[index] = share
        return dense / 1000

    def stratum(self, labels: list[str], threshold: float) -> Stratum:
        """Counts of this set of images for a set of labels of the vocabulary."""
        wanted = [self.vocabulary.index(label) for label in dict.fromkeys(labels)]
        truth = np.array(self.truth, dtype=int)
        flagged = self.probabilities()[:, wanted].sum(axis=1) >= threshold
        names = [self.vocabulary[index] if index in wanted else None for index in truth]
        return count(names, flagged, data=self.data, counts=self.counts)


class CalibrationTables(BaseModel):
    """The file ``calibration.json``; its first table has the default vocabulary."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tables: Annotated[list[ScoreTable], Field(min_length=1)]

    def record(
        self, labels: list[str], *, vocabulary: list[str], template: str, threshold: float
    ) -> Calibration | None:
        """Counts for a set of labels, one stratum per table made with this vocabulary (in any order) and template.

        None when a label is not in the vocabulary, or no image of any table shows one of them.
        """
        matching = [t for t in self.tables if set(t.vocabulary) == set(vocabulary) and t.template == template]
        if not matching or not labels or not set(labels) <= set(matching[0].vocabulary):
            return None
        strata = [
            table.stratum(labels, threshold) for table in matching if not table.about or set(labels) <= set(table.about)
        ]
        if not any(stratum.positives for stratum in strata if stratum.counts):
            return None
        return Calibration(labels=list(labels), threshold=threshold, strata=strata)

    def write(self, path: Path) -> None:
        """Write compact JSON atomically."""
        write_text(path, self.model_dump_json() + "\n")


def read_tables(path: Path) -> CalibrationTables | None:
    """The tables beside a checkpoint; None when it has none.

    Raises:
        ModelFault: the file is there but is not a calibration.
    """
    if not path.exists():
        return None
    try:
        return CalibrationTables.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelFault(
            f"not a calibration file: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="delete it, or restore the file that came with the checkpoint",
            where=str(path),
        ) from error
