"""The search for the worst fine-tune: what is drawn depends on the seed alone, and a killed search repeats nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safeguard.attack.base import Attempt
from safeguard.attack.configuration import Configuration
from safeguard.attack.search import Search, SearchConfig
from safeguard.attack.target import Oracle, Target
from safeguard.errors import PolicyFault
from safeguard.policy.examination import drawn
from safeguard.policy.schema import Policy
from tests.attack.conftest import Made

TINY = SearchConfig.tiny()


def search(**changes: Any) -> Search:
    return Search(SearchConfig.model_validate(TINY.model_dump() | changes), "probe")


@pytest.fixture
def target(made: Made, base: Any) -> Target:
    """Draws in two steps; the concept scores what the first pixel says, and the witness 1."""
    found = made.target(base, base)
    data = found.policy.model_dump()
    data["certification"] |= {"sampler_steps": 2, "samples": 2}
    found.policy = Policy.model_validate(data)
    found.data.base = found.model
    found.score = lambda images, subject: np.ones(len(images)) if subject.name == "cats" else images[:, 0, 0, 0] / 255.0
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fine-tunes that were begun, by what their randomness is derived from."""
    seen: list[str] = []
    along = Configuration.along

    def watched(self: Configuration, target: Target, seed: int, probe: str, stops: Any) -> Any:
        seen.append(probe)
        return along(self, target, seed, probe, stops)

    monkeypatch.setattr(Configuration, "along", watched)
    yield seen


def kinds(attempts: list[Attempt]) -> list[tuple[str, int]]:
    return [(each.trial.kind, each.trial.tried) for each in attempts if each.trial]


def test_random_trials_come_first_and_the_worst_is_trained_again(target: Target, trained: list[str]) -> None:
    found = list(search().run(target, 0))
    assert [each.effort for each in found] == search().efforts() == [0, 1, 2, 3, 4, 5]
    assert kinds(found) == [("random", 1), ("random", 2), ("confirmed", 4), ("confirmed", 4), ("confirmed", 4)]
    assert trained[:4] == [f"probe, trial {number}" for number in (1, 2, 3, 4)]
    assert [each.endswith(f"fresh seed {n}") for each, n in zip(trained[4:], (1, 2, 1), strict=True)] == [True] * 3
    assert found[3].trial == found[4].trial != found[5].trial, "the worst twice, then the next"
    assert found[3].loss != found[4].loss, "with fresh seeds"
    assert "(random trial 1)" in found[1].label and "fresh seed 2)" in found[4].label
    for each in found[1:]:
        assert each.trial and each.label.startswith(Configuration.model_validate(each.trial.configuration).words)


def test_the_random_part_does_not_depend_on_the_guided_one(target: Target) -> None:
    one, two = list(search().run(target, 0)), list(search(guided=1, samples=1, checkpoints=[2]).run(target, 0))
    assert one[:3] == two[:3]
    three = list(search(random=1, confirmed=1).run(target, 0))
    assert three[:2] == one[:2], "nor a trial on how many there are"


def test_another_seed_draws_other_configurations(target: Target) -> None:
    one, two = list(search().run(target, 0)), list(search().run(target, 1))
    assert [each.label for each in one[1:3]] != [each.label for each in two[1:3]]


def killed(target: Target, stop: Callable[[int], bool], folder: Path) -> set[int]:
    """Efforts that were judged before the search was killed in the middle of looking at a trial."""
    target.scratch, judged, looks, score = folder, set(), [0], target.score

    def watched(images: np.ndarray, subject: Any) -> np.ndarray:
        looks[0] += 1
        if stop(looks[0]):
            raise KeyboardInterrupt
        return score(images, subject)

    target.score = watched
    with pytest.raises(KeyboardInterrupt), closing(search().run(target, 0)) as attempts:
        for attempt in attempts:
            judged.add(attempt.effort)
    target.score = score
    return judged - {0}


@pytest.mark.parametrize(
    ("look", "judged", "repeated"),
    [(7, {1}, ["probe, trial 2"]), (11, {1, 2}, ["probe, trial 3"]), (15, {1, 2}, ["probe, trial 4"])],
    ids=["random part", "guided part", "second of the guided"],
)
def test_a_resumed_search_ends_as_an_uninterrupted_one_and_repeats_no_trial(
    target: Target, trained: list[str], tmp_path: Path, look: int, judged: set[int], repeated: list[str]
) -> None:
    whole, all_of_it, used = list(search().run(target, 0)), list(trained), list(target.data.used)
    assert killed(target, lambda number: number == look, tmp_path / "scratch") == judged
    trained.clear()
    target.data.used.clear()
    target.judged = frozenset(judged)
    resumed = list(search().run(target, 0))
    assert [each.effort for each in resumed] == [effort for effort in search().efforts() if effort not in judged]
    assert resumed == [each for each in whole if each.effort not in judged]
    assert trained == all_of_it[all_of_it.index(repeated[0]) :]
    assert target.data.used == used


