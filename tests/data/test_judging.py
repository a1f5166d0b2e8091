"""Training images are judged once, part by part, as a fine-tune sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from safeguard.config import FineTuningData
from safeguard.data.fine_tuning import DataSets
from safeguard.data.judging import Judge
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.results.unit import TrainingImages
from tests.contexts import tiny_policy
from tests.tiny import tiny_pipeline

MIXED = FineTuningData(shares={"concept": 1, "retain": 3}, images=4)


class Seen:
    """A judge that flags the brighter half of all it is shown, as axes, and nothing as ink."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def flags(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.images.append(images)
        bright = images.mean((1, 2, 3))
        return {"axes": bright >= np.median(bright), "ink": np.zeros(len(images), bool)}

    def judge(self, digest: str = "00") -> Judge:
        return Judge(digest * 32, self.flags)


@pytest.fixture(scope="module")
def base() -> DiffusionModel:
    return DiffusionModel(tiny_pipeline(0))


def sets(folder: Path, judge: Judge | None, base: DiffusionModel | None = None) -> DataSets:
    found = DataSets(tiny_policy(), "base", "code", folder, torch.device("cpu"), 5, judge)
    found.base = base
    return found


def test_each_part_is_judged_once_as_it_is_decoded(base: DiffusionModel, tmp_path: Path) -> None:
    seen, alone = Seen(), FineTuningData(shares={"retain": 1}, images=3)
    data = sets(tmp_path, seen.judge(), base)
    mixed = data.get(MIXED, 0)
    concept, retain = data.looked
    assert (concept.source, concept.images, concept.shown) == ("concept", 1, 1)
    assert (retain.source, retain.images, retain.flagged, retain.shown) == ("retain", 3, {"axes": 2, "ink": 0}, 2)
    assert np.array_equal(np.concatenate(seen.images), base.decode(mixed.mean))
    data.get(alone, 0)
    assert data.looked == [concept, retain] and len(seen.images) == 2, "the same images are judged and named once"
    assert retain.digest == data.used[-1]


def test_what_was_judged_is_found_by_the_same_judge_without_the_base(base: DiffusionModel, tmp_path: Path) -> None:
    first, second = Seen(), Seen()
    drawn = sets(tmp_path, first.judge(), base)
    drawn.get(MIXED, 0)
    later = sets(tmp_path, second.judge())
    later.get(MIXED, 0)
    assert later.looked == drawn.looked and not second.images
    with pytest.raises(UsageFault, match="not drawn before"):
        sets(tmp_path, second.judge("11")).get(MIXED, 0)
    other = sets(tmp_path, second.judge("11"), base)
    other.get(MIXED, 0)
    assert len(second.images) == 2 and other.looked == drawn.looked


def test_nobody_looks_without_a_judge(base: DiffusionModel, tmp_path: Path) -> None:
    data = sets(tmp_path, None, base)
    data.get(MIXED, 0)
    assert data.looked == [] and data.used and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(("flagged", "shown"), [({"axes": 3}, 2), ({"axes": 1}, 5), ({"axes": -1}, 0)])
def test_counts_that_cannot_be_are_refused(flagged: dict[str, int], shown: int) -> None:
    with pytest.raises(ValidationError):
        TrainingImages(digest="d", source="concept", images=4, flagged=flagged, shown=shown)
