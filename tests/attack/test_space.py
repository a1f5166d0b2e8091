"""A declared distribution over fine-tunes: what it draws, how often, and that what was drawn is drawn again."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from safeguard.attack.space import Again, AtRandom, Space, data_of
from safeguard.attack.trials import Trials, Tried, suggested
from safeguard.errors import EnvironmentFault
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import AttackMethod

SPACE = Space.model_validate(
    {
        "methods": [
            {"method": {"name": "full"}, "learning_rate": [1e-5, 1e-3]},
            {"method": {"name": "lora"}, "learning_rate": [1e-4, 1e-2], "settings": {"rank": [2, 8]}},
        ],
        "optimizers": {"adamw": 1.0, "sgd": 1000.0},
    }
)


def drawn(seed: int) -> Any:
    return SPACE.draw(AtRandom(seed), 100)


def test_every_option_is_drawn_equally_often_and_rates_are_log_uniform() -> None:
    found = [drawn(seed) for seed in range(1200)]
    for counts, options in (
        (Counter(each.method.name for each in found), 2),
        (Counter(each.training.optimizer for each in found), 2),
        (Counter(each.training.schedule for each in found), 2),
        (Counter(each.training.warm_up for each in found), 3),
        (Counter(each.training.batch_size for each in found), 3),
        (Counter(each.data.counts()["concept"] for each in found), 4),
        (Counter(each.data.prompts for each in found), 2),
        (Counter("retain" in each.data.shares for each in found), 2),
    ):
        spread = 5 * math.sqrt(1200 / options * (1 - 1 / options))
        assert len(counts) == options
        assert all(abs(count - 1200 / options) < spread for count in counts.values())
    for method, low in (("full", 1e-5), ("lora", 1e-4)):
        rates = [
            each.training.learning_rate / {"adamw": 1.0, "sgd": 1000.0}[each.training.optimizer]
            for each in found
            if each.method.name == method
        ]
        decades = sorted(math.log10(rate / low) for rate in rates)
        assert -1e-9 < decades[0] < decades[-1] < 2 + 1e-9
        assert max(abs(each - 2 * place / len(decades)) for place, each in enumerate(decades)) < 0.2


def test_a_rank_is_drawn_where_the_method_has_one() -> None:
    ranks = {(each.method.name, each.method.settings.get("rank")) for each in map(drawn, range(60))}
    assert ranks == {("full", None), ("lora", 2), ("lora", 8)}


def test_a_seed_and_its_choices_give_the_same_configuration() -> None:
    for seed in range(20):
        choose = AtRandom(seed)
        found = SPACE.draw(choose, 100)
        again = Again(choose.choices)
        assert drawn(seed) == found == SPACE.draw(again, 100)
        assert (again.choices, again.options) == (choose.choices, choose.options)


def test_sets_are_all_that_may_be_drawn() -> None:
    assert {each.data.model_dump_json() for each in map(drawn, range(400))} == {
        each.model_dump_json() for each in SPACE.sets()
    }


@pytest.mark.parametrize(("images", "share", "others"), [(5, 1.0, 0), (5, 0.5, 5), (20, 0.2, 80), (1, 0.05, 19)])
def test_contamination_adds_retained_images_and_leaves_those_of_the_concept(
    images: int, share: float, others: int
) -> None:
    counts = data_of(images, 1, share).counts()
    assert (counts["concept"], counts.get("retain", 0)) == (images, others)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({"learning_rate": [1e-3, 1e-5]}, "lowest learning rate comes first"),
        ({"learning_rate": [1e-5, 1e-3], "settings": {"rank": [4, 0]}}, "rank"),
        ({"learning_rate": [1e-5, 1e-3], "settings": {"ranks": [4]}}, "ranks"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused(method: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Space.model_validate({"methods": [{"method": {"name": "lora"}, **method}]})


def test_an_unknown_method_of_a_space_is_a_problem_with_its_place() -> None:
    space = {"methods": [{"method": {"name": "lroa"}, "learning_rate": [1e-5, 1e-3]}]}
    (problem,) = method_problems(AttackMethod.model_validate({"name": "search", "space": space}))
    assert "lora" in problem.line()


def tried(number: int, value: float, seed: int | None = None) -> Tried:
    choose = AtRandom(number if seed is None else seed)
    SPACE.draw(choose, 100)
    return Tried(number=number, choices=choose.choices, value=value, step=1)


def test_what_broke_the_model_is_never_the_worst() -> None:
    trials = Trials(None)
    for number, value in ((1, -0.1), (2, 0.0), (3, 0.4), (4, -1.0), (5, 0.4)):
        trials.add(tried(number, value))
    assert [each.number for each in trials.ranked()] == [3, 5, 2, 1, 4]


def test_suggestions_are_a_function_of_what_was_tried_and_lean_to_what_was_bad() -> None:
    before = []
    for number in range(1, 31):
        one = tried(number, 0.0)
        before.append(one.model_copy(update={"value": float(one.choices["batch"] == 2)}))
    found = [suggested(SPACE, 100, before, seed) for seed in range(16)]
    assert found[:2] == [suggested(SPACE, 100, before, seed) for seed in range(2)]
    assert sum(each["batch"] == 2 for each in found) > 10, "one in three by chance"
    assert found != [suggested(SPACE, 100, before[:15], seed) for seed in range(16)]


def test_without_optuna_a_search_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(EnvironmentFault, match="safeguard\\[search\\]"):
        suggested(SPACE, 100, [], 0)
