"""Given configurations, one after the other: each from the released weights, as a fine-tune of its own would be."""

from __future__ import annotations

from typing import Any

import torch

from safeguard.attack.configuration import Configuration
from safeguard.attack.finetune import FineTune, FineTuneConfig
from safeguard.attack.grid import Grid, GridConfig
from safeguard.diffusion.model import DiffusionModel
from safeguard.registry import finetuners
from tests.attack.conftest import Made

TINY = GridConfig.tiny()
ONE_PROMPT = {
    "data": {"shares": {"concept": 2, "retain": 2}, "images": 4, "prompts": 1},
    "training": {"steps": 3, "learning_rate": 2e-4, "batch_size": 4, "optimizer": "sgd", "warm_up": 1},
}


def weights(model: DiffusionModel) -> list[torch.Tensor]:
    return [value.detach().clone() for value in model.unet.parameters()]


def equal(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_each_is_the_fine_tune_that_it_says_from_the_released_weights(made: Made, base: Any) -> None:
    target = made.target(base, base)
    target.data.base = target.model
    released = weights(target.model)
    grid = Grid(GridConfig(configurations=[TINY.configurations[0]] * 2), "probe")
    grid.draw(target.data, 5)
    seen = [(attempt, weights(target.model)) for attempt in grid.run(target, 5)]
    assert [attempt.effort for attempt, _ in seen] == grid.efforts() == [0, 1, 2]
    one = TINY.configurations[0]
    for number in (1, 2):
        settings = FineTuneConfig(data=one.data, method=one.method, training=one.training, checkpoints=[2])
        alone = FineTune(settings, f"probe, configuration {number}").run(target, 5)
        *_, expected = ((attempt.loss, weights(target.model)) for attempt in alone)
        assert seen[number][0].loss == expected[0] and equal(seen[number][1], expected[1])
    assert equal(weights(target.model), released) and not equal(seen[1][1], seen[2][1])


def test_what_was_judged_before_is_left_out(made: Made, base: Any) -> None:
    target = made.target(base, base)
    target.data.base = target.model
    grid = Grid(TINY, "probe")
    whole, used = list(grid.run(target, 0)), list(target.data.used)
    target.data.used.clear()
    target.judged = frozenset({1})
    rest = list(grid.run(target, 0))
    assert rest == [whole[0], whole[2]] and target.data.used == used


def test_a_configuration_is_said_in_words_and_read_again_from_what_is_kept(made: Made, base: Any) -> None:
    one = Configuration.model_validate(ONE_PROMPT)
    assert one.words == (
        "full, 3 steps, 0.0002, sgd, constant, warm-up 1, batch 4, 2 images of concept, 2 images of retain, 1 prompt"
    )
    target = made.target(base, base)
    target.data.base = target.model
    *_, last = Grid(GridConfig(configurations=[one]), "probe").run(target, 0)
    assert last.label == one.words and last.trial is not None and last.trial.kind == "given"
    assert Configuration.model_validate(last.trial.configuration) == one


def test_what_it_needs_and_costs_is_that_of_all() -> None:
    one = Configuration.model_validate(ONE_PROMPT)
    grid = Grid(GridConfig(configurations=[*TINY.configurations, one]), "probe")
    schedule = grid.schedule()
    assert schedule.axis == "configurations" and schedule.covers == []
    assert schedule.sources == ["concept", "retain"]
    assert (schedule.needs.steps, schedule.needs.images) == (3, 3)
    assert schedule.cost.steps == 2 + 2 + 3
    assert schedule.cost.training_images == 3 + 2 + 2, "two configurations share a set"
    assert grid.adaptation() == (one.method, one.training), "all weights, in the largest batch"


def test_a_method_that_needs_images_beside_has_them_and_its_prompts_are_asked(made: Made, base: Any) -> None:
    settings = finetuners.get("dreambooth").Config.tiny().model_dump(mode="json", exclude_unset=True)
    one = Configuration.model_validate(ONE_PROMPT | {"method": {"name": "dreambooth", **settings}})
    grid = Grid(GridConfig(configurations=[one, TINY.configurations[0]]), "probe")
    target = made.target(base, base)
    target.data.base = target.model
    grid.draw(target.data, 0)
    target.data.base = None
    first = list(grid.run(target, 0))[1]
    (alone,) = one.along(target, 0, "probe, configuration 1", [3])
    assert first.prompts == alone.prompts and len(one.sets) == 2
    assert len(target.data.used) == 3 and grid.cost().training_images > TINY.configurations[0].data.size + 4


def test_memory_is_counted_for_what_trains_most(made: Made, base: Any) -> None:
    settings = finetuners.get("dreambooth").Config.tiny().model_dump(mode="json", exclude_unset=True)
    wrapped = settings | {"name": "dreambooth", "method": {"name": "lora"}}
    adapter = Configuration.model_validate(ONE_PROMPT | {"method": wrapped})
    assert finetuners.make(adapter.method).extent == "adapter", "it wraps one"
    grid = Grid(GridConfig(configurations=[adapter, TINY.configurations[0]]), "probe")
    assert grid.adaptation()[0] == TINY.configurations[0].method
