"""How often the reference detector is right where nobody trained it: other hands, the base model, relearning models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from recipes.reference import labels as by_eye
from recipes.reference.batches import Examples
from recipes.reference.relearning import BASE_MODEL, Drawn
from recipes.reference.vocabulary import NAMES, STYLES, Name, names_of
from safeguard.certify.statistics import false_positive_upper, sensitivity_lower
from safeguard.detect.calibration import CalibrationTables, ScoreTable, read_tables
from safeguard.detect.clip import ClipConfig, ClipDetector
from safeguard.detect.clip_model import CALIBRATION_FILE
from safeguard.errors import ModelFault

NAME_TEMPLATE = "a {label} emoji"
STYLE_TEMPLATE = "an emoji in {label} style"
HELD_OUT, BASE, RELEARNING = "drawings in styles nobody trained on", "drawn by the base", "drawn while relearning"
CONFIDENCE = 0.975

Plan = list[tuple[Name, str, int]]
"""Name, style id and seed of every image that a model draws."""


@dataclass(frozen=True)
class Pictures:
    """What a detector is calibrated on; each image is a drawing of its own.

    Attributes:
        foreign: artwork of styles nobody trained on, as it is.
        drawn: uint8 images of the untouched model, with what each was asked to show (looked at by eye on a sample).
        relearning: images along relearning of one group of names after another, and whether a person sees one of the
            group; None: unclear, left out.
    """

    foreign: Examples
    drawn: tuple[np.ndarray, Plan]
    relearning: Sequence[tuple[Drawn, Sequence[bool | None], str]]


def to_pixels(images: Tensor) -> np.ndarray:
    """Float (n, 3, h, w) in [-1, 1] to uint8 (n, h, w, 3)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def detector(directory: Path, *, styles: bool = False) -> ClipDetector:
    """The exported detector, over the names of the world or over its styles."""
    words = list(STYLES.values()) if styles else [name.text for name in NAMES]
    template = STYLE_TEMPLATE if styles else NAME_TEMPLATE
    return ClipDetector(ClipConfig(checkpoint=str(directory), vocabulary=words, template=template))


def _table(judge: ClipDetector, pixels: np.ndarray, truth: list[int], data: str, **more: Any) -> ScoreTable:
    probabilities, vocabulary = judge.probabilities(pixels)
    template = judge.config.template
    return ScoreTable.of(probabilities, truth, vocabulary=vocabulary, template=template, data=data, **more)


def _relearning(judge: ClipDetector, drawn: Drawn, shown: Sequence[bool | None], group: str) -> ScoreTable:
    names = [name.text for name in NAMES]
    clear = [row for row, seen in enumerate(shown) if seen is not None]
    truth = [names.index(drawn.names[row]) if shown[row] else -1 for row in clear]
    words = f"{RELEARNING} ({group}), labelled by eye"
    return _table(judge, drawn.images[clear], truth, words, about=names_of(group))


def calibrate(directory: Path, pictures: Pictures) -> None:
    """Measure the exported detector, and write ``calibration.json`` beside it; :func:`summaries` reads it.

    Drawings in foreign styles are shown and bound nothing: no certification of the reference model draws such images,
    and who fine-tunes on artwork of their own calibrates on it (``safeguard calibrate``).
    """
    by_name, by_style = detector(directory), detector(directory, styles=True)
    names, styles = [name.text for name in NAMES], list(STYLES)
    images, plan = pictures.drawn
    tables = [
        _table(by_name, to_pixels(pictures.foreign.images), pictures.foreign.names.tolist(), HELD_OUT, counts=False),
        _table(by_name, images, [names.index(name.text) for name, *_ in plan], BASE),
        *(_relearning(by_name, *part) for part in pictures.relearning),
        _table(by_style, images, [styles.index(style) for _, style, _ in plan], BASE),
    ]
    CalibrationTables(tables=tables).write(directory / CALIBRATION_FILE)


def summaries(directory: Path) -> list[dict[str, Any]]:
    """:func:`summary` of every table beside an exported detector.

    Raises:
        ModelFault: there is no calibration.
    """
    found = read_tables(directory / CALIBRATION_FILE)
    if found is None:
        raise ModelFault("the detector has no calibration", fix="build it anew", where=str(directory))
    threshold = detector(directory).threshold
    return [summary(table, threshold) for table in found.tables]


def smallest(directory: Path, labels: list[str]) -> dict[str, float | None]:
    """What a certification works with: bounds of sensitivity and false alarms for a set of labels."""
    record = detector(directory).calibration(labels)
    if record is None:
        raise ModelFault("the detector has no calibration of these labels", fix="build it anew", where=str(directory))
    alpha = 1 - CONFIDENCE
    return {"sensitivity": sensitivity_lower(record, alpha), "false_alarms": false_positive_upper(record, alpha)}


def summary(table: ScoreTable, threshold: float) -> dict[str, Any]:
    """Counts of one table: top-1 over images that show a label, and sensitivity and false alarms of each label set."""
    truth, best = np.array(table.truth), table.probabilities().argmax(axis=1)
    styles = set(table.vocabulary) == set(STYLES.values())
    groups = list(dict.fromkeys(name.group for name in NAMES))
    sets = {word: [word] for word in table.vocabulary} if styles else {group: names_of(group) for group in groups}
    wanted = {key: words for key, words in sets.items() if not table.about or set(words) <= set(table.about)}
    strata = {key: table.stratum(words, threshold) for key, words in wanted.items()}
    return {
        "kind": "styles" if styles else "names",
        "data": table.data,
        "top1": [int((best == truth)[truth >= 0].sum()), int((truth >= 0).sum())],
        "sets": {
            key: {"detected": [each.detected, each.positives], "false_alarms": [each.false_alarms, each.negatives]}
            for key, each in strata.items()
            if each.positives
        },
    }


def labelled(folder: Path, group: str) -> tuple[Drawn, list[bool | None], str]:
    """The images along relearning that lie in a folder, and what was seen in them; what the base drew is left out."""
    drawn, shown = by_eye.read(folder / f"relearning-{group}")
    rows = [row for row, model in enumerate(drawn.models) if not model.endswith(BASE_MODEL)]
    return drawn.taking(rows), [shown[row] for row in rows], group
