"""Augmentations keep shape and range, are reproducible, and do what their names say."""

import pytest
import torch

from recipes.reference import augmentation
from recipes.reference.augmentation import augment, compress, move, nothing, restyle


@pytest.fixture
def images():
    pictures = torch.ones(5, 3, 64, 64)
    pictures[:, :, 16:48, 20:40] = torch.linspace(-1, 0.5, 5).view(5, 1, 1, 1)
    pictures[:, 0, 30:34] = -1
    return pictures


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("change", [augment, restyle, nothing])
def test_shape_range_and_reproducibility(change, images):
    before = images.clone()
    first = change(images, generator())
    assert first.shape == images.shape
    assert first.min() >= -1 and first.max() <= 1 and first.isfinite().all()
    torch.testing.assert_close(first, change(images, generator()), rtol=0, atol=0)
    assert not torch.equal(first, change(images, generator(1)))
    assert torch.equal(images, before), "the originals were changed"


def test_moving_keeps_the_white_border(images):
    torch.testing.assert_close(move(torch.ones_like(images), generator()), torch.ones_like(images))


def test_the_cosine_transform_is_orthonormal():
    matrix = augmentation._cosines()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8))


def test_compression_loses_detail_but_keeps_the_blocks_in_place(images):
    noisy = images + 0.02 * torch.randn(images.shape, generator=generator())
    result = compress(noisy, generator())
    assert 0 < (result - noisy).abs().mean() < 0.1
    left, right = result[..., :32], compress(noisy[..., :32].contiguous(), generator())
    torch.testing.assert_close(left, right, msg="a block changed with what stands beside it")


def test_nothing_has_all_kinds(images):
    generated = [nothing(images, generator(seed)) for seed in range(20)]
    deviations = torch.cat(generated).std(dim=(1, 2, 3))
    assert (deviations < 1).any() and (deviations > 0.3).any()
    assert len({round(float(value), 3) for value in deviations}) > 50