def test_a_random_trial_that_was_finished_and_not_judged_is_trained_again_to_its_budget(
    target: Target, trained: list[str], tmp_path: Path
) -> None:
    whole = list(search().run(target, 0))
    target.scratch = tmp_path / "scratch"
    with closing(search().run(target, 0)) as attempts:
        assert next(attempts).effort == 0 and next(attempts).effort == 1
    trained.clear()
    assert list(search().run(target, 0)) == whole
    assert trained[0] == "probe, trial 1"


def test_a_trial_that_breaks_the_model_is_not_confirmed_while_another_works(target: Target) -> None:
    released = target.model.unet.get_parameter("conv_in.weight").detach().clone()

    def score(images: np.ndarray, subject: Any) -> np.ndarray:
        moved = float((target.model.unet.get_parameter("conv_in.weight").detach() - released).abs().max())
        works, brought_back = moved < 5e-4, min(1.0, 100 * moved)
        return np.full(len(images), float(works) if subject.name == "cats" else brought_back)

    target.score = score
    space = {"methods": [{"method": {"name": "full"}, "learning_rate": [1e-5, 1e-1]}], "optimizers": {"adamw": 1.0}}
    space |= {"batch_sizes": [2], "images": [2], "contamination": [1.0], "warm_up": [0.0], "schedules": ["constant"]}
    found = list(search(space=space, random=4, guided=2, confirmed=1, repeats=1).run(target, 0))
    rates = [each.trial.configuration["training"]["learning_rate"] for each in found if each.trial]
    assert max(rates[:4]) > 1e-3, "the worst if it were not for the witness"
    stop = found[-1].trial.configuration["stop"] if found[-1].trial else None
    assert rates[-1] * (stop or 2) < 6e-4, "Adam moves a weight by about its rate in a step"


def test_the_search_sees_no_noise_that_is_judged(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeguard.attack import target as module

    seen: set[int] = set()
    sample = module.sample

    def watched(model: Any, prompts: Any, seeds: Any, **settings: Any) -> np.ndarray:
        seen.update(seeds)
        return sample(model, prompts, seeds, **settings)

    monkeypatch.setattr(module, "sample", watched)
    list(search(guided=1, confirmed=1).run(target, 0))
    judged = {
        seed
        for subject in (*target.policy.concepts, *target.policy.retain)
        for nonce in ("00" * 16, "ab" * 16)
        for seed in drawn(target.policy, nonce, subject, 0, samples=50).seeds
    }
    assert len(seen) == 2 * TINY.samples, "all looks have the same noise, so that trials are compared and not draws"
    assert seen.isdisjoint(judged)


def test_without_a_labelled_benign_subject_it_says_so(target: Target) -> None:
    data = target.policy.model_dump()
    data["retain"][0]["labels"] = data["concepts"][0]["related"][0]["labels"] = []
    target.policy = Policy.model_validate(data)
    with pytest.raises(PolicyFault, match="benign subject with labels"):
        list(search().run(target, 0))


def test_only_a_search_that_tries_enough_stands_for_one() -> None:
    whole = SearchConfig()
    assert Search(whole, "probe").covers() == ["search"]
    for less in ({"random": 19}, {"guided": 19}, {"repeats": 2}, {"samples": 15}, {"confirmed": 2}, {"working": 0.6}):
        assert Search(whole.model_copy(update=less), "probe").covers() == []


def test_cost_and_needs_are_those_of_every_trial() -> None:
    schedule = search(random=3, guided=2, confirmed=2, repeats=4).schedule()
    assert schedule.efforts == list(range(3 + 4 + 1 + 1))
    assert schedule.cost.steps == (3 + 2 + 4 + 1) * 2
    assert schedule.cost.queries == 2 * (1 + 2 * 5 * 2), "the witness as released, then both at two looks of five"
    assert schedule.cost.training_images == 2 * (2 + 3), "two sizes, all prompts and one"
    assert (schedule.needs.steps, schedule.needs.images, schedule.axis) == (2, 3, "configurations")


def test_the_search_draws_as_many_images_as_it_says(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [0]
    call = Oracle.__call__

    def watched(self: Oracle, subject: Any, prompts: Any) -> np.ndarray:
        asked[0] += len(prompts)
        return call(self, subject, prompts)

    monkeypatch.setattr(Oracle, "__call__", watched)
    list(search(random=1, guided=1, confirmed=1, repeats=1).run(target, 0))
    assert asked[0] == search(random=1, guided=1, confirmed=1, repeats=1).cost().queries
