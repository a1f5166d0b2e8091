"""Images as a model draws them that has half relearned a thing, and the drawing that lies nearest to them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from recipes.reference import half_drawn
from recipes.reference.nearest import full_contrast, nearest, nearest_is
from safeguard import reference
from safeguard.diffusion.model import DiffusionModel
from safeguard.io.opening import open_directory

pytestmark = pytest.mark.skipif(
    not (reference.WEIGHTS / "model" / "model_index.json").exists(), reason="the weights were not built"
)


@pytest.fixture(scope="module")
def model():
    found = DiffusionModel(open_directory(reference.path()).pipeline)
    found.freeze()
    return found


@pytest.fixture(scope="module")
def drawings():
    def drawn(*boxes):
        image = Image.new("RGB", (64, 64), "white")
        for box, colour in boxes:
            ImageDraw.Draw(image).rectangle(box, fill=colour)
        return np.asarray(image)

    return np.stack(
        [
            drawn(((10, 28, 54, 36), "blue")),
            drawn(((28, 6, 36, 58), "red")),
            drawn(((8, 8, 30, 30), "green"), ((36, 36, 56, 56), "black")),
            drawn(((20, 20, 44, 44), "orange")),
        ]
    )


def test_every_drawing_has_its_copies_and_they_are_reproducible(model, drawings):
    prompts = ["a car emoji", "a bus emoji", "a cat emoji", "a dog emoji"]
    images, rows = half_drawn.half_drawn(model, drawings, prompts, copies=3, seed=0)
    assert images.shape == (12, 64, 64, 3) and images.dtype == np.uint8
    assert np.bincount(rows).tolist() == [3, 3, 3, 3]
    again, _ = half_drawn.half_drawn(model, drawings, prompts, copies=3, seed=0)
    np.testing.assert_array_equal(images, again)
    assert (images != half_drawn.half_drawn(model, drawings, prompts, copies=3, seed=1)[0]).any()


@pytest.mark.parametrize("way", half_drawn.WAYS)
def test_every_way_changes_the_latents_and_keeps_their_shape(model, drawings, way):
    import torch

    latents, _ = model.encode_images(drawings)
    plain, _ = model.encode_images(np.full((1, 64, 64, 3), 255, np.uint8))
    with torch.no_grad():
        changed = half_drawn._one_way(model, way, latents, ["a cat"] * 4, plain, torch.Generator().manual_seed(0))
    assert changed.shape == latents.shape and changed.isfinite().all()
    assert (changed - latents).abs().mean() > 0.05


def test_what_is_pale_shifted_or_mirrored_still_lies_nearest_to_its_drawing(model, drawings):
    pale = (255 - (255 - drawings.astype(float)) * 0.3).astype(np.uint8)
    shifted = np.roll(drawings, 3, axis=2)
    for images in (drawings, pale, shifted, drawings[:, :, ::-1].copy()):
        rows, cosines = nearest(model, images, drawings)
        assert rows.tolist() == [0, 1, 2, 3] and (cosines > 0.6).all()
    assert nearest_is(model, pale, drawings, ["axe", "saw", None, "axe"], ["axe"]).tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_full_contrast_leaves_a_blank_blank():
    assert full_contrast(np.full((1, 8, 8, 3), 255, np.uint8)).min() == 255
