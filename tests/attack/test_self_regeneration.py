"""Self-regeneration: which images are drawn from which, by whom, and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeguard.attack.self_regeneration import SelfRegeneration, SelfRegenerationConfig, regenerated
from safeguard.attack.target import Target
from safeguard.data.latents import LatentSet, encode
from safeguard.diffusion.inversion import invert, resume
from safeguard.diffusion.model import DiffusionModel
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline


def attack(**changes: Any) -> SelfRegeneration:
    settings = SelfRegenerationConfig.tiny().model_dump() | changes
    return SelfRegeneration(SelfRegenerationConfig.model_validate(settings), "probe")


@pytest.fixture
def target(made: Made) -> Target:
    """A model that another one has drawn images for."""
    found = made.target(tiny_pipeline(1), tiny_pipeline(0))
    found.data.base = DiffusionModel(tiny_pipeline(0))
    return found


def images(model: DiffusionModel, *captions: str) -> LatentSet:
    noise = torch.rand(len(captions), 16, 16, 3, generator=torch.Generator().manual_seed(0))
    return encode(model, (255 * noise).to(torch.uint8).numpy(), captions)


def test_pairs_have_one_caption_where_they_can() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    config = attack(images=4).config
    given = images(model, "an axe", "a big axe", "an axe", "a big axe")
    found = regenerated(model, given, config)
    assert found.captions == ["a big axe", "an axe"] * 3
    alone = regenerated(model, given.only(["an axe"]), config)
    assert torch.allclose(found.mean[1::2], alone.mean, atol=1e-3)


def test_between_two_captions_the_nearer_one_counts() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    found = regenerated(model, images(model, "an axe", "a big axe"), attack(between=4).config)
    assert found.captions == ["a big axe", "a big axe", "an axe", "an axe"]


def test_the_ends_are_what_the_model_makes_of_the_two_images() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    config, given = attack().config, images(model, "an axe", "an axe")
    prompt, settings = model.encode_prompts(given.captions), {"steps": 4, "guidance": config.guidance, "first": 1}
    ends = resume(model, prompt, invert(model, prompt, given.mean, **settings), **settings)
    expected = encode(model, model.decode(ends), given.captions)
    found = regenerated(model, given, config)
    assert len(found) == 3 and torch.allclose(found.mean[[0, 2]], expected.mean, atol=1e-3)
    assert not torch.allclose(found.mean[1], found.mean[0], atol=1e-3)


def test_the_base_draws_few_images_and_the_attacked_model_the_others(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[int, int] = {}
    before, base = DiffusionModel.predict, target.data.base
    found = attack()
    found.draw(target.data, 0)

    def counted(self: DiffusionModel, latents: Tensor, *rest: Any) -> Tensor:
        rows[id(self)] = rows.get(id(self), 0) + len(latents)
        return before(self, latents, *rest)

    monkeypatch.setattr(DiffusionModel, "predict", counted)
    assert [attempt.effort for attempt in found.run(target, 0)] == [0, 2, 4]
    assert rows == {id(target.model): found.cost().network_calls} and target.data.base is base


def test_what_it_needs_are_the_few_images() -> None:
    schedule = SelfRegeneration(SelfRegenerationConfig(), "probe").schedule()
    assert schedule.needs.images == schedule.cost.training_images == 6
    assert schedule.covers == ["self-regeneration"] and not schedule.needs.base_model
    assert SelfRegeneration(SelfRegenerationConfig(), "probe").own == 33


def test_settings_that_draw_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="do not make pairs"):
        attack(images=3)
    with pytest.raises(ValidationError, match="none is left from step 4"):
        attack(restart=4)
