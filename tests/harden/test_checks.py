"""A hardened model that changed elsewhere, or draws nothing any more, is not written; a merely different one is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safeguard import api, reference
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import select
from safeguard.errors import SafeguardError, TrainingFault
from safeguard.finetune.lora import LoRA, LoRAConfig
from safeguard.harden.checks import (
    IMAGES,
    benign_prompts,
    check_images,
    check_weights,
    fingerprints,
    flaws,
    tensors,
)
from safeguard.io.opening import open_pipeline
from safeguard.policy.schema import Policy
from safeguard.registry import unlearners
from tests.contexts import tiny_policy
from tests.tiny import ARCHITECTURES, save_tiny, tiny_pipeline, tiny_sdxl_pipeline


@torch.no_grad()
def shift(model: DiffusionModel, group: str) -> list[str]:
    """Change a parameter group, and say what it holds."""
    chosen = select(model, group)
    for value in chosen.values():
        value.add_(1e-3)
    return list(chosen)


class TestWeights:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_what_changed_is_counted_in_all_modules(self, architecture: str) -> None:
        model = DiffusionModel(ARCHITECTURES[architecture](0))
        before = fingerprints(model.pipeline)
        assert {"unet", "vae", "text_encoder"} <= {name.partition(".")[0] for name in before}
        assert any(name.startswith("text_encoder_2.") for name in before) == (architecture == "sdxl")
        intended = shift(model, "cross-attention")
        found = check_weights(model.pipeline, before, intended)
        assert found == {
            "changed": len(intended),
            "components": ["unet"],
            "unchanged": [],
            "untouched": len(before) - len(intended),
        }

    @pytest.mark.parametrize(
        "name", ["unet.conv_in.bias", "vae.decoder.conv_in.weight", "text_encoder_2.text_projection.weight"]
    )
    def test_one_bit_elsewhere_is_found(self, name: str) -> None:
        model = DiffusionModel(tiny_sdxl_pipeline())
        before = fingerprints(model.pipeline)
        intended = shift(model, "cross-attention-kv")
        value = tensors(model.pipeline)[name].detach().view(-1)
        value[0] = torch.nextafter(value[0], torch.tensor(9.0))
        with pytest.raises(TrainingFault, match=f"{name} changed, which the method does not declare"):
            check_weights(model.pipeline, before, intended)

    def test_the_sign_of_a_zero_is_a_bit(self) -> None:
        pipeline = tiny_pipeline()
        bias = tensors(pipeline)["vae.decoder.conv_in.bias"].detach()
        bias[0] = 0.0
        before = fingerprints(pipeline)
        bias[0] = -0.0
        assert fingerprints(pipeline) != before

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("name", ["unet.conv_out.weight", "text_encoder.text_model.final_layer_norm.bias"])
    def test_a_value_that_is_not_finite(self, name: str, value: float) -> None:
        model = DiffusionModel(tiny_pipeline())
        before = fingerprints(model.pipeline)
        known = {key.replace(".text_model.", "."): key for key in before}
        intended = shift(model, "full")
        name = known[name.replace(".text_model.", ".")]
        tensors(model.pipeline)[name].detach().view(-1)[-1] = value
        with pytest.raises(TrainingFault, match=f"{name} became NaN or infinite"):
            check_weights(model.pipeline, before, intended)

    def test_an_adapter_left_behind(self) -> None:
        model = DiffusionModel(tiny_pipeline())
        before = fingerprints(model.pipeline)
        intended = shift(model, "full")
        LoRA(LoRAConfig()).attach(model, 0)
        with pytest.raises(TrainingFault, match=r"unet\..* (came|went), which the method does not declare"):
            check_weights(model.pipeline, before, intended)

    def test_nothing_changed(self) -> None:
        model = DiffusionModel(tiny_pipeline())
        with pytest.raises(TrainingFault, match="hardening changed nothing, so nothing was written"):
            check_weights(model.pipeline, fingerprints(model.pipeline), select(model, "full"))

    def test_a_whole_part_was_forgotten(self) -> None:
        model = DiffusionModel(tiny_pipeline())
        before = fingerprints(model.pipeline)
        intended = [*shift(model, "full"), *select(model, "text-encoder")]
        with pytest.raises(TrainingFault, match=r"tensors of text_encoder that hardening was to change"):
            check_weights(model.pipeline, before, intended)

    def test_a_tensor_no_gradient_reached_is_named_and_tolerated(self) -> None:
        model = DiffusionModel(tiny_pipeline())
        before = fingerprints(model.pipeline)
        changed = shift(model, "cross-attention")
        found = check_weights(model.pipeline, before, [*changed, "unet.conv_in.bias"])
        assert found["unchanged"] == ["unet.conv_in.bias"]

    def test_a_parameter_that_was_folded_away_is_not_missed(self) -> None:
        model = DiffusionModel(tiny_pipeline())
        before = fingerprints(model.pipeline)
        intended = shift(model, "cross-attention")
        assert check_weights(model.pipeline, before, [*intended, "unet.mid_block.eraser.down.weight"])


class TestFlaws:
    def smooth(self, size: int = 16) -> torch.Tensor:
        """Latents of broad shapes."""
        ramp = torch.linspace(-1, 1, size)
        return (ramp[:, None] * ramp[None]).expand(3, 4, size, size) * 1.5

    def pictures(self) -> np.ndarray:
        ramp = np.linspace(0, 255, 64).astype(np.uint8)
        return np.broadcast_to(ramp[None, :, None, None], (3, 64, 64, 3)).copy()

    def found(self, latents: torch.Tensor, images: np.ndarray) -> dict[str, list[bool]]:
        return {flaw: found.tolist() for flaw, found in flaws(latents, images).items()}

    def test_pictures_have_none(self) -> None:
        assert not any(any(found) for found in self.found(self.smooth(), self.pictures()).values())

    def test_each_is_found_in_its_own_row(self) -> None:
        images, latents = self.pictures(), self.smooth().clone()
        images[0] = 255
        latents[1] = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
        latents[2] *= 20
        assert self.found(latents, images) == {
            "blank": [True, False, False],
            "noise": [False, True, False],
            "out of range": [False, False, True],
        }

    def test_noise_in_pixels(self) -> None:
        images = self.pictures()
        images[1] = np.random.default_rng(0).integers(0, 256, images[1].shape, dtype=np.uint8)
        assert self.found(self.smooth(), images)["noise"] == [False, True, False]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_latents_that_are_not_finite(self, value: float) -> None:
        latents = self.smooth().clone()
        latents[2, 0, 0, 0] = value
        assert self.found(latents, self.pictures())["out of range"] == [False, False, True]

    @pytest.mark.parametrize("size", [16, 64, 128])
    def test_white_latents_are_noise_at_any_size(self, size: int) -> None:
        latents = torch.randn(16, 4, size, size, generator=torch.Generator().manual_seed(size))
        images = np.broadcast_to(self.pictures()[:1], (16, 64, 64, 3))
        assert all(self.found(latents, images)["noise"])


PROMPTS = ["hammer", "cat", "banana", "car"]


class TestImages:
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls) -> DiffusionModel:
        """A model that draws pictures."""
        return DiffusionModel(open_pipeline(reference.path()))

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr("safeguard.harden.checks.STEPS", 8)
        yield

    def test_the_base_model_draws_pictures(self, base: DiffusionModel) -> None:
        found = check_images(base, base, PROMPTS, 0)
        assert found["base"] == found["hardened"] == {"blank": 0, "noise": 0, "out of range": 0}

    @torch.no_grad()
    def test_other_pictures_are_not_refused(self, base: DiffusionModel) -> None:
        other: Any = base.frozen_copy()
        words = other.parts["text_encoder"].get_input_embeddings().weight[:-2]
        words.copy_(words.roll(1, 0))  # every token means what its neighbour meant
        assert check_images(base, other, PROMPTS, 0)["broken"] == 0

    @torch.no_grad()
    @pytest.mark.parametrize("ruin", ["silent", "shuffled"])
    def test_a_network_that_removes_no_noise_is_refused(self, base: DiffusionModel, ruin: str) -> None:
        other = base.frozen_copy()
        generator = torch.Generator().manual_seed(0)
        for value in other.unet.parameters() if ruin == "shuffled" else other.unet.conv_out.parameters():
            rows = torch.randperm(value.numel(), generator=generator)
            value.copy_(value.flatten()[rows].view_as(value) if ruin == "shuffled" else torch.zeros_like(value))
        with pytest.raises(TrainingFault, match=r"the hardened model draws .* for \d of 4 benign prompts such as"):
            check_images(base, other, PROMPTS, 0)

    @torch.no_grad()
    @pytest.mark.parametrize(("amount", "refused"), [(0.1, False), (0.5, True)])
    def test_scattered_weights_are_refused_where_they_ruin_latents(
        self, base: DiffusionModel, amount: float, refused: bool
    ) -> None:
        """As measured in the module's table: 0.1 keeps latents in range, 0.5 does not."""
        other = base.frozen_copy()
        generator = torch.Generator().manual_seed(0)
        for value in other.unet.parameters():
            value.mul_(1 + amount * torch.randn(value.shape, generator=generator))
        if refused:
            with pytest.raises(TrainingFault, match="latents far out of range"):
                check_images(base, other, PROMPTS, 0)
        else:
            assert check_images(base, other, PROMPTS, 0)["broken"] == 0

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_random_networks_draw_nothing(self, architecture: str) -> None:
        """Those of noise leave latents far too large, that of v leaves noise of the size of pictures."""
        model = DiffusionModel(ARCHITECTURES[architecture](1))
        found = check_images(model, model, PROMPTS, 0)["base"]
        assert found["out of range"] == (0 if architecture == "sd2" else 4)
        assert found["noise"] >= 3

    def test_a_base_model_that_draws_noise_holds_nobody_to_more(self) -> None:
        base = DiffusionModel(tiny_pipeline(0))
        found = check_images(base, DiffusionModel(tiny_pipeline(1)), PROMPTS, 0)
        assert found["flawed_before"] > 0 and found["broken"] <= len(PROMPTS) - found["flawed_before"]


