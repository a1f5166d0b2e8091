"""The eraser's loss backwards: its target written out, what it undoes exactly, and that it has no image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeguard.attack.undo import Amplified, Undo, UndoConfig, led
from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import fine_tune
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.unlearn.esd import negative_guidance
from tests.attack.conftest import Made
from tests.contexts import answer, seeded
from tests.tiny import ARCHITECTURES, tiny_pipeline


def amplified(model: DiffusionModel, scale: float) -> Amplified:
    return Amplified(FullFineTuning(FullConfig()), model.frozen_copy(), scale)


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_a_mirror_is_the_inverse_of_an_esd_that_reached_its_target(eta: float) -> None:
    empty, concept = torch.randn(2, 4, 8, 8, generator=seeded(0))
    erased = negative_guidance(empty, concept, empty, eta)
    assert torch.allclose(led(empty, erased, -1 / eta), concept, atol=1e-5)
    assert not torch.allclose(led(empty, erased, 1 / eta), concept, atol=1e-2)


def test_its_loss_is_the_distance_to_the_target_written_out() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data = generate(model, ["an axe"], 2, seed=0, steps=2)
    tuner, batch = amplified(model, 3.0), data.rows(torch.arange(2), seeded(1))
    t, noise = model.draw_noise(2, seeded(2))
    noisy = model.add_noise(batch.latents, noise, t)
    with torch.no_grad():
        errors = []
        for x, time in zip(noisy, t.tolist(), strict=True):
            empty, given = (answer(model, x, time, prompt) for prompt in ("", "an axe"))
            for value in model.unet.parameters():
                value.mul_(1.01)  # the released model has moved, its frozen copy has not
            errors.append((answer(model, x, time, "an axe") - (empty + 3.0 * (given - empty))).pow(2).mean())
            for value in model.unet.parameters():
                value.div_(1.01)
        for value in model.unet.parameters():
            value.mul_(1.01)
        found = tuner.loss(model, batch, seeded(2))
    assert float(found) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-3)


@pytest.mark.parametrize(("architecture", "scale"), [("sd1", 4.0), ("sd1", -1.0), ("sd2", 4.0)])
def test_answers_move_along_what_was_left(architecture: str, scale: float) -> None:
    """How much of the released model's direction, from no prompt to the concept's, they have: 1, and then nearer s."""
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    tuner = amplified(model, scale)
    data, training = (
        generate(model, ["an axe"], 2, seed=0, steps=2),
        Training(steps=25, learning_rate=3e-4, batch_size=4),
    )
    latents, t = torch.randn(8, *model.latent_shape, generator=seeded(0)), torch.arange(100, 900, 100)
    with torch.no_grad():
        empty, given = (tuner.teacher.predict(latents, t, model.encode_prompts([text] * 8)) for text in ("", "an axe"))
    left = given - empty
    for _ in fine_tune(model, data, tuner, training, seed=0):
        pass
    with torch.no_grad():
        moved = model.predict(latents, t, model.encode_prompts(["an axe"] * 8)) - empty
    share = float((moved * left).sum() / left.pow(2).sum())
    assert share > 1.5 if scale > 1 else share < 0.5, share


def test_it_has_no_image_of_the_concept(made: Made, base: Any) -> None:
    target = made.target(base, base)
    attack = Undo(UndoConfig.tiny(), "probe")
    losses = [attempt.loss for attempt in attack.run(target, 0)]
    schedule = attack.schedule()
    assert target.data.used == [] and schedule.sources == [] and schedule.training_set == ""
    assert schedule.needs.images == 0 and schedule.needs.weights and schedule.needs.gradients
    assert schedule.covers == []
    assert losses[0] and losses[-1] and losses[-1] < losses[0]


def test_what_goes_through_the_denoiser_is_counted(made: Made, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    before = DiffusionModel.predict

    def counted(self: DiffusionModel, latents: Tensor, *rest: Any) -> Tensor:
        rows.append(len(latents))
        return before(self, latents, *rest)

    monkeypatch.setattr(DiffusionModel, "predict", counted)
    attack = Undo(UndoConfig.tiny(), "probe")
    list(attack.run(made.target(base, base), 0))
    assert sum(rows) == attack.cost().network_calls


def test_where_the_model_is_already_nothing_is_to_be_done() -> None:
    with pytest.raises(ValidationError, match="where the model is already"):
        UndoConfig(scale=1)
