"""One code path for every architecture, held against diffusers' own pipelines and schedulers."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import initial_noise, sample, sample_latents, trajectory
from safeguard.errors import ModelFault
from safeguard.io.preflight import SCHEDULERS
from tests.tiny import ARCHITECTURES, POOLED_WIDTH, tiny_pipeline, tiny_sd3_transformer, tiny_sdxl_pipeline, tiny_vae

PROMPTS = ["an axe", "a cat"]


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    """A tiny model of each architecture."""
    return DiffusionModel(ARCHITECTURES[request.param](0))


def solver(pipeline: Any) -> diffusers.DPMSolverMultistepScheduler:
    """The sampler in use, made from the pipeline's own noise schedule."""
    return diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestAgainstDiffusers:
    def test_sampling_is_the_pipelines_own(self, model: DiffusionModel) -> None:
        noise = initial_noise(model, [1, 2])
        ours = sample_latents(model, model.encode_prompts(PROMPTS), noise, steps=4, guidance=4.0)
        pipeline = model.pipeline
        pipeline.scheduler = solver(pipeline)
        theirs = pipeline(PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=4.0, output_type="latent")
        torch.testing.assert_close(ours, theirs.images, rtol=1e-3, atol=1e-3)

    def test_trajectories_are_ddims(self, model: DiffusionModel) -> None:
        noise = initial_noise(model, [1, 2])
        ours = trajectory(model, model.encode_prompts(PROMPTS), noise, steps=4, guidance=3.0)
        seen: list[torch.Tensor] = [noise]

        def keep(pipeline: Any, step: int, t: int, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"])
            return {}

        pipeline = model.pipeline
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
        )
        pipeline(PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=3.0, callback_on_step_end=keep)
        assert [t for _, t in ours] == pipeline.scheduler.timesteps.tolist() == [751, 501, 251, 1]
        for (latents, _), theirs in zip(ours, seen, strict=False):
            torch.testing.assert_close(latents, theirs)

    def test_images_are_the_pipelines_own(self, model: DiffusionModel) -> None:
        ours = sample(model, PROMPTS, [1, 2], steps=3, guidance=4.0)
        noise = initial_noise(model, [1, 2])
        pipeline = model.pipeline
        pipeline.scheduler = solver(pipeline)
        theirs = pipeline(PROMPTS, latents=noise, num_inference_steps=3, guidance_scale=4.0, output_type="np").images
        assert np.abs(ours - theirs * 255.0).max() <= 1

    def test_latents_are_scaled_as_the_autoencoder_says(self, model: DiffusionModel) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
        mean, deviation = model.encode_images(images)
        vae = model.pipeline.vae
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        torch.testing.assert_close(mean, posterior.mean * vae.config.scaling_factor)
        torch.testing.assert_close(deviation, posterior.std * vae.config.scaling_factor)

    def test_noising_and_targets_are_the_schedulers(self, model: DiffusionModel) -> None:
        latents = torch.randn(3, *model.latent_shape, generator=seeded())
        t, noise = model.draw_noise(3, seeded(1))
        reference = diffusers.DDPMScheduler.from_config(model.pipeline.scheduler.config)
        noisy = model.add_noise(latents, noise, t)
        torch.testing.assert_close(noisy, reference.add_noise(latents, noise, t))
        conditioning = model.encode_prompts(["an axe"] * 3)
        target = noise if model.prediction_type == "epsilon" else reference.get_velocity(latents, noise, t)
        expected = torch.nn.functional.mse_loss(model.predict(noisy, t, conditioning), target)
        torch.testing.assert_close(model.denoising_loss_at(latents, conditioning, t, noise), expected)


def test_stable_diffusion_2_predicts_v() -> None:
    assert DiffusionModel(ARCHITECTURES["sd2"](0)).prediction_type == "v_prediction"


