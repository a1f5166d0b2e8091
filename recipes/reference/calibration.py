"""How often the reference detector is right, on fresh augmentations of its artwork and on artwork by other hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.reference.augmentation import augment, nothing
from recipes.reference.detector import Examples
from recipes.reference.vocabulary import NAMES, STYLES, names_of
from safeguard.detect.calibration import CalibrationTables, ScoreTable, read_tables
from safeguard.detect.clip import ClipConfig, ClipDetector
from safeguard.detect.clip_model import CALIBRATION_FILE
from safeguard.errors import ModelFault

SEED = 20_000
"""Augmentations drawn from this seed were never trained on."""
COPIES, OTHERS, BLANKS = 8, 1000, 400
"""Augmentations of each image of the world; images of other artwork; images that show nothing."""
NAME_TEMPLATE = "a {label} emoji"
STYLE_TEMPLATE = "an emoji in {label} style"
TABLES = ("names", "styles", "openmoji")
"""Tables of a calibration, in the order of the file; the last one where that style was fetched."""


def to_pixels(images: Tensor) -> np.ndarray:
    """Float (n, 3, h, w) in [-1, 1] to uint8 (n, h, w, 3)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def detector(directory: Path, *, styles: bool = False) -> ClipDetector:
    """The exported detector, over the names of the world or over its styles."""
    words = list(STYLES.values()) if styles else [name.text for name in NAMES]
    template = STYLE_TEMPLATE if styles else NAME_TEMPLATE
    return ClipDetector(ClipConfig(checkpoint=str(directory), vocabulary=words, template=template))


def _table(judge: ClipDetector, pixels: np.ndarray, truth: list[int], data: str) -> ScoreTable:
    probabilities, vocabulary = judge.probabilities(pixels)
    return ScoreTable.of(probabilities, truth, vocabulary=vocabulary, template=judge.config.template, data=data)


def _held_out(data: Examples) -> tuple[np.ndarray, Tensor]:
    """Fresh augmentations of the world and of other artwork, then images of nothing; with their rows (-1: nothing)."""
    generator = torch.Generator().manual_seed(SEED)
    others = data.rows(known=False)
    rows = torch.cat(
        [data.rows(known=True).repeat(COPIES), others[torch.randperm(len(others), generator=generator)[:OTHERS]]]
    )
    parts = [augment(data.images[part], generator) for part in torch.split(rows, 256)]
    sources = torch.randint(len(data.images), (BLANKS,), generator=generator)
    parts += [nothing(data.images[part], generator) for part in torch.split(sources, 8)]
    return to_pixels(torch.cat(parts)), torch.cat([rows, torch.full((BLANKS,), -1)])


def _truth(column: Tensor, rows: Tensor) -> list[int]:
    return [int(column[row]) if row >= 0 else -1 for row in rows.tolist()]


def calibrate(directory: Path, data: Examples, foreign: Examples | None) -> None:
    """Measure the exported detector, and write ``calibration.json`` beside it; :func:`summaries` reads it.

    Args:
        directory: the exported detector.
        data: the artwork it was trained on.
        foreign: artwork of a style nobody trained on, as it is; None where it was not fetched.
    """
    pixels, rows = _held_out(data)
    words = f"{COPIES} fresh augmentations of each image of the world, {OTHERS} other drawings, {BLANKS} of nothing"
    by_name, by_style = detector(directory), detector(directory, styles=True)
    tables = {
        "names": _table(by_name, pixels, _truth(data.names, rows), words),
        "styles": _table(by_style, pixels, _truth(data.styles, rows), words),
    }
    if foreign is not None:
        drawn = to_pixels(foreign.images)
        tables["openmoji"] = _table(
            by_name, drawn, foreign.names.tolist(), "OpenMoji, a style nobody trained on, unaltered"
        )
    CalibrationTables(tables=list(tables.values())).write(directory / CALIBRATION_FILE)


def summaries(directory: Path) -> dict[str, Any]:
    """:func:`summary` of every table beside an exported detector: ``names``, ``styles``, and ``openmoji`` if measured.

    Raises:
        ModelFault: there is no calibration.
    """
    found = read_tables(directory / CALIBRATION_FILE)
    if found is None:
        raise ModelFault("the detector has no calibration", fix="build it anew", where=str(directory))
    threshold = detector(directory).threshold
    return {kind: summary(table, threshold) for kind, table in zip(TABLES, found.tables, strict=False)}


def summary(table: ScoreTable, threshold: float) -> dict[str, Any]:
    """Counts of one table: top-1 over images that show a label, and sensitivity and false alarms of each label set."""
    truth, best = np.array(table.truth), table.probabilities().argmax(axis=1)
    styles = set(table.vocabulary) == set(STYLES.values())
    groups = list(dict.fromkeys(name.group for name in NAMES))
    sets = {word: [word] for word in table.vocabulary} if styles else {group: names_of(group) for group in groups}
    records = {key: table.record(labels, threshold) for key, labels in sets.items()}
    return {
        "data": table.data,
        "top1": [int((best == truth)[truth >= 0].sum()), int((truth >= 0).sum())],
        "sets": {
            key: {"detected": [r.detected, r.positives], "false_alarms": [r.false_alarms, r.negatives]}
            for key, r in records.items()
            if r
        },
    }
