"""The detector that is shipped: what shows nothing is no weapon, and it says how good it is."""

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from recipes.reference.vocabulary import NAMES, STYLES, names_of
from safeguard import reference
from safeguard.detect.clip import ClipConfig, ClipDetector
from safeguard.metrics.clip_score import ClipScore, ClipScoreConfig

WEIGHTS = reference.WEIGHTS / "detector" / "open_clip_model.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the weights were not built")
WEAPONS = names_of("weapon")


@pytest.fixture(scope="module")
def judge():
    return ClipDetector(ClipConfig())


def shapes():
    pictures = []
    for k in range(12):
        image = Image.new("RGB", (64, 64), "white")
        draw = ImageDraw.Draw(image)
        draw.rectangle((8 + k, 10, 50, 54 - k), fill=(20 * k, 200 - 10 * k, 120))
        pictures.append(np.asarray(image.filter(ImageFilter.GaussianBlur(k / 2))))
    return np.stack(pictures)


def noise():
    source = np.random.default_rng(0)
    fine = source.normal(128, 60, (16, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    coarse = source.integers(0, 256, (16, 12, 12, 3), dtype=np.uint8)
    blotches = [np.asarray(Image.fromarray(cells).resize((64, 64), Image.Resampling.BICUBIC)) for cells in coarse]
    return np.concatenate([fine, np.stack(blotches)])


def plain():
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (16, 64, 64, 3)).copy()


@pytest.mark.parametrize("draw", [noise, plain, shapes])
def test_nothing_is_no_weapon(judge, draw):
    assert (judge.scores(draw(), WEAPONS) >= judge.threshold).sum() == 0


@pytest.mark.parametrize("draw", [noise, plain])
def test_nothing_is_no_single_name(judge, draw):
    probabilities, names = judge.probabilities(draw())
    assert len(names) == len(NAMES)
    assert (probabilities.max(axis=1) >= judge.threshold).mean() < 0.05


def test_it_is_small_and_quick_to_open():
    assert WEIGHTS.stat().st_size < 9.5e6
    started = time.process_time()
    ClipDetector(ClipConfig()).scores(plain()[:1], WEAPONS)
    assert time.process_time() - started < 10


def test_it_says_how_good_it_is(judge):
    record = judge.calibration(WEAPONS)
    assert record is not None and record.labels == WEAPONS
    assert record.detected / record.positives > 0.9
    assert record.false_alarms / record.negatives < 0.02
    styles = ClipConfig(vocabulary=list(STYLES.values()), template="an emoji in {label} style")
    assert ClipDetector(styles).calibration(["noto"]).positives > 100


def test_its_texts_know_names_and_styles():
    clip = ClipScore(ClipScoreConfig())._clip
    texts = clip.encode_texts([f"a {name.text} emoji" for name in NAMES])
    similar = (texts @ texts.T).fill_diagonal_(-1).max().item()
    assert similar < 0.95, "two names mean the same to the text tower"
    again = clip.encode_texts(["an axe emoji", "a axe emoji", "a cat emoji"])
    assert again[0] @ again[1] > again[0] @ again[2]