def test_noise_of_a_perfect_prediction_of_v(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionModel(ARCHITECTURES["sd2"](0))
    latents = torch.randn(4, *model.latent_shape, generator=seeded())
    t, noise = model.draw_noise(4, seeded(1))
    signal, scale = model.coefficients(t)
    monkeypatch.setattr(model, "predict", lambda *_: signal * noise - scale * latents)
    noisy = model.add_noise(latents, noise, t)
    torch.testing.assert_close(model.predict_noise(noisy, t, model.empty), noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("t", "value"),
    [
        (0, 0.99915),
        (1, 0.998296028),
        (10, 0.990431309),
        (100, 0.894223478),
        (500, 0.276332684),
        (981, 0.0057755),
        (999, 0.004660099),
    ],
)
def test_noise_schedule_of_stable_diffusion(model: DiffusionModel, t: int, value: float) -> None:
    assert model.alphas_cumprod[t].item() == pytest.approx(value, rel=2e-6)
    signal, noise = model.coefficients(torch.tensor([t]))
    assert (signal**2).item() == pytest.approx(value, rel=2e-6)
    assert (signal**2 + noise**2).item() == pytest.approx(1.0)


def test_half_the_signal_is_left_at_354(model: DiffusionModel) -> None:
    assert (model.alphas_cumprod > 0.5).sum().item() == 354
    assert model.timesteps == 1000


def test_fifty_steps_stand_on_the_published_grid(model: DiffusionModel) -> None:
    path = trajectory(model, model.empty, initial_noise(model, [0]), steps=50, guidance=1.0, stop=50)
    assert [t for _, t in path] == list(range(981, 0, -20))


class TestNoPrompt:
    def test_states_of_the_empty_text(self) -> None:
        model = DiffusionModel(tiny_pipeline())
        assert model.empty.states.abs().sum() > 0 and model.empty.pooled is None

    def test_is_zeros_where_the_pipeline_says_so(self) -> None:
        model = DiffusionModel(tiny_sdxl_pipeline())
        mixed = model.encode_prompts(["an axe", "", "a cat", ""])
        assert mixed.pooled is not None
        assert [bool(row.any()) for row in mixed.states] == [True, False, True, False]
        assert [bool(row.any()) for row in mixed.pooled] == [True, False, True, False]

    def test_is_the_empty_text_where_it_does_not(self) -> None:
        pipeline = tiny_sdxl_pipeline()
        pipeline.register_to_config(force_zeros_for_empty_prompt=False)
        model = DiffusionModel(pipeline)
        assert model.empty.states.any()
        ours = sample_latents(model, model.encode_prompts(PROMPTS), initial_noise(model, [1, 2]), steps=2, guidance=4.0)
        pipeline.scheduler = solver(pipeline)
        theirs = pipeline(
            PROMPTS,
            latents=initial_noise(model, [1, 2]),
            num_inference_steps=2,
            guidance_scale=4.0,
            output_type="latent",
        )
        torch.testing.assert_close(ours, theirs.images, rtol=1e-3, atol=1e-3)


class TestConditioning:
    def test_every_part_of_sdxls_reaches_the_denoiser(self) -> None:
        model = DiffusionModel(tiny_sdxl_pipeline())
        axe, cat = model.encode_prompts(["an axe"]), model.encode_prompts(["a cat"])
        assert axe.pooled is not None and cat.pooled is not None and axe.pooled.shape == (1, POOLED_WIDTH)
        latents, t = torch.randn(1, *model.latent_shape, generator=seeded()), torch.tensor([500])
        both = model.predict(latents, t, axe)
        for other in (type(axe)(axe.states, cat.pooled), type(axe)(cat.states, axe.pooled)):
            assert not torch.equal(model.predict(latents, t, other), both)
        assert model._time_ids.tolist() == [[16, 16, 0, 0, 16, 16]]

    def test_rows_do_not_depend_on_their_neighbours(self, model: DiffusionModel) -> None:
        together = sample(model, PROMPTS, [1, 2], steps=2, guidance=4.0)
        alone = sample(model, PROMPTS[1:], [2], steps=2, guidance=4.0)
        assert np.abs(together[1].astype(int) - alone[0]).max() <= 1

    def test_a_teacher_is_apart(self, model: DiffusionModel) -> None:
        teacher = model.frozen_copy()
        conditioning, t = model.encode_prompts(PROMPTS), torch.tensor([500, 3])
        latents = torch.randn(2, *model.latent_shape, generator=seeded())
        before = teacher.predict(latents, t, conditioning)
        with torch.no_grad():
            for value in model.unet.parameters():
                value.add_(0.1)
        torch.testing.assert_close(teacher.predict(latents, t, conditioning), before, rtol=0, atol=0)
        assert not torch.equal(model.predict(latents, t, conditioning), before)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_a_directory_may_name_serves(name: str) -> None:
    pipeline = tiny_pipeline(prediction_type="v_prediction")
    expected = sample(DiffusionModel(pipeline), PROMPTS, [1, 2], steps=2, guidance=4.0)
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    model = DiffusionModel(pipeline)
    assert np.array_equal(sample(model, PROMPTS, [1, 2], steps=2, guidance=4.0), expected)
    assert model.prediction_type == "v_prediction"


class TestRefused:
    def test_a_transformer_backbone(self) -> None:
        nothing = {f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        pipeline = diffusers.StableDiffusion3Pipeline(tiny_sd3_transformer(), scheduler, tiny_vae(), **nothing)
        with pytest.raises(ModelFault, match="'StableDiffusion3Pipeline' has a transformer backbone"):
            DiffusionModel(pipeline)

    def test_another_pipeline_around_the_same_parts(self) -> None:
        parts = tiny_pipeline().components
        pipeline = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
        with pytest.raises(ModelFault, match="'StableDiffusionInpaintPipeline' is not supported"):
            DiffusionModel(pipeline)

    def test_another_prediction(self) -> None:
        with pytest.raises(ModelFault, match="prediction type 'sample' is not supported"):
            DiffusionModel(tiny_pipeline(prediction_type="sample"))
