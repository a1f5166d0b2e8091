"""Every supported architecture goes to disk and back unchanged; every other one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from safeguard import api
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import sample
from safeguard.errors import ModelFault
from safeguard.io.opening import open_pipeline
from safeguard.io.preflight import inspect
from safeguard.io.saving import save_pipeline
from tests.contexts import tiny_policy
from tests.io.test_preflight import edit
from tests.tiny import ARCHITECTURES, save_tiny, tiny_sd3_transformer, tiny_text_encoder, tiny_tokenizer, tiny_vae


def images(pipeline: Any) -> np.ndarray:
    return sample(DiffusionModel(pipeline), ["an axe", ""], [1, 2], steps=2, guidance=4.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestSupported:
    def test_is_recognised(self, architecture: str, tmp_path: Path) -> None:
        info = inspect(save_tiny(tmp_path / "m", architecture=architecture))
        assert info.architecture == architecture
        assert info.prediction_type == ("v_prediction" if architecture == "sd2" else "epsilon")
        assert ("text_encoder_2" in info.components) == (architecture == "sdxl")

    def test_all_weights_and_all_settings_survive(self, architecture: str, tmp_path: Path) -> None:
        original = ARCHITECTURES[architecture](0)
        expected = images(original)
        save_pipeline(original, tmp_path / "m", {})
        opened: Any = open_pipeline(tmp_path / "m")
        assert np.array_equal(images(opened), expected)
        for name, part in original.components.items():
            if isinstance(part, torch.nn.Module):
                state = getattr(opened, name).state_dict()
                assert state.keys() == part.state_dict().keys()
                assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items()), name
            elif name.startswith("tokenizer"):
                assert getattr(opened, name).pad_token == part.pad_token

    def test_the_same_model_has_the_same_bytes(self, architecture: str, tmp_path: Path) -> None:
        first = save_pipeline(ARCHITECTURES[architecture](0), tmp_path / "a", {})
        again: Any = open_pipeline(tmp_path / "a")
        images(again)
        assert save_pipeline(again, tmp_path / "b", {}) == first


def stable_diffusion_3() -> Any:
    tokenizer = tiny_tokenizer()
    return diffusers.StableDiffusion3Pipeline(
        transformer=tiny_sd3_transformer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(shift_factor=0.06),
        text_encoder=tiny_text_encoder(tokenizer, projection=True),
        text_encoder_2=tiny_text_encoder(tokenizer, projection=True),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
    )


def flux() -> Any:
    tokenizer = tiny_tokenizer()
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(shift_factor=0.1159),
        text_encoder=tiny_text_encoder(tokenizer),
        text_encoder_2=None,
        tokenizer=tokenizer,
        tokenizer_2=None,
    )


OTHERS = {"StableDiffusion3Pipeline": stable_diffusion_3, "FluxPipeline": flux}


class TestRefused:
    @pytest.fixture(params=OTHERS)
    def other(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
        """The name of an unsupported architecture, and a directory of it as diffusers writes it."""
        OTHERS[request.param]().save_pretrained(tmp_path / "other", safe_serialization=True)
        return request.param, tmp_path / "other"

    def test_by_its_name(self, other: tuple[str, Path]) -> None:
        name, directory = other
        with pytest.raises(ModelFault, match=f"'{name}' has a transformer backbone, which is not supported yet"):
            inspect(directory)

    def test_before_anything_is_hardened_or_certified(self, other: tuple[str, Path], tmp_path: Path) -> None:
        name, directory = other
        policy = tmp_path / "policy.json"
        policy.write_text(json.dumps(tiny_policy().model_dump(mode="json") | {"model": str(directory)}))
        with pytest.raises(ModelFault, match=name):
            api.harden(policy, tmp_path / "out")
        with pytest.raises(ModelFault, match=name):
            api.certify(directory, policy=policy, out=tmp_path / "run")
        assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()

    def test_even_under_the_name_of_a_supported_one(self, other: tuple[str, Path]) -> None:
        _, directory = other
        edit(directory / "model_index.json", _class_name="StableDiffusionPipeline")
        with pytest.raises(ModelFault, match=r"component '\w+' of class 'diffusers.FlowMatch"):
            inspect(directory)

    def test_latents_that_are_shifted(self, tmp_path: Path) -> None:
        directory = save_tiny(tmp_path / "m", architecture="sdxl")
        edit(directory / "vae/config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
        with pytest.raises(ModelFault, match="latents with a latents_mean are not supported"):
            inspect(directory)
