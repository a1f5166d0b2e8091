"""Every detector that can run here."""

from __future__ import annotations

import numpy as np
import pytest

from safeguard.detect.base import Detector
from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import DetectorMethod
from safeguard.registry import detectors
from tests.contracts.runs import tiny

UNKNOWN = "a florb of the second kind"


def made(name: str, **settings: object) -> Detector:
    """With tiny settings, or others; skips where the package it needs is not installed."""
    try:
        return detectors.make(DetectorMethod.model_validate(tiny(detectors, name) | settings))
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="module", params=detectors.names())
def detector(request: pytest.FixtureRequest) -> Detector:
    return made(request.param)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Noise, drawings in flat colours, and a blank."""
    dice = np.random.default_rng(0)
    noise = dice.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    flat = np.repeat(np.repeat(dice.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8), 16, 1), 16, 2)
    return np.concatenate([noise, flat, np.full((1, 64, 64, 3), 255, np.uint8)])


@pytest.mark.parametrize("name", detectors.names())
def test_its_tiny_settings_are_such_as_a_policy_may_have(name: str) -> None:
    assert [problem.line() for problem in method_problems(DetectorMethod.model_validate(tiny(detectors, name)))] == []
    wrong = DetectorMethod.model_validate(tiny(detectors, name) | {"no such setting": 1})
    assert len(method_problems(wrong)) == 1


def test_scores_lie_between_0_and_1_and_repeat(detector: Detector, images: np.ndarray) -> None:
    labels = detector.vocabulary[:2]
    scores = detector.scores(images, labels)
    assert scores.shape == (len(images),) and scores.dtype.kind == "f"
    assert (scores >= 0).all() and (scores <= 1).all()
    assert 0 < detector.threshold <= 1
    np.testing.assert_array_equal(detector.scores(images, labels), scores)


def test_scores_do_not_depend_on_the_batch(detector: Detector, images: np.ndarray) -> None:
    labels = detector.vocabulary[:2]
    alone = np.concatenate([detector.scores(image[None], labels) for image in images])
    np.testing.assert_allclose(detector.scores(images, labels), alone, atol=1e-5)
    np.testing.assert_allclose(detector.scores(images[::-1], labels), alone[::-1], atol=1e-5)
    assert detector.scores(images[:0], labels).shape == (0,)


def test_a_label_it_does_not_know_is_refused_or_never_calibrated(detector: Detector, images: np.ndarray) -> None:
    assert UNKNOWN not in detector.vocabulary
    assert detector.calibration([UNKNOWN]) is None
    assert detector.calibration([*detector.vocabulary[:1], UNKNOWN]) is None
    try:
        scores = detector.scores(images, [UNKNOWN])
    except UsageFault as fault:
        assert UNKNOWN in str(fault) and fault.fix
    else:
        assert (scores >= 0).all() and (scores <= 1).all()


def test_a_calibration_is_of_the_labels_asked_for_and_of_the_threshold(detector: Detector) -> None:
    record = detector.calibration(detector.vocabulary[:1])
    if record is None:
        pytest.skip("it comes without a calibration")
    assert record.labels == detector.vocabulary[:1] and record.threshold == detector.threshold
    assert record.positives > 0 and record.data


@pytest.mark.parametrize("name", detectors.names())
def test_its_digest_moves_with_its_settings(name: str) -> None:
    first, again, other = made(name), made(name), made(name, threshold=0.77)
    assert len(bytes.fromhex(first.digest)) == 32
    assert first.digest == again.digest != other.digest and other.threshold == 0.77
    assert first.describe() != other.describe() and "\n" not in first.describe()
