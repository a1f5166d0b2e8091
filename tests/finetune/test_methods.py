"""Fine-tuning methods: neutral at the start, learning afterwards, gone when detached."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.finetune import base
from safeguard.finetune.base import FineTuner, Training, fine_tune, make_optimizer
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.finetune.lora import LoRA, LoRAConfig
from tests.tiny import tiny_pipeline

TUNERS = {"full": lambda: FullFineTuning(FullConfig()), "lora": lambda: LoRA(LoRAConfig(rank=2))}


def predict(model: DiffusionModel) -> torch.Tensor:
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict(latents, torch.tensor([10, 500]), model.encode_prompts(["a cat", "a dog"]))


@pytest.mark.parametrize("name", TUNERS)
def test_attaching_changes_nothing_and_detaching_leaves_no_trace(name: str) -> None:
    model = DiffusionModel(tiny_pipeline(0))
    keys, before = list(model.unet.state_dict()), predict(model)
    tuner: FineTuner = TUNERS[name]()
    for _ in range(2):
        assert tuner.attach(model, seed=1)
        assert torch.equal(predict(model), before)
        tuner.detach(model)
        assert list(model.unet.state_dict()) == keys
        assert not any(p.requires_grad for p in model.unet.parameters())


@pytest.mark.parametrize("name", TUNERS)
def test_training_learns_and_is_repeatable(name: str) -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data = generate(model, ["a cat", "a dog"], 4, seed=0, steps=2)
    start = Weights(dict(model.unet.named_parameters()))
    training = Training(steps=40, learning_rate=3e-3, batch_size=4)
    runs = []
    for _ in range(2):
        losses: dict[int, float] = {}

        def measure(step: int, losses: dict[int, float] = losses) -> None:
            batch, generator = data.rows(torch.arange(4), torch.Generator().manual_seed(1)), torch.Generator()
            with torch.no_grad():
                losses[step] = model.denoising_loss(batch.latents, batch.conditioning, generator.manual_seed(2)).item()

        tuner: FineTuner = TUNERS[name]()
        fine_tune(model, data, tuner, training, seed=7, after_step=measure)
        tuner.detach(model)
        start.restore()
        runs.append(losses)
    assert runs[0] == runs[1] and list(runs[0]) == list(range(41))
    assert runs[0][40] < runs[0][0]


def test_lora_trains_its_factors_only() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    data = generate(model, ["a cat"], 2, seed=0, steps=2)
    tuner = LoRA(LoRAConfig(rank=2))
    changed = predict(model)
    fine_tune(model, data, tuner, Training(steps=5, learning_rate=1e-2), seed=0)
    assert not torch.equal(predict(model), changed)
    tuner.detach(model)
    assert all(torch.equal(value, before[name]) for name, value in model.unet.state_dict().items())


@pytest.mark.parametrize("fused", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("name", TUNERS)
def test_text_is_encoded_anew_after_every_step(
    name: str, optimizer: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images drawn after a step are those of the text encoder after it."""
    monkeypatch.setattr(base, "make_optimizer", partial(make_optimizer, fused=fused))
    model = DiffusionModel(tiny_pipeline(0))
    model.exposed_parts |= {"text_encoder"}
    data = generate(model, ["a cat", "a dog"], 2, seed=0, steps=2)
    seen: list[torch.Tensor] = []

    @torch.no_grad()
    def look(step: int) -> None:
        seen.append(model.encode_prompts(["a cat"]).states)
        assert torch.allclose(seen[-1], model.encode_anew(["a cat"]).states, atol=1e-5)

    tuner: FineTuner = TUNERS[name]()
    training = Training.model_validate({"steps": 3, "learning_rate": 0.05, "optimizer": optimizer, "batch_size": 2})
    fine_tune(model, data, tuner, training, seed=0, after_step=look)
    assert not torch.allclose(seen[0], seen[-1], atol=1e-5), "the text encoder learnt"
