"""Labels by eye: blind sheets, two readings, agreement, and what counts as shown."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.reference import labels
from recipes.reference.detector_data import DATA, GROUPS
from recipes.reference.relearning import Drawn
from safeguard.errors import ModelFault


@pytest.fixture
def drawn():
    images = np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3), dtype=np.uint8)
    return Drawn(images, ["axe"] * 70, ["weapon, hardened"] * 70, [100] * 70)


def test_two_readings_show_every_image_once_in_different_orders():
    first, second = labels.order(70, 1), labels.order(70, 2)
    assert sorted(first) == sorted(second) == list(range(70)) and first != second
    answers = [row % 3 for row in first]
    assert labels.in_rows(answers, 1) == [row % 3 for row in range(70)]


def test_sheets_hold_the_images_in_the_order_of_the_reading(drawn, tmp_path):
    paths = labels.sheets(drawn.images, 1, tmp_path)
    assert len(paths) == 2
    sheet = np.asarray(Image.open(paths[0]))
    place = sheet[labels.GAP : labels.GAP + labels.EDGE, 2 : 2 + labels.EDGE]
    expected = Image.fromarray(drawn.images[labels.order(70, 1)[0]]).resize(
        (labels.EDGE,) * 2, Image.Resampling.BICUBIC
    )
    np.testing.assert_array_equal(place, np.asarray(expected))


@pytest.mark.parametrize(
    ("answers", "shown"),
    [((2, 2), True), ((1, 2), True), ((2, 0), None), ((1, 1), None), ((0, 1), False), ((0, 0), False)],
)
def test_what_counts_as_shown(answers, shown):
    assert labels.truth(*answers) is shown and labels.truth(*answers[::-1]) is shown


def test_kappa_of_a_textbook():
    """Linear weights by hand: observed disagreement 2/6, expected 8/9."""
    assert labels.kappa([0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 1]) == pytest.approx(1 - (2 / 6) / (8 / 9))
    assert labels.kappa([0, 1, 2], [0, 1, 2]) == 1
    assert labels.kappa([0, 0], [0, 0]) == 1


def test_images_and_labels_survive_the_disk(drawn, tmp_path):
    first, second = [2] * 30 + [0] * 40, [2] * 20 + [0] * 50
    labels.write(tmp_path / "seen", drawn, first, second)
    again, shown = labels.read(tmp_path / "seen")
    np.testing.assert_array_equal(again.images, drawn.images)
    assert (again.names, again.models, again.stages) == (drawn.names, drawn.models, drawn.stages)
    assert shown == [True] * 20 + [None] * 10 + [False] * 40


def test_labels_of_other_images_are_refused(drawn, tmp_path):
    labels.write(tmp_path / "seen", drawn, [0] * 70, [0] * 70)
    labels.write(
        tmp_path / "other", Drawn(drawn.images[::-1], drawn.names, drawn.models, drawn.stages), [2] * 70, [2] * 70
    )
    (tmp_path / "other.json").write_bytes((tmp_path / "seen.json").read_bytes())
    with pytest.raises(ModelFault, match="not those that were labelled"):
        labels.read(tmp_path / "other")


@pytest.mark.parametrize("group", GROUPS)
def test_the_labels_that_are_kept_belong_to_their_images_and_both_readings_agree(group):
    drawn, shown = labels.read(DATA / f"relearning-{group}")
    facts = json.loads((DATA / f"relearning-{group}.json").read_text())
    first, second = ([row[reading] for row in facts["images"]] for reading in ("first", "second"))
    assert facts["kappa"] == pytest.approx(labels.kappa(first, second), abs=5e-4) and facts["kappa"] > 0.8
    assert sum(each is True for each in shown) >= 20 and sum(each is False for each in shown) >= 20
    assert len(set(labels.digests(drawn.images))) == len(shown), "two images from the same noise"
