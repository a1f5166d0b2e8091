"""SneakyPrompt: other words for names, found by answers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from safeguard.attack.prompts.goals import Goal, names_of
from safeguard.attack.sneakyprompt import Hunt, SneakyPromptConfig, in_halves
from safeguard.attack.target import Target
from safeguard.policy.schema import Concept
from tests.attack.conftest import Made
from tests.attack.prompt_runs import attack, counted, drawn, run
from tests.contexts import tiny_policy
from tests.tiny import tiny_pipeline

WORDS = [*"bcdefghijk"]


def hunt_of(prompt: str = "an axe on ice", seed: int = 0, **settings: Any) -> Hunt:
    config = SneakyPromptConfig.model_validate({"confirm": 2, **settings})
    return Hunt(config, Goal(tiny_policy().concepts[0], prompt), {"axe"}, WORDS, seed)


def asking(made: Made) -> Target:
    """A target that draws in two steps, and whose detector sees the concept in bright images."""
    target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
    steps = target.policy.certification.model_copy(update={"sampler_steps": 2})
    target.policy = target.policy.model_copy(update={"certification": steps})

    def score(images: np.ndarray, concept: Concept) -> np.ndarray:
        found: np.ndarray = images.astype(float).mean((1, 2, 3)) / 255
        return found

    target.score = score
    return target


def test_runs_of_names_are_where_words_go() -> None:
    names = {"bow", "and", "arrow", "axe"}
    assert in_halves("a bow and arrow in ice", names) == [["a"], ["in", "ice"]]
    assert in_halves("Axe, or an axe", names) == [[], ["or", "an"], []]
    assert in_halves("a thing", names) == [[], ["a", "thing"]]


def test_candidates_keep_the_rest_of_the_prompt() -> None:
    hunt = hunt_of(words=2)
    hunt._next()
    first, *middle, last, end = hunt.text.split()
    assert (first, last, end) == ("an", "on", "ice") and len(middle) == 2 and set(middle) <= set(WORDS)
    other = hunt_of("a thing")
    other._next()
    assert other.text.split()[1:] == ["a", "thing"], "without a name, words stand in front"


def test_the_declared_prompt_is_asked_first_and_a_lucky_answer_is_not_believed() -> None:
    hunt = hunt_of(words=6)
    asked = []
    for score in (0.9, 0.1, 0.3):
        asked.append(hunt.text)
        hunt.tell(score)
    assert asked == ["an axe on ice"] * 3 and hunt.mean == pytest.approx(0.2), "the first score does not count"
    lucky = hunt.text
    for score in (1.0, 0.0, 0.1):
        assert hunt.text == lucky != "an axe on ice"
        hunt.tell(score)
    assert (hunt.best, hunt.mean) == ("an axe on ice", pytest.approx(0.2)) and hunt.text != lucky
    poor = hunt.text
    hunt.tell(0.2)
    assert hunt.text != poor, "one query is enough to drop it"
    good = hunt.text
    for score in (0.3, 0.5, 0.5):
        hunt.tell(score)
    assert (hunt.best, hunt.mean) == (good, pytest.approx(0.5))


def test_a_mutation_changes_one_word_of_the_best() -> None:
    hunt = hunt_of(words=6, fresh=0.0)
    for score in (0.0, 0.0, 0.0, 0.5, 0.5, 0.5):
        hunt.tell(score)
    best = hunt.best.split()
    for _ in range(20):
        assert sum(a != b for a, b in zip(hunt.text.split(), best, strict=True)) <= 1
        hunt.tell(0.0)


def test_it_finds_planted_words_in_spite_of_noise() -> None:
    hunt = hunt_of(words=3, confirm=3)
    noise = np.random.default_rng(0)
    for _ in range(1500):
        words = hunt.text.split()
        hunt.tell(0.3 * len({"c", "f", "k"} & set(words)) + 0.1 * float(noise.random()))
    assert {"c", "f", "k"} <= set(hunt.best.split())


def test_it_asks_as_often_as_it_says_and_needs_an_interface_only(made: Made) -> None:
    target = asking(made)
    made_attack = attack("sneakyprompt", checkpoints=[2, 5], prompts=3)
    with counted(target.model) as rows:
        found = run(made_attack, target)
    cost, steps = made_attack.cost(), target.policy.certification.sampler_steps
    assert (cost.queries, cost.network_calls, cost.steps) == (15, 0, 0)
    assert sum(rows) == 2 * steps * cost.queries * len(target.concepts)
    assert not any(made_attack.needs().model_dump().values()) and made_attack.covers() == ["prompt-attack"]
    assert [attempt.effort for attempt in found] == [0, 2, 5] and found[-1].prompts is not None
    assert len(found[-1].prompts.texts["axes"]) == 3


def test_names_of_the_concept_are_never_tried_and_seeds_and_probes_differ(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = asking(made)
    asked: list[list[str]] = []
    tell = Hunt.tell

    def told(self: Hunt, score: float) -> None:
        asked[-1].append(self.text)
        tell(self, score)

    monkeypatch.setattr(Hunt, "tell", told)
    for probe, seed in (("one", 0), ("one", 1), ("two", 0), ("one", 0)):
        asked.append([])
        run(attack("sneakyprompt", probe, checkpoints=[12], prompts=2), target, seed)
    first, other_seed, other_probe, again = asked
    assert first == again and first != other_seed and first != other_probe
    tried = [text for text in first if "axe" not in text.split()]
    assert tried and names_of(target.concepts) == {"axe", "axes"}
    assert set(first) - set(tried) <= {"an axe", "a big axe"}


def test_its_noise_is_not_another_probes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    target = asking(made)
    seen: list[int] = []
    oracle = target.oracle

    def recorded(seed: int) -> Any:
        made_oracle = oracle(seed)
        seen.append(made_oracle.seed)
        return made_oracle

    monkeypatch.setattr(target, "oracle", recorded)
    for probe, seed in (("one", 0), ("two", 0), ("one", 1)):
        run(attack("sneakyprompt", probe, checkpoints=[1], prompts=1), target, seed)
    assert len(set(seen)) == 3
