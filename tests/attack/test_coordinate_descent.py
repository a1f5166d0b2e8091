"""Coordinate descent: one word at a time, by exact losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.attack.coordinate_descent import CoordinateDescentConfig, Descent
from safeguard.attack.prompts.base import Kept
from safeguard.attack.prompts.points import fixed_points
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.config import FineTuningData
from safeguard.diffusion.soft_words import encode_with_prefix
from tests.attack.conftest import Made
from tests.attack.prompt_runs import attack, counted, drawn, losses, run
from tests.contexts import seeded
from tests.tiny import ARCHITECTURES, tiny_pipeline


def descent_of(made: Made, **settings: Any) -> Descent:
    target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
    config = CoordinateDescentConfig.model_validate(CoordinateDescentConfig.tiny().model_dump() | settings)
    data = target.data.get(FineTuningData(shares={"concept": 1}, images=2), 0)
    points = fixed_points(target.model, data.mean, 2, seeded(1))
    return Descent(config, Kept(target, data, points), points, vocabulary(target.model, target.concepts), seeded(2))


def texts(descent: Descent, chosen: torch.Tensor) -> list[str]:
    fronts = [descent._words.text(row) for row in chosen]
    return [f"{front} {caption}" for front, caption in zip(fronts, descent._kept.captions, strict=True)]


def test_with_every_word_as_a_candidate_a_step_finds_the_best(made: Made) -> None:
    descent = descent_of(made, candidates=1000)
    descent._order = [1]
    before, model = descent.chosen.clone(), descent._kept.model
    with torch.no_grad():
        measured = []
        for word in range(len(descent._words)):
            tried = before.clone()
            tried[:, 1] = word
            measured.append(losses(model, descent._points, texts(descent, tried)))
    expected = torch.stack(measured).min(0)
    descent.step()
    assert torch.equal(descent.chosen[:, 0], before[:, 0]), "only one place moves"
    assert torch.equal(descent.chosen[:, 1], expected.indices)
    assert torch.allclose(descent.losses, expected.values, atol=1e-6)


def test_the_candidates_are_those_that_the_gradient_promises_most(made: Made) -> None:
    descent = descent_of(made, candidates=5)
    words, captions = descent._words, descent._kept.captions
    one_hot = torch.nn.functional.one_hot(descent.chosen, len(words)).float().requires_grad_(True)
    states = encode_with_prefix(descent._kept.model, captions, one_hot @ words.table)
    (gradient,) = torch.autograd.grad(descent._points.losses(descent._kept.model, states).sum(), one_hot)
    expected = gradient[:, 0].argsort(dim=1)[:, :5]
    assert torch.equal(descent.candidates(0), expected)


def test_every_place_is_visited_once_in_a_sweep(made: Made) -> None:
    descent = descent_of(made, tokens=3, candidates=1)
    visited = []
    for _ in range(6):
        before = list(descent._order)
        descent.step()
        visited.append(({0, 1, 2} if not before else set(before)) - set(descent._order))
    places = [place for (place,) in visited]
    assert sorted(places[:3]) == sorted(places[3:]) == [0, 1, 2]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_it_only_improves_and_counts_its_calls(architecture: str, made: Made) -> None:
    target = drawn(made, ARCHITECTURES[architecture](0), tiny_pipeline(0))
    made_attack = attack("coordinate-descent", checkpoints=[1, 4])
    made_attack.draw(target.data, 0)
    with counted(target.model) as rows:
        found = run(made_attack, target)
    assert sum(rows) == made_attack.cost().network_calls == 3 * 2 * (2 + 4 * (1 + 3))
    values = [attempt.loss or 0.0 for attempt in found]
    assert values[0] >= values[1] >= values[2] and values[2] < values[0]
    assert found[-1].prompts is not None and len(found[-1].prompts.texts["axes"]) == 3
    assert made_attack.cost().steps == 4 and made_attack.covers() == ["prompt-attack"]


def test_what_the_content_filter_refuses_is_never_taken(made: Made) -> None:
    descent = descent_of(made, tokens=8)
    before, chosen = list(descent._kept.texts), descent.chosen.clone()
    descent.losses = descent._kept.losses = torch.full((2,), torch.inf)
    spelt = [descent._words.words.index(letter) for letter in "teennude"]
    descent._try(torch.tensor([spelt, spelt]))
    assert descent._kept.texts == before and torch.equal(descent.chosen, chosen)
