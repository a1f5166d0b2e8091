"""Optimisers and losses that training scripts have: their formulas, restated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeguard.config import Training
from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.finetune.base import FineTuner, Run, fine_tune, make_optimizer
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.resilience.meta_unlearning import MetaUnlearning, MetaUnlearningConfig
from safeguard.resilience.resalign import ResAlign, ResAlignConfig
from safeguard.resilience.second_order.trajectory import Trajectory
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.contexts import seeded, tiny_context
from tests.tiny import ARCHITECTURES, tiny_pipeline


def full() -> FineTuner:
    return FullFineTuning(FullConfig())


def cats(model: DiffusionModel) -> LatentSet:
    return generate(model, ["a cat", "a dog"], 4, seed=0, steps=2)


def run(optimizer: str, **settings: object) -> Run:
    model = DiffusionModel(tiny_pipeline(0))
    training = Training.model_validate({"steps": 4, "batch_size": 2, "optimizer": optimizer} | settings)
    return Run(model, cats(model), full(), training, seed=0)


def test_a_step_by_signs_is_as_long_as_the_rate_says() -> None:
    tuning = run("sign", learning_rate=1e-3, schedule="linear")
    for step in range(4):
        before = [value.detach().clone() for value in tuning.parameters]
        tuning.step()
        moved = torch.cat([(a - b).flatten() for a, b in zip(tuning.parameters, before, strict=True)]).abs()
        moving = moved[moved > 0]
        assert len(moving) > 0.9 * len(moved)
        assert torch.allclose(moving, torch.tensor(tuning.training.rate(step)), rtol=0, atol=1e-6)


def test_signs_are_those_of_lion() -> None:
    x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    grads = [torch.tensor(g) for g in ([0.1, -3.0, 0.0, 1.0], [-5.0, 1.0, 0.0, -0.05], [0.2, 0.2, 0.0, -9.0])]
    optimizer = make_optimizer(Training(learning_rate=0.5, optimizer="sign"), [x])
    slow, mean = x.detach().clone(), torch.zeros(4)
    for grad in grads:
        x.grad = grad
        optimizer.step()
        for place in range(4):
            direction = 0.9 * mean[place] + 0.1 * grad[place]
            slow[place] -= 0.5 * (1 if direction > 0 else -1 if direction < 0 else 0)
            mean[place] = 0.99 * mean[place] + 0.01 * grad[place]
        assert torch.allclose(x.detach(), slow)
    assert x[2] == 0.5, "a weight without a gradient stays"


def test_adafactor_moves_a_tensor_by_its_size() -> None:
    """In the first step every entry of a vector moves by rate x rms: its gradient is divided by its own size."""
    x = torch.nn.Parameter(torch.tensor([3.0, -4.0, 12.0]))
    optimizer = make_optimizer(Training(learning_rate=0.01, optimizer="adafactor"), [x])
    x.grad, before = torch.tensor([0.5, -2.0, 1e-3]), x.detach().clone()
    optimizer.step()
    size = 0.01 * before.pow(2).mean().sqrt()
    assert torch.allclose(x.detach() - before, size * torch.tensor([-1.0, 1.0, -1.0]), rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adafactor", "sign"])
def test_they_learn(optimizer: str) -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data = cats(model)
    rate = 1e-3 if optimizer == "sign" else 1e-2
    training = Training.model_validate({"steps": 20, "batch_size": 4, "optimizer": optimizer, "learning_rate": rate})

    def known() -> float:
        batch = data.rows(torch.arange(4), seeded(1))
        with torch.no_grad():
            return model.denoising_loss(batch.latents, batch.conditioning, seeded(2)).item()

    losses = [known() for _ in fine_tune(model, data, full(), training, seed=0)]
    assert losses[-1] < losses[0]


def test_eight_bits_need_a_gpu() -> None:
    with pytest.raises(EnvironmentFault, match="CUDA"):
        run("adamw-8bit")


@pytest.mark.gpu
def test_eight_bits_learn_and_are_seen_to() -> None:
    pytest.importorskip("bitsandbytes")
    model = DiffusionModel(tiny_pipeline(0).to("cuda"))
    model.exposed_parts |= {"text_encoder"}
    training = Training(steps=3, learning_rate=1e-2, optimizer="adamw-8bit", batch_size=2)
    seen = []
    for _ in fine_tune(model, cats(model), full(), training, seed=0):
        with torch.no_grad():
            seen.append(model.encode_prompts(["a cat"]).states)
            assert torch.allclose(seen[-1], model.encode_anew(["a cat"]).states, atol=1e-4)
    assert not torch.allclose(seen[0], seen[-1], atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adafactor", "sign"])
def test_hypergradients_refuse_what_they_do_not_know(optimizer: str) -> None:
    with pytest.raises(UsageFault, match="cannot be differentiated"):
        Trajectory(run(optimizer))
    context = tiny_context()
    erasing = GradientAscent(GradientAscentConfig(), context)
    settings = {"hypergradient": "moreau", "distribution": {"optimizers": ["adam", optimizer]}}
    with pytest.raises(UsageFault, match=f"by {optimizer}"):
        ResAlign(ResAlignConfig.model_validate(settings), context, erasing)
    ResAlign(ResAlignConfig.model_validate(settings | {"hypergradient": "first_order"}), context, erasing)
    inner = {"training": {"optimizer": optimizer}}
    with pytest.raises(UsageFault, match=f"by {optimizer}"):
        MetaUnlearning(MetaUnlearningConfig.model_validate(inner), context, erasing)
    MetaUnlearning(MetaUnlearningConfig.model_validate(inner | {"variant": "released"}), context, erasing)


def slow_loss(model: DiffusionModel, data: LatentSet, seed: int, offset: float, gamma: float | None) -> Tensor:
    """Image by image, in words: shift the noise of every channel, predict, weigh by the timestep's share."""
    generator = seeded(seed)
    batch = data.batch(4, generator)
    t, noise = model.draw_noise(4, generator)
    shift = torch.randn(4, noise.shape[1], 1, 1, generator=generator) if offset else torch.zeros(4, 1, 1, 1)
    states, losses = model.encode_prompts(batch.captions), []
    for i in range(4):
        abar = float(model.pipeline.scheduler.alphas_cumprod[t[i]])
        eps, z = noise[i] + offset * shift[i], batch.latents[i]
        noisy = abar**0.5 * z + (1 - abar) ** 0.5 * eps
        predicts_v = model.prediction_type == "v_prediction"
        target = abar**0.5 * eps - (1 - abar) ** 0.5 * z if predicts_v else eps
        snr = abar / (1 - abar)
        weight = 1.0 if gamma is None else min(snr, gamma) / (snr + 1 if predicts_v else snr)
        error = model.predict(noisy[None], t[i : i + 1], states[i : i + 1])[0] - target
        losses.append(weight * error.pow(2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("offset", "gamma"), [(0.0, None), (0.3, None), (0.0, 0.5), (0.3, 5.0)])
@pytest.mark.parametrize("architecture", ["sd1", "sd2"])
def test_noise_offset_and_min_snr_weights(architecture: str, offset: float, gamma: float | None) -> None:
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    data = cats(model)
    tuning = Run(model, data, full(), Training(batch_size=4, noise_offset=offset, min_snr=gamma), seed=0)
    plain = Run(model, data, full(), Training(batch_size=4), seed=0)
    found = tuning.loss(seeded(3)).item()
    assert found == pytest.approx(slow_loss(model, data, 3, offset, gamma).item(), rel=1e-4)
    assert (found == plain.loss(seeded(3)).item()) == (not offset and gamma is None)
    batch = data.batch(4, seeded(3))
    after = model.denoising_loss(batch.latents, batch.conditioning, seeded(4))
    again = DiffusionModel(ARCHITECTURES[architecture](0)).denoising_loss(batch.latents, batch.conditioning, seeded(4))
    assert after.item() == pytest.approx(again.item(), rel=1e-6), "what is measured beside it is plain"
