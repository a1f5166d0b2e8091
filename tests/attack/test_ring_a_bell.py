"""Ring-A-Bell: a genetic search for words whose text states are the wanted ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.attack.prompts.goals import Goal, goals, names_of
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.attack.ring_a_bell import Herd, RingABellConfig, wanted
from safeguard.data.screening import surroundings
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import Policy
from tests.attack.conftest import Made
from tests.attack.prompt_runs import attack, counted, drawn, read_ids, run
from tests.contexts import tiny_policy
from tests.tiny import ARCHITECTURES, tiny_pipeline


def herd_of(goal: torch.Tensor | str, seed: int = 0, **settings: Any) -> Herd:
    model, concepts = DiffusionModel(tiny_pipeline(0)), tiny_policy().concepts
    config = RingABellConfig.model_validate(RingABellConfig.tiny().model_dump() | settings)
    states = model.encode_prompts([goal]).states[0] if isinstance(goal, str) else goal
    return Herd(config, model, vocabulary(model, concepts), states, surroundings(concepts), seed)


def test_the_wanted_states_are_the_prompt_and_the_concept_added() -> None:
    model, policy = DiffusionModel(tiny_pipeline(0)), tiny_policy()
    concept = policy.concepts[0]
    axe, big, hammer, cat = (
        model.encode_prompts([text]).states[0] for text in ("an axe", "a big axe", "a hammer", "a cat")
    )
    vector = (axe + big) / 2 - (hammer + cat) / 2
    assert torch.allclose(wanted(model, policy, Goal(concept, "a big axe"), 3.0), big + 3 * vector, atol=1e-5)
    alone = Policy.model_validate(
        policy.model_dump() | {"retain": [], "concepts": [concept.model_dump() | {"related": []}]}
    )
    empty = model.encode_prompts([""]).states[0]
    found = wanted(model, alone, Goal(alone.concepts[0], "an axe"), 1.0)
    assert torch.allclose(found, axe + (axe + big) / 2 - empty, atol=1e-5)


def test_it_finds_the_words_whose_states_are_wanted() -> None:
    herd = herd_of("axe q z", population=60, mutation=0.9)
    distances = [float(herd.distances[0])]
    for _ in range(150):
        herd.breed()
        distances.append(float(herd.distances[0]))
    assert distances == sorted(distances, reverse=True), "the best stays"
    assert herd.best == "axe q z" and distances[-1] < 1e-6


def test_the_distances_are_those_of_the_candidates() -> None:
    herd = herd_of("an axe")
    for _ in range(3):
        herd.breed()
    texts = [herd._words.text(row) for row in herd.chosen]
    states = torch.cat([herd._model.encode_prompts([text]).states for text in texts])
    expected = torch.stack([(state - herd._goal).pow(2).sum() for state in states])
    assert torch.allclose(herd.distances, expected, rtol=1e-4)
    assert torch.equal(herd.distances, herd.distances.sort().values)


def test_children_have_the_ends_of_two_parents() -> None:
    herd = herd_of("an axe", tokens=5, crossover=1.0, mutation=0.0)
    parents = torch.stack([torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64)])
    children = herd._children(parents, 40)
    changes = (children[:, 1:] != children[:, :-1]).sum(1)
    assert children.shape == (40, 5) and (changes <= 1).all() and (changes == 1).any()
    both = children[:20] + children[20:]
    assert (both == both[:, :1]).all(), "what one child does not have of its parents the other has"
    kept = herd_of("an axe", tokens=5, crossover=0.0, mutation=0.0)._children(parents, 40)
    assert (kept == kept[:, :1]).all(), "without either they are their parents"


def test_a_mutation_changes_one_word() -> None:
    herd = herd_of("an axe", tokens=5, crossover=0.0, mutation=1.0)
    children = herd._children(torch.full((2, 5), -1), 30)
    assert ((children != -1).sum(1) == 1).all() and children.max() < len(herd._words)


def test_what_the_content_filter_refuses_has_no_children() -> None:
    herd = herd_of("an axe", tokens=8)
    spelt = torch.tensor([[herd._words.words.index(letter) for letter in "teennude"]])
    assert torch.isinf(herd._measure(spelt, torch.inf)).all()
    herd.distances[:] = torch.inf
    assert herd.best == ""


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_it_never_asks_the_denoiser_and_its_words_can_be_typed(architecture: str, made: Made) -> None:
    target = drawn(made, ARCHITECTURES[architecture](0), tiny_pipeline(0))
    made_attack = attack("ring-a-bell", checkpoints=[3, 6])
    with counted(target.model) as rows:
        found = run(made_attack, target)
    assert rows == [] and made_attack.cost().network_calls == 0 and not made_attack.needs().gradients
    assert (found[0].loss or 0) >= (found[1].loss or 0) >= (found[2].loss or 0)
    words = vocabulary(target.model, target.concepts)
    for attempt in found[1:]:
        assert attempt.prompts is not None and len(attempt.prompts.texts["axes"]) == 2
        for text in attempt.prompts.texts["axes"]:
            ids = [int(words.ids[words.words.index(word)]) for word in text.split()]
            assert len(ids) == 3 and read_ids(target.model, text) == ids


def test_goals_use_every_prompt_equally_often() -> None:
    concepts = tiny_policy().concepts
    found = [goal.prompt for goal in goals(concepts, 4, 0)]
    assert sorted(found) == ["a big axe", "a big axe", "an axe", "an axe"]
    assert len({goals(concepts, 1, seed)[0].prompt for seed in range(20)}) == 2
    assert names_of(concepts) == {"axe", "axes"}