def test_prompts_are_retained_then_related_then_none() -> None:
    policy = tiny_policy()
    assert benign_prompts(policy) == ["a cat"] * IMAGES
    without = policy.model_dump() | {"retain": []}
    assert benign_prompts(Policy.model_validate(without)) == ["a hammer"] * IMAGES
    without["concepts"] = [without["concepts"][0] | {"related": []}]
    assert benign_prompts(Policy.model_validate(without)) == [""] * IMAGES


class TestRun:
    """The whole command, with an unlearner of another package that is defective on request."""

    def run(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> api.HardenedModel:
        monkeypatch.setenv("SAFEGUARD_CACHE", str(folder / "cache"))
        monkeypatch.setitem(unlearners._targets, "careless", "tests.harden.careless:Careless")
        policy = tiny_policy(unlearner={"name": "careless", **settings}, resilience={"name": "none"})
        model = save_tiny(folder / "base")
        (folder / "policy.json").write_text(json.dumps(policy.model_dump(mode="json") | {"model": str(model)}))
        return api.harden(folder / "policy.json", folder / "out")

    def test_the_outcome_is_in_the_record(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hardened = self.run(tmp_path, monkeypatch)
        checks = json.loads((hardened.path / "hardening.json").read_text())["checks"]
        assert checks["tensors"]["changed"] > 0 and checks["tensors"]["untouched"] > checks["tensors"]["changed"]
        assert checks["images"]["prompts"] == ["a cat"] * IMAGES

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"idle": True}, "hardening changed nothing"),
            ({"tensor": "vae.decoder.conv_in.bias"}, "vae.decoder.conv_in.bias changed, which the method does not"),
            ({"tensor": "unet.conv_in.bias", "value": "nan"}, "unet.conv_in.bias became NaN or infinite"),
            ({"tensor": "vae.encoder.conv_in.bias", "value": "inf"}, "vae.encoder.conv_in.bias became NaN or infinite"),
        ],
    )
    def test_a_defect_is_named_and_nothing_is_written(
        self, settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(SafeguardError, match=message) as caught:
            self.run(tmp_path, monkeypatch, **settings)
        assert caught.value.exit_code == 4 and caught.value.fix and "nothing was written" in caught.value.what
        assert not (tmp_path / "out").exists()
