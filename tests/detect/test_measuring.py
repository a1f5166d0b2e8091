"""Errors measured on images of one's own, and detectors that carry them."""

import numpy as np
import pytest

from safeguard.detect.measuring import Calibrated, Sample, known_errors, make, measure
from safeguard.errors import UsageFault
from safeguard.policy.schema import DetectorMethod
from safeguard.registry import detectors
from tests.detect.clip_checkpoint import save_clip

WORDS = ["axe", "dagger", "cat"]
LABELS = ["axe", "dagger"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images():
    dice = np.random.default_rng(0)
    return [dice.integers(0, 256, (32 + 8 * (i % 2), 32, 3), dtype=np.uint8) for i in range(12)]


def method(checkpoint, **settings):
    return DetectorMethod.model_validate(
        {"name": "clip", "checkpoint": str(checkpoint), "vocabulary": WORDS, "threshold": 0.5} | settings
    )


def samples(images):
    return [
        Sample("six by hand", images[:6], ["axe", "axe", "dagger", None, None, None]),
        Sample("six drawn", images[6:], ["axe"] * 4 + [None] * 2),
    ]


def test_counts_are_those_of_the_scores_at_every_threshold(checkpoint, images):
    judge = detectors.make(method(checkpoint, threshold=0.62))
    found = measure(judge, LABELS, samples(images))
    alone = np.array([judge.scores(image[None], LABELS)[0] for image in images])
    assert found.record.threshold == 0.62
    for point in found.curve:
        hit = alone >= point.threshold
        assert point.detected == [hit[:3].sum(), hit[6:10].sum()]
        assert point.false_alarms == [hit[3:6].sum(), hit[10:].sum()]
    own = next(point for point in found.curve if point.threshold == 0.62)
    assert [each.detected for each in found.record.strata] == own.detected
    assert [each.positives for each in found.record.strata] == [3, 4]
    assert found.record.strata[0].by_label["dagger"].positives == 1


def test_a_detector_carries_its_record_and_its_digest_covers_it(checkpoint, images):
    declared = method(checkpoint)
    plain = make(declared)
    assert known_errors(plain, LABELS) is None
    first = measure(plain, LABELS, samples(images))
    second = measure(plain, LABELS, samples(images)[:1])
    carrying = make(declared.model_copy(update={"calibration": first}))
    assert known_errors(carrying, LABELS) == first.record
    assert carrying.calibration(["cat"]) is None
    other = make(declared.model_copy(update={"calibration": second}))
    assert len({plain.digest, carrying.digest, other.digest}) == 3
    np.testing.assert_array_equal(
        carrying.scores(np.stack(images[::2]), LABELS), plain.scores(np.stack(images[::2]), LABELS)
    )


@pytest.mark.parametrize("change", [{"threshold": 0.4}, {"template": "{label}"}, {"vocabulary": [*WORDS, "saw"]}])
def test_a_record_of_other_settings_is_refused(checkpoint, images, change):
    found = measure(make(method(checkpoint)), LABELS, samples(images))
    with pytest.raises(UsageFault, match="another detector"):
        make(method(checkpoint, **change).model_copy(update={"calibration": found}))


def test_easy_images_of_ones_own_do_not_replace_hard_ones_it_came_with(checkpoint, images):
    plain = make(method(checkpoint))
    hard = Calibrated(plain, measure(plain, LABELS, [Sample("hard", images[:4], ["axe"] * 4)]))
    easy = measure(hard, LABELS, [Sample("easy", images[4:6], ["axe"] * 2)])
    both = known_errors(Calibrated(hard, easy), LABELS)
    assert [stratum.data for stratum in both.strata] == ["hard", "easy"]


def test_a_detector_whose_record_is_of_another_threshold_is_refused(checkpoint, images):
    plain = make(method(checkpoint))
    record = measure(plain, LABELS, samples(images)).record

    class Careless:
        threshold = 0.9
        describe = plain.describe

        def calibration(self, labels):
            return record

    with pytest.raises(UsageFault, match=r"flags from 0\.9"):
        known_errors(Careless(), LABELS)


def test_without_positives_there_is_nothing_to_measure(checkpoint, images):
    with pytest.raises(UsageFault, match="no image shows"):
        measure(make(method(checkpoint)), LABELS, [Sample("none", images[:2], [None, None])])
