"""Data to fine-tune on: what a description means, and that hardening and attacks mean the same by it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.config import FineTuningData
from safeguard.data import fine_tuning
from safeguard.data.fine_tuning import DataSets, SimulatedDataSets, missing, subjects_of
from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import PolicyFault
from safeguard.policy.schema import Policy
from safeguard.seeds import derive, spread
from tests.contexts import tiny_policy
from tests.tiny import tiny_pipeline

CONCEPT = FineTuningData(shares={"concept": 1.0})


@pytest.fixture(scope="module")
def base() -> DiffusionModel:
    return DiffusionModel(tiny_pipeline(0))


def described(given: Any) -> FineTuningData:
    return FineTuningData.model_validate(given)


def test_a_plain_word_is_that_source_alone() -> None:
    assert described("concept") == CONCEPT == described({"shares": {"concept": 1}})
    assert CONCEPT.images is CONCEPT.prompts is None


@pytest.mark.parametrize(
    "given",
    [
        "nudity",
        {"shares": {}},
        {"shares": {"concept": 0}},
        {"shares": {"concept": 1}, "images": 0},
        {"shares": {"concept": 1, "retain": 99}, "images": 10},
        {"shares": {"concept": 1, "retain": 999}},
    ],
)
def test_nonsense_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        described(given)


@pytest.mark.parametrize(
    ("shares", "images", "counts"),
    [
        ({"concept": 1}, 7, [7]),
        ({"concept": 20, "retain": 80}, 32, [6, 26]),
        ({"concept": 0.2, "retain": 0.8}, 10, [2, 8]),
        ({"concept": 1, "related": 1, "retain": 1}, 10, [4, 3, 3]),
        ({"concept": 5, "related": 3, "retain": 2}, 7, [4, 2, 1]),
    ],
)
def test_counts_are_the_shares_and_sum_to_the_images(shares: dict[str, float], images: int, counts: list[int]) -> None:
    assert list(described({"shares": shares, "images": images}).counts().values()) == counts


def attacks_sets(base: DiffusionModel, folder: Path, policy: Policy | None = None, exam: int = 5) -> DataSets:
    sets = DataSets(policy or tiny_policy(), "base", "code", folder, torch.device("cpu"), exam)
    sets.base = base
    return sets


def exam_of(seed: int, exam: int = 5) -> int:
    """What chooses prompts."""
    return derive(exam, "training prompts", seed)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were drawn each time; one step of the sampler each, which is enough to tell them apart."""
    found: list[int] = []

    def quickly(model: Any, prompts: Any, count: int, *, seed: int) -> LatentSet:
        found.append(count)
        return generate(model, prompts, count, seed=seed, steps=1)

    monkeypatch.setattr(fine_tuning, "generate", quickly)
    return found


def test_a_contaminated_set_has_the_declared_counts(base: DiffusionModel, drawn: list[int], tmp_path: Path) -> None:
    sets = attacks_sets(base, tmp_path)
    data = sets.get(described({"shares": {"concept": 20, "retain": 80}, "images": 10}), 0)
    assert Counter(caption == "a cat" for caption in data.captions) == {True: 8, False: 2} and drawn == [2, 8]
    alone = sets.get(described({"shares": {"concept": 1}, "images": 2}), 0)
    assert torch.equal(data.mean[:2], alone.mean), "each share is drawn by itself"
    assert sets.used == [data.digest, alone.digest]


def test_images_are_those_of_prompts_and_noise_that_the_seed_gives(base: DiffusionModel, tmp_path: Path) -> None:
    policy = tiny_policy()
    every, sets = policy.concepts[0].prompt_list, attacks_sets(base, tmp_path)
    for prompts, seed in ((None, 0), (1, 1)):
        found = sets.get(described({"shares": {"concept": 1}, "images": 2, "prompts": prompts}), seed)
        chosen = every if prompts is None else spread(every, 1, derive(exam_of(seed), "prompts", "concept"))
        expected = generate(base, chosen, 2, seed=derive(5, "probe data", "concept", 2, seed))
        assert found.digest == expected.digest


def test_who_hardens_knows_neither_prompt_nor_images_that_an_attack_trains_on(
    base: DiffusionModel, drawn: list[int], tmp_path: Path
) -> None:
    """It follows from the nonce: the same seed of an attack sees one prompt in one examination, another in the next."""
    one = described({"shares": {"concept": 1}, "images": 2, "prompts": 1})
    found = [tuple(attacks_sets(base, tmp_path, exam=exam).get(one, 0).captions) for exam in range(8)]
    assert set(found) == {("an axe",) * 2, ("a big axe",) * 2}
    assert found == [tuple(attacks_sets(base, tmp_path, exam=exam).get(one, 0).captions) for exam in range(8)]
    images = [attacks_sets(base, tmp_path, exam=exam).get(described("concept"), 0).mean for exam in (0, 1, 0)]
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])


def test_a_set_is_drawn_once(base: DiffusionModel, drawn: list[int], tmp_path: Path) -> None:
    sets, concept = attacks_sets(base, tmp_path), described("concept")
    for given in (concept, described("retain"), concept):
        sets.get(given, 0)
    assert drawn == [32, 32]
    sets.get(concept, 1)
    assert drawn == [32] * 3
    one = described({"shares": {"concept": 1}, "images": 5, "prompts": 1})
    simulated = SimulatedDataSets(base, tiny_policy())
    found = {tuple(simulated.get(one, seed).captions) for seed in range(8)}
    assert found == {("an axe",) * 5, ("a big axe",) * 5} and drawn[3:] == [5, 5], "one for each choice of prompts"


@pytest.mark.parametrize("prompts", [1, None])
def test_hardening_and_attacks_mean_the_same_by_a_description_and_never_see_the_same_noise(
    prompts: int | None, base: DiffusionModel, drawn: list[int], tmp_path: Path
) -> None:
    """Numbers agree, few prompts are chosen by each for itself, and both draw in one way, from noise of their own."""
    same = described({"shares": {"concept": 1, "retain": 1}, "images": 4, "prompts": prompts})
    attack, simulated = attacks_sets(base, tmp_path), SimulatedDataSets(base, tiny_policy())
    for seed in (0, 1, 2, 3):
        given, seen = attack.get(same, seed), simulated.get(same, seed)
        assert Counter(given.captions)["a cat"] == Counter(seen.captions)["a cat"] == 2
        if prompts is None:
            assert Counter(given.captions) == Counter(seen.captions)
        else:
            assert len(set(given.captions)) == len(set(seen.captions)) == 2
        assert not any(torch.equal(a, b) for a in given.mean for b in seen.mean)
    assert set(drawn) == {2}


def test_a_source_that_the_policy_lacks_is_named(base: DiffusionModel, tmp_path: Path) -> None:
    policy = tiny_policy().model_copy(update={"retain": []})
    assert [subject.name for subject in subjects_of(policy, "related")] == ["hammers"]
    both = described({"shares": {"concept": 1, "retain": 1}})
    assert missing(policy, both) == ["retain"] and missing(tiny_policy(), both) == []
    with pytest.raises(PolicyFault, match="'retain' images"):
        attacks_sets(base, tmp_path, policy).get(both, 0)
