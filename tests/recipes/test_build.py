"""The whole recipe on a handful of made-up images and a step or two per stage."""

import json

import numpy as np
import pytest
import torch

from recipes.reference import artwork, detector_data
from recipes.reference.__main__ import Build
from recipes.reference.vocabulary import NAMES, STYLES
from safeguard.progress import SilentProgress

STEPS = {"autoencoder": 1, "denoiser": 2, "decoder": 1, "detector": 1}


def drawings(cache, styles=None):
    """Artwork of three names and one other thing, in each style."""
    wanted = styles or list(STYLES)
    codes = [*(name.codepoints for name in NAMES[:3]), "1f6e1"] * len(wanted)
    pixels = np.random.default_rng(0).integers(0, 256, (len(codes), 64, 64, 3), dtype=np.uint8)
    return artwork.Artwork(pixels, codes, [style for style in wanted for _ in range(4)])


@pytest.mark.slow
def test_stages_run_continue_and_fit_together(tmp_path, monkeypatch):
    monkeypatch.setattr(artwork, "load", drawings)
    first = Build(tmp_path, "cpu", STEPS, SilentProgress()).model()
    assert first.vae.config.scaling_factor == 1.0
    facts = json.loads((tmp_path / "training.json").read_text())
    assert {stage: fact["steps"] for stage, fact in facts.items()} == {"autoencoder": 1, "denoiser": 2, "decoder": 1}
    again = Build(tmp_path, "cpu", STEPS, SilentProgress()).model()
    for part in ("vae", "text_encoder", "unet"):
        theirs = getattr(again, part).state_dict()
        for key, value in getattr(first, part).state_dict().items():
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=0, msg=f"{part}.{key} changed")
    assert json.loads((tmp_path / "training.json").read_text()) == facts
    monkeypatch.setattr(detector_data, "COPIES", 1)
    first.save_pretrained(tmp_path / "model")
    assert not Build(tmp_path, "cpu", STEPS, SilentProgress()).detector().training
    (tmp_path / "detector.safetensors").unlink()
    model = Build(tmp_path, "cpu", STEPS, SilentProgress()).detector(tmp_path / "model")
    assert not model.training and (tmp_path / "half-drawn.npz").exists()
