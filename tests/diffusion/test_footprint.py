"""What drawing and attacking need at full model size, counted on the meta device, weights included.

The bounds are cards: 8, 20 or 24, and 80 GiB.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safeguard import reference
from safeguard.data.latents import LatentSet
from safeguard.diffusion.footprint import Configurations, Footprint, Need, footprint, on_meta
from safeguard.diffusion.live_bytes import LiveBytes
from safeguard.diffusion.sampling import images_at_once
from safeguard.finetune.base import Run, Training
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.finetune.lora import LoRA, LoRAConfig
from tests.diffusion.full_size import SD_1_4, SD_2_1, SDXL
from tests.tiny import save_tiny

GIB = 2**30
TUNERS = {"lora": LoRA(LoRAConfig()), "full": FullFineTuning(FullConfig())}


def configurations(directory: Path) -> Configurations:
    """Those of a model's directory."""
    return {path.parent.name: json.loads(path.read_text("utf-8")) for path in directory.glob("*/*config.json")}


def needs(found: Footprint) -> dict[str, Need]:
    return {"drawing": found.drawing, **found.fine_tunes}


def test_stable_diffusion_1_fits_small_cards() -> None:
    found = footprint(SD_1_4, TUNERS)
    assert found.weights / GIB == pytest.approx(3.97, abs=0.01)
    assert found.drawing.images == 8
    assert found.drawing.default / GIB == pytest.approx(6.01, abs=0.1) and found.drawing.default <= 8 * GIB
    assert found.fine_tunes["lora"].default / GIB == pytest.approx(5.52, abs=0.1)
    assert found.fine_tunes["full"].default / GIB == pytest.approx(14.0, abs=0.2)


BOUNDS = {
    "Stable Diffusion 2.1": (SD_2_1, 3, {"drawing": (6.5, 6.5), "lora": (8.1, 5.6), "full": (15.7, 15.7)}),
    "Stable Diffusion XL": (SDXL, 2, {"drawing": (15.9, 15.9), "lora": (23.5, 14.0), "full": (44.9, 42.1)}),
}
"""Images drawn at once; GiB at most, by default and if memory is short."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_larger_models_fit_the_next_cards(name: str) -> None:
    configured, at_once, bounds = BOUNDS[name]
    found = footprint(configured, TUNERS)
    assert found.drawing.images == at_once
    for work, need in needs(found).items():
        default, smallest = bounds[work]
        assert need.default / GIB == pytest.approx(default, abs=0.2)
        assert need.smallest / GIB == pytest.approx(smallest, abs=0.2)
        assert need.default <= (70 if work == "full" else 24) * GIB
    assert found.fine_tunes["lora"].largest_within(16 * GIB) == 1, "one image, block by block"
    assert found.fine_tunes["full"].largest_within(12 * GIB) is None


@pytest.mark.parametrize(("configured", "at_once"), [(SD_1_4, 8), (SD_2_1, 3), (SDXL, 2)])
def test_configurations_are_those_of_the_models(configured: Configurations, at_once: int) -> None:
    model = on_meta(configured)
    sizes = {id(SD_1_4): 859_520_964, id(SD_2_1): 865_910_724, id(SDXL): 2_567_463_684}
    assert sum(value.numel() for value in model.unet.parameters()) == sizes[id(configured)]
    assert sum(value.numel() for value in model.parts["text_encoder"].parameters()) in (123_060_480, 340_387_840)
    assert sum(value.numel() for value in model.pipeline.vae.parameters()) == 83_653_863
    assert model.prediction_type == ("v_prediction" if configured is SD_2_1 else "epsilon")
    assert images_at_once(model) == at_once


def test_the_embedded_model_draws_as_many_as_ever() -> None:
    found = footprint(configurations(reference.path()), {})
    stored = sum(path.stat().st_size for path in reference.path().glob("*/*.safetensors"))
    assert found.weights == pytest.approx(2 * stored, rel=0.01), "stored in half precision, and opened in float32"
    assert found.drawing.images == 48


def test_halving_ends_at_what_fits() -> None:
    def count(images: int, blockwise: bool) -> int:
        return 90 if blockwise else 100 * images

    drawing, tuning = Need(count, 6, blocks=False), Need(count, 6, blocks=True)
    assert (tuning.default, drawing.smallest, tuning.smallest) == (600, 100, 90)
    for memory, images in ((600, 6), (599, 3), (300, 3), (299, 2), (199, 1), (100, 1)):
        assert drawing.largest_within(memory) == tuning.largest_within(memory) == images
    assert (drawing.largest_within(99), tuning.largest_within(99), tuning.largest_within(89)) == (None, 1, None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Configurations:
    return configurations(save_tiny(tmp_path_factory.mktemp("footprint") / "tiny", architecture="sdxl"))


def test_weights_in_half_precision_take_less(small: Configurations) -> None:
    whole, half = (footprint(small, {}, precision=precision) for precision in ("float32", "bfloat16"))
    assert half.drawing.smallest < 0.8 * whole.drawing.smallest
    assert half.weights < whole.weights


@pytest.mark.parametrize("name", TUNERS)
def test_a_fine_tune_needs_what_is_counted(small: Configurations, name: str) -> None:
    """The same as whole steps of the class that runs them."""
    model = on_meta(small)
    states, shape = model.encode_prompts(["a"] * 8), (8, *model.latent_shape)
    images = LatentSet(torch.empty(shape, device="meta"), torch.empty(shape, device="meta"), states, ["a"] * 8, "")
    before, counted = footprint(small, {}).weights, LiveBytes()
    with counted:
        run = Run(model, images, TUNERS[name], Training(batch_size=8), seed=0)
        for _ in range(2):
            run.step()
    found = footprint(small, TUNERS, batch_size=8).fine_tunes[name].default
    assert found == pytest.approx(before + counted.peak, rel=0.05)
