"""UnlearnDiffAtk: words in front of prompts, by steps on the simplex."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.attack.prompts.points import Points, noisy
from safeguard.attack.prompts.simplex import draw, project
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.attack.unlearndiffatk import Search, UnlearnDiffAtkConfig
from safeguard.config import FineTuningData
from safeguard.diffusion.soft_words import encode_with_prefix
from tests.attack.conftest import Made
from tests.attack.prompt_runs import attack, counted, drawn, read_ids, run
from tests.contexts import seeded
from tests.tiny import ARCHITECTURES, tiny_pipeline


def search_of(made: Made, **settings: Any) -> Search:
    target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
    config = UnlearnDiffAtkConfig.model_validate(UnlearnDiffAtkConfig.tiny().model_dump() | settings)
    data = target.data.get(FineTuningData(shares={"concept": 1}, images=3), 0)
    return Search(config, target.model, data, vocabulary(target.model, target.concepts), 5)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_what_it_finds_can_be_typed_and_is_never_worse_than_the_prompt(architecture: str, made: Made) -> None:
    target = drawn(made, ARCHITECTURES[architecture](0), tiny_pipeline(0))
    words = vocabulary(target.model, target.concepts)
    found = run(attack("unlearndiffatk", checkpoints=[3, 8]), target)
    assert [attempt.effort for attempt in found] == [0, 3, 8] and found[0].prompts is None
    values = [attempt.loss or 0.0 for attempt in found]
    assert values[0] >= values[1] >= values[2] and values[2] < values[0]
    for attempt in found[1:]:
        assert attempt.prompts is not None and attempt.prompts.states is None
        texts = attempt.prompts.texts["axes"]
        assert len(texts) == 3 and any(text not in ("an axe", "a big axe") for text in texts)
        for text in texts:
            caption = next(caption for caption in ("a big axe", "an axe") if text.endswith(caption))
            front = text.removesuffix(caption).split()
            ids = [int(words.ids[words.words.index(word)]) for word in front]
            assert len(front) in (0, 2)
            assert read_ids(target.model, text) == [*ids, *read_ids(target.model, caption)]


def test_it_counts_its_calls_and_changes_no_weight(made: Made) -> None:
    target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
    made_attack = attack("unlearndiffatk", checkpoints=[3, 5], block=2)
    made_attack.draw(target.data, 0)
    with counted(target.model) as rows:
        run(made_attack, target)
    cost = made_attack.cost()
    assert sum(rows) == cost.network_calls == 3 * (5 * 2 + (1 + 4) * 2), "compared after 2, 3, 4 and 5 steps"
    assert (cost.steps, cost.training_images) == (5, 3)
    needs = made_attack.needs()
    assert (needs.weights, needs.gradients, needs.images, needs.steps) == (True, True, 3, 5)
    assert made_attack.covers() == ["prompt-attack"]


def test_a_step_is_adam_on_the_clipped_straight_through_gradient(made: Made) -> None:
    search = search_of(made, order="random", batch_size=1, weight_decay=0.0)
    model, data, words = search._model, search._data, search._words
    before = search.z.clone()
    generator = seeded(5)
    chosen = draw(before, generator)
    t = torch.randint(0, 1000, (3, 1), generator=generator)
    points = noisy(model, data.mean, t, generator)
    one_hot = torch.nn.functional.one_hot(chosen, len(words)).float().requires_grad_(True)
    loss = points.losses(model, encode_with_prefix(model, data.captions, one_hot @ words.table)).sum()
    (gradient,) = torch.autograd.grad(loss, one_hot)
    gradient = gradient.clamp(-1, 1)
    search.step()
    expected = project(before - 0.5 * gradient / (gradient.abs() + 1e-8))  # Adam's first step
    assert torch.allclose(search.z, expected, atol=1e-3)
    assert torch.allclose(search.z.sum(-1), torch.ones(3, 2), atol=1e-5) and (search.z >= 0).all()


def test_the_timestep_rises_from_block_to_block(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_of(made, block=2, timesteps=4)
    seen: list[int] = []
    points: Any = search._points

    def recorded() -> Points:
        found: Points = points()
        seen.extend(found.t.unique().tolist())
        return found

    monkeypatch.setattr(search, "_points", recorded)
    for _ in range(9):
        search.step()
    assert seen == [125, 125, 375, 375, 625, 625, 875, 875, 125]


def test_the_prompt_of_an_image_is_the_likeliest_word_of_each_row(made: Made) -> None:
    search = search_of(made)
    words = search._words.words
    search.z.zero_()
    for row, place in enumerate(("axe", "x", "y")):
        search.z[row, 0, words.index(place)], search.z[row, 1, words.index("z")] = 0.6, 0.4
    fronts = [text.split()[:2] for text in search.texts()]
    assert fronts == [["axe", "z"], ["x", "z"], ["y", "z"]]
