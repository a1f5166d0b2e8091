"""Blank and noise are told from drawings."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from safeguard.errors import UsageFault
from safeguard.metrics.image_statistics import CUT_OFF, high_frequency_share, image_statistics


def shapes(size=64):
    pictures = []
    for k in range(6):
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((5 + k, 8, size - 12, size - 6 - k), fill=(40 * k, 120, 200), outline="black")
        draw.line((0, 3 * k, size, size - 5 * k), fill="red", width=2)
        draw.polygon([(10, 50), (30 + k, 12), (50, 50 - k)], fill=(200, 30 * k, 60))
        pictures.append(np.asarray(image))
    return np.stack(pictures)


def noise(std=60.0, size=64):
    values = np.random.default_rng(0).normal(128, std, (6, size, size, 3))
    return values.clip(0, 255).round().astype(np.uint8)


def test_drawings_are_neither():
    found = image_statistics(shapes())
    assert (found["blank_share"], found["noise_share"]) == (0, 0)
    assert found["mean_std"] == pytest.approx(np.mean([image.std() for image in shapes()]))


@pytest.mark.parametrize("size", [32, 64, 512])
def test_gaussian_noise_is_noise_at_any_size(size):
    found = image_statistics(noise(size=size))
    assert (found["blank_share"], found["noise_share"]) == (0, 1)


@pytest.mark.parametrize("images", [np.full((3, 64, 64, 3), 255, np.uint8), noise(std=2.0)])
def test_plain_images_are_blank_and_no_noise(images):
    found = image_statistics(images)
    assert (found["blank_share"], found["noise_share"]) == (1, 0)


def test_shares_count_images():
    images = np.concatenate([shapes()[:2], noise()[:1], np.zeros((1, 64, 64, 3), np.uint8)])
    found = image_statistics(images)
    assert (found["blank_share"], found["noise_share"]) == (0.25, 0.25)


def test_the_share_against_a_plain_sum_over_frequencies():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grey = image.mean(axis=2) - image.mean()
    y, x = np.mgrid[:8, :8]
    high = total = 0.0
    for v in range(8):
        for u in range(8):
            energy = abs((grey * np.exp(-2j * np.pi * (u * x + v * y) / 8)).sum()) ** 2
            total += energy
            if np.hypot(min(u, 8 - u), min(v, 8 - v)) / 8 > CUT_OFF:
                high += energy
    assert high_frequency_share(image[None])[0] == pytest.approx(high / total)


@pytest.mark.parametrize(
    "images", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_nonsense_is_refused(images):
    with pytest.raises(UsageFault):
        image_statistics(images)


@pytest.mark.slow
@pytest.mark.skipif(
    "SAFEGUARD_ARTWORK" not in os.environ, reason="SAFEGUARD_ARTWORK names no folder of artwork tarballs"
)
def test_no_real_drawing_is_noise():
    from recipes.reference import artwork

    found = image_statistics(artwork.load(Path(os.environ["SAFEGUARD_ARTWORK"]), ["noto"]).pixels)
    assert (found["blank_share"], found["noise_share"]) == (0, 0)
