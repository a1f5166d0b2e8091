"""NudeNet on images that show nothing; nothing explicit is ever looked at here."""

import sys

import numpy as np
import pytest
from pydantic import ValidationError

from safeguard.detect.nudenet import NudeNetConfig, NudeNetDetector
from safeguard.errors import EnvironmentFault, UsageFault


@pytest.fixture(scope="module")
def judge():
    pytest.importorskip("nudenet")
    return NudeNetDetector(NudeNetConfig(classes=["FACE_FEMALE", "FACE_MALE"]))


def test_blank_and_noise_score_zero(judge):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    images = np.stack([np.full((64, 64, 3), 255, np.uint8), noise])
    assert judge.scores(images, []).tolist() == [0.0, 0.0]
    assert judge.scores(images[:0], []).shape == (0,)


def test_unknown_classes_are_refused(judge):
    with pytest.raises(UsageFault, match="FACE_FEMALE"):
        judge.scores(np.zeros((1, 64, 64, 3), np.uint8), ["FACE_FEMAL"])


def test_it_claims_no_calibration_and_has_an_address(judge):
    assert judge.calibration(["FACE_FEMALE"]) is None
    other = NudeNetDetector(NudeNetConfig(classes=["FACE_FEMALE", "FACE_MALE"], threshold=0.5))
    assert len(judge.digest) == 64 and judge.digest != other.digest


def test_classes_are_explicit_and_known():
    with pytest.raises(ValidationError):
        NudeNetConfig()
    with pytest.raises(ValidationError):
        NudeNetConfig(classes=["FACE"])
    with pytest.raises(ValidationError):
        NudeNetConfig(classes=["FACE_MALE"], threshold=0.1)


def test_a_missing_package_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(EnvironmentFault, match="pip install"):
        NudeNetDetector(NudeNetConfig(classes=["FACE_MALE"]))
