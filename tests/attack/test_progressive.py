"""Fine-tuning in stages: one of them is a plain fine-tune, and several are what they are when written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeguard.attack.base import Attack
from safeguard.attack.finetune import FineTune
from safeguard.attack.progressive import Progressive, ProgressiveConfig
from safeguard.attack.stages import in_stages
from safeguard.attack.target import Target
from safeguard.config import Training
from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Run
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.finetune.lora import LoRA, LoRAConfig
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline


def data(source: str) -> dict[str, Any]:
    return {"shares": {source: 1}, "images": 3}


def progressive(*stages: tuple[str, int], **settings: Any) -> Progressive:
    steps = sum(each for _, each in stages)
    training = {"steps": steps, "learning_rate": 1e-3, "batch_size": 2, "warm_up": 1, "schedule": "cosine"}
    declared = {
        "stages": [{"data": data(source), "steps": each} for source, each in stages],
        "training": training,
        "checkpoints": list(range(1, steps + 1)),
    }
    return Progressive(ProgressiveConfig.model_validate(declared | settings), "probe")


def seen(attack: Attack[Any], target: Target) -> list[tuple[int, float | None, Tensor]]:
    """Effort, loss and one of the denoiser's weights at every attempt."""
    attack.draw(target.data, 0)
    found = target.model.unet.conv_in.weight
    return [(each.effort, each.loss, found.detach().clone()) for each in attack.run(target, 0)]


@pytest.fixture
def target(made: Made, base: Any) -> Target:
    found = made.target(base, base)
    found.data.base = found.model
    return found


def sets(model: DiffusionModel) -> list[LatentSet]:
    return [generate(model, [prompt], 3, seed=0, steps=2) for prompt in ("a cat", "an axe")]


def test_one_stage_is_the_plain_fine_tune_to_the_bit(target: Target) -> None:
    staged = progressive(("concept", 3))
    settings = staged.config.model_dump(include={"training", "checkpoints"})
    plain = FineTune(FineTune.Config.model_validate(settings | {"data": data("concept")}), "probe")
    for one, other in zip(seen(staged, target), seen(plain, target), strict=True):
        assert one[:2] == other[:2] and torch.equal(one[2], other[2])
    assert staged.schedule().model_dump(exclude={"covers"}) == plain.schedule().model_dump(exclude={"covers"})


def test_a_stage_is_as_long_as_it_says_and_goes_on_from_the_one_before(target: Target) -> None:
    """The first two steps see cats only, whatever comes after them; then it depends on what does."""
    runs = [seen(progressive(("retain", 2), (last, 2)), target) for last in ("concept", "related")]
    same = [torch.equal(a[2], b[2]) for a, b in zip(*runs, strict=True)]
    assert same == [True, True, True, False, False]
    assert [effort for effort, *_ in runs[0]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fresh", [False, True], ids=["carried", "fresh"])
def test_the_optimisers_moments_are_carried_on_or_begin_anew(fresh: bool) -> None:
    """Against two fine-tunes by hand, one after the other."""
    training = Training(steps=4, learning_rate=1e-3, batch_size=2)
    ends = []
    for by_hand in (False, True):
        model = DiffusionModel(tiny_pipeline(0))
        cats, axes = sets(model)
        run = Run(model, cats, FullFineTuning(FullConfig()), training, seed=5)
        if by_hand:
            run.step(), run.step()
            after = Run(model, axes, run.tuner, training, seed=0)
            after.generator = run.generator
            if not fresh:
                after.optimizer.load_state_dict(run.optimizer.state_dict())
            after.step(), after.step()
        else:
            assert list(in_stages(run, [(cats, 2), (axes, 2)], fresh=fresh)) == [0, 1, 2, 3, 4]
        ends.append([value.detach().clone() for value in model.unet.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_adapter_is_carried_on() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    cats, axes = sets(model)
    run = Run(model, cats, LoRA(LoRAConfig(rank=2)), Training(steps=2, learning_rate=1e-2), seed=0)
    first = run.parameters[1]  # B, which is zero at the start
    assert not first.any()
    course = in_stages(run, [(cats, 1), (axes, 1)])
    moved = [first.detach().clone() for _ in course]
    assert moved[1].any() and not torch.equal(moved[2], moved[1]) and run.parameters[1] is first


def test_what_it_needs_is_counted_over_all_stages() -> None:
    attack = progressive(("retain", 1), ("retain", 1), ("related", 1), ("concept", 2), checkpoints=[2, 4])
    schedule = attack.schedule()
    assert schedule.sources == ["retain", "related", "concept"] and schedule.needs.images == 3
    assert schedule.cost.training_images == 9, "the same images serve two stages"
    assert schedule.cost.steps == schedule.needs.steps == 4
    assert schedule.cost.network_calls == 4 * 2 + 3 * 3
    assert schedule.covers == []


def test_images_that_a_method_asks_for_besides_are_drawn_and_counted(target: Target) -> None:
    prior = {"shares": {"retain": 1}, "images": 2}
    plain, kept = (
        progressive(("related", 1), ("concept", 1), method=method)
        for method in ({"name": "full"}, {"name": "dreambooth", "prior": prior})
    )
    assert (plain.sources(), kept.sources()) == (["related", "concept"], ["related", "concept", "retain"])
    assert (plain.cost().training_images, kept.cost().training_images) == (6, 8)
    assert kept.cost().network_calls == 2 * plain.cost().network_calls and kept.needs() == plain.needs()
    kept.draw(target.data, 0)
    target.data.base = None
    asked = [attempt.prompts for attempt in kept.run(target, 0)]
    assert asked[0] is None and asked[-1] is not None
    assert asked[-1].texts["axes"] == [f"sks {prompt}" for prompt in target.concepts[0].prompt_list]


def test_steps_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValidationError, match="the stages have 5 steps together"):
        progressive(("retain", 2), ("concept", 3), training={"steps": 4}, checkpoints=[4])
    with pytest.raises(ValidationError, match="end within the steps"):
        progressive(("concept", 3), checkpoints=[4])
    assert [stage.steps for stage in ProgressiveConfig().stages] == [50] * 4
