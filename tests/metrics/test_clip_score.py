"""Cosines of images and prompts, pair by pair."""

import numpy as np
import pytest

from safeguard.errors import UsageFault
from safeguard.metrics.clip_score import ClipScore, ClipScoreConfig
from tests.detect.clip_checkpoint import save_clip


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return ClipScore(ClipScoreConfig(checkpoint=str(save_clip(tmp_path_factory.mktemp("clip")))))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_pairs_are_scored_one_by_one(metric, images):
    prompts = ["a cat", "an axe", "a cat"]
    together = metric.values(images, prompts)
    alone = [metric.values(images[i : i + 1], prompts[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.shape == (3,) and np.abs(together).max() <= 1 + 1e-6
    assert len(set(together.round(6))) == 3


def test_the_prompt_matters(metric, images):
    assert metric.values(images[:1], ["a cat"])[0] != pytest.approx(metric.values(images[:1], ["an axe"])[0], abs=1e-4)


def test_lengths_must_agree(metric, images):
    with pytest.raises(UsageFault, match="3 images for 1 prompts"):
        metric.values(images, ["a cat"])
    assert metric.values(images[:0], []).shape == (0,)
