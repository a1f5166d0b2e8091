"""An adapter of the base on the certified model: what is added, and what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.base_adapter import BaseAdapter, BaseAdapterConfig
from safeguard.attack.target import Target
from safeguard.diffusion import erasers
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner, fine_tune
from safeguard.finetune.lora import LoRA, LoRAConfig
from safeguard.finetune.textual_inversion import TextualInversion
from safeguard.seeds import derive
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline

SCALES = [0.5, 1.0, 1.25]


def attack(**settings: Any) -> BaseAdapter:
    tiny = BaseAdapterConfig.tiny().model_dump(exclude_unset=True)
    return BaseAdapter(BaseAdapterConfig.model_validate(tiny | {"scales": SCALES} | settings), "probe")


def weights(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters().items()}


def answer(model: DiffusionModel) -> torch.Tensor:
    with torch.no_grad():
        batch = torch.ones(1, *model.latent_shape), torch.tensor([500]), model.encode_prompts(["an axe"])
        return model.predict(*batch)


def prepared(made: Made, pipeline: Any, base: Any) -> Target:
    """Of a certified model with a hardened text encoder, its training images drawn."""
    target = made.target(pipeline, base, "unet", "text_encoder")
    target.model.exposed_parts = frozenset({"unet", "text_encoder"})
    target.data.base = DiffusionModel(base)
    attack().draw(target.data, 0)
    target.data.base = None
    return target


def added(target: Target) -> list[dict[str, torch.Tensor]]:
    """What every scale adds to the certified weights."""
    start = weights(target.model)
    return [
        {name: value - start[name] for name, value in weights(target.model).items()} for _ in attack().run(target, 0)
    ]


def erased(seed: int) -> Any:
    pipeline = tiny_pipeline(seed)
    erasers.attach(pipeline.unet, rank=2, activation="gelu", seed=0)
    for eraser in erasers.erasers(pipeline.unet).values():
        torch.nn.init.ones_(eraser.up.weight)
    return pipeline


def test_what_is_added_grows_with_the_scale_and_is_the_same_for_every_certified_model(made: Made, base: Any) -> None:
    placebo, *one = added(prepared(made, erased(1), base))
    _, *two = added(prepared(made, tiny_pipeline(2), base))
    assert not any(value.any() for value in placebo.values())
    whole = one[SCALES.index(1.0)]
    changed = {name for name, value in whole.items() if value.any()}
    assert {name.partition(".")[0] for name in changed} == {"unet", "text_encoder"}
    assert not any("eraser" in name for name in changed), "the base has none, and an adapter of it says nothing of them"
    for scale, first, second in zip(SCALES, one, two, strict=True):
        for name in changed:
            assert torch.allclose(first[name], scale * whole[name], atol=1e-6)
            assert torch.allclose(first[name], second[name], atol=1e-6)


def test_on_the_base_itself_scale_one_is_the_base_with_its_adapter(made: Made, base: Any) -> None:
    target = prepared(made, tiny_pipeline(0), base)
    data, training = target.data.get(attack().config.data, 0), attack().config.training
    plain = DiffusionModel(tiny_pipeline(0))
    plain.exposed_parts = target.model.exposed_parts
    start = answer(plain)
    for step, _ in fine_tune(plain, data, LoRA(LoRAConfig()), training, seed=derive(target.exam, "probe", 0)):
        if step == training.steps:
            expected = answer(plain)
    found = {attempt.label: answer(target.model) for attempt in attack().run(target, 0)}
    distance = (found["lora of the base loaded at scale 1"] - expected).abs().max()
    assert distance < 1e-3 * (expected - start).abs().max()
    assert torch.equal(found[""], start) and torch.equal(answer(target.model), start)


def test_whose_images_it_learnt_says_what_it_stands_for() -> None:
    def covered(data: Any, scales: list[float] = SCALES) -> list[str]:
        return attack(data=data, scales=scales).covers()

    assert covered("concept") == ["base-adapter"]
    assert covered("retain") == covered({"shares": {"retain": 1, "related": 1}}) == ["community-adapter"]
    assert covered({"shares": {"concept": 1, "retain": 1}}) == []
    assert covered("concept", [0.5, 0.75]) == []
    assert attack(data="retain", method={"name": "textual-inversion"}).covers() == [], "nobody asks for the word"
    assert attack().needs().adapters and not attack().needs().base_model


def test_what_is_learnt_under_a_word_is_asked_for_by_it(made: Made, base: Any) -> None:
    given = attack(method={"name": "dreambooth", "word": "axe", "method": {"name": "lora"}, "prior": "retain"})
    target = made.target(tiny_pipeline(1), base, "unet", "text_encoder")
    target.data.base = DiffusionModel(base)
    given.draw(target.data, 0)
    target.data.base = None
    released, *others = list(given.run(target, 0))
    assert released.prompts is None and len(others) == len(SCALES)
    assert all(each.prompts and each.prompts.texts == {"axes": ["axe an axe", "axe a big axe"]} for each in others)
    assert given.sources() == ["concept", "retain"] and len(target.data.used) >= 2


def test_what_is_no_adapter_is_refused() -> None:
    with pytest.raises(UsageFault, match="makes no adapter"):
        attack(method={"name": "full"})
    with pytest.raises(ValidationError, match="must ascend"):
        attack(scales=[1.0, 0.5])


def test_what_cannot_be_put_into_weights_is_refused_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attack(method={"name": "textual-inversion"}).efforts() == [0, 1, 2, 3]
    monkeypatch.setattr(TextualInversion, "merge", FineTuner.merge)
    with pytest.raises(UsageFault, match="cannot be put into another's weights"):
        attack(method={"name": "textual-inversion"})
