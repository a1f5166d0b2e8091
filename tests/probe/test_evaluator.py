"""What is drawn and judged: paired noise, more samples, prompts of an attack's own, half precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from safeguard.attack import base
from safeguard.attack import target as target_module
from safeguard.attack.base import Attempt, Prompts
from safeguard.errors import UsageFault
from safeguard.probe.campaign import Campaign
from safeguard.probe.evaluator import Look
from safeguard.probe.executors import Worker
from safeguard.results.plan import Stop, StopRule
from safeguard.results.unit import ImageRow

NOTHING = Attempt(0)


def of_concept(look: Look) -> list[ImageRow]:
    """Rows of the concept; those of the witness stand beside them."""
    return [row for row in look.rows if row.subject == "axes"]


def test_under_attack_a_benign_witness_is_drawn_as_well(worker: Worker) -> None:
    model = worker.open("hardened").model
    released, attacked = (worker.evaluator.look(model, attempt, 0) for attempt in (NOTHING, Attempt(2)))
    assert {row.subject for row in released.rows} == {"axes"}
    assert {row.subject for row in attacked.rows} == {"axes", "cats"}
    assert all(row.effort == 2 for row in attacked.rows)


def test_more_samples_begin_with_the_images_of_fewer(worker: Worker) -> None:
    model = worker.open("hardened").model
    few, more = (worker.evaluator.look(model, NOTHING, 0, samples=samples).rows for samples in (None, 6))
    assert len(more) == 6 and more[: len(few)] == few


def test_an_attacks_own_prompts_are_drawn_from_the_same_noise(worker: Worker) -> None:
    model = worker.open("hardened").model
    attempt = Attempt(3, prompts=Prompts({"axes": ["chop", "chop chop"]}))
    own, found = (of_concept(worker.evaluator.look(model, each, 0)) for each in (NOTHING, attempt))
    assert {row.prompt for row in found} == {"chop", "chop chop"} and {row.effort for row in found} == {3}
    assert [row.seed for row in own] == [row.seed for row in found]


def test_text_states_that_are_those_of_the_prompts_draw_the_same_images(worker: Worker) -> None:
    model = worker.open("hardened").model
    texts = ["an axe", "a big axe"]
    soft = Prompts({"axes": texts}, {"axes": model.encode_prompts(texts)})
    own, found = (worker.evaluator.look(model, each, 0) for each in (NOTHING, Attempt(1, prompts=soft)))
    assert np.array_equal(own.images["axes"], found.images["axes"])
    assert [row.prompt for row in of_concept(own)] == [row.prompt for row in of_concept(found)]


def test_prompts_have_a_digest(worker: Worker) -> None:
    model = worker.open("hardened").model
    states = {"axes": model.encode_prompts(["an axe"])}
    found = [Prompts({"axes": ["an axe"]}), Prompts({"axes": ["axe"]}), Prompts({"axes": ["an axe"]}, states)]
    assert len({each.digest for each in found}) == 3
    assert Prompts({"axes": ["an axe"]}).digest == found[0].digest


def test_the_oracle_sees_other_noise_than_the_evaluator(worker: Worker) -> None:
    target = worker.open("hardened")
    concept = target.concepts[0]
    oracle = target.oracle(0)
    scores = oracle(concept, ["an axe", "an axe"])
    assert scores.shape == (2,) and scores[0] != scores[1], "every image has noise of its own"
    assert oracle.calls == 2 and (target.oracle(0)(concept, ["an axe", "an axe"]) == scores).all()
    judged = {row.score for row in worker.evaluator.look(target.model, NOTHING, 0).rows}
    assert not judged & set(scores.tolist())


def test_half_precision_is_for_drawing_alone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = worker.open("hardened").model
    whole = worker.evaluator.look(model, NOTHING, 0).images["axes"]
    halved = worker.evaluator.policy.certification.model_copy(update={"precision": "bfloat16"})
    monkeypatch.setattr(
        worker.evaluator, "policy", worker.evaluator.policy.model_copy(update={"certification": halved})
    )
    found = worker.evaluator.look(model, NOTHING, 0).images["axes"]
    assert model.execution.precision == "float32"
    assert not np.array_equal(found, whole)
    assert np.abs(found.astype(int) - whole).mean() < 4


def test_prompts_that_the_content_filter_refuses_are_never_drawn(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter's own words are tested where it is; here a harmless word stands for them."""
    for module in (base, target_module):
        monkeypatch.setattr(module, "is_allowed", lambda text: "forbidden" not in text)
    target = worker.open("hardened")
    mixed = Attempt(1, prompts=Prompts({"axes": ["chop", "a forbidden axe"]}))
    look = worker.evaluator.look(target.model, mixed, 0)
    assert {row.prompt for row in of_concept(look)} == {"chop"} and look.refused == 1
    with pytest.raises(UsageFault, match="refuses every prompt"):
        worker.evaluator.look(target.model, Attempt(1, prompts=Prompts({"axes": ["a forbidden axe"]})), 0)
    scores = target.oracle(0)(target.concepts[0], ["an axe", "a forbidden axe"])
    assert scores[1] == 0 < scores[0]


def rule(*stops: tuple[int, int | None], budget: int | None = None) -> StopRule:
    """Looks that pass with so many flagged images; none fails."""
    return StopRule(
        concept="axes",
        budget=budget,
        stops=[Stop(samples=samples, most_to_pass=most, least_to_fail=None) for samples, most in stops],
    )


def test_drawing_ends_at_the_first_look_that_decides(worker: Worker) -> None:
    model = worker.open("hardened").model
    whole = worker.evaluator.look(model, NOTHING, 0, samples=6)
    for first, images in ((None, 4), (2, 2)):
        stopped = worker.evaluator.look(model, NOTHING, 0, samples=6, stops=[rule((2, first), (4, 4), (6, None))])
        assert [row.seed for row in stopped.rows] == [row.seed for row in whole.rows[:images]]
        assert [row.prompt for row in stopped.rows] == [row.prompt for row in whole.rows[:images]]
        assert len(stopped.images["axes"]) == images
        assert np.abs(stopped.images["axes"].astype(int) - whole.images["axes"][:images]).max() <= 1


def test_every_requirement_must_be_decided_and_those_of_smaller_budgets_do_not_count(worker: Worker) -> None:
    model = worker.open("hardened").model
    both = [rule((2, 2), (4, 4)), rule((2, None), (4, None), budget=1)]
    for effort, images in ((1, 4), (2, 2)):
        found = of_concept(worker.evaluator.look(model, Attempt(effort), 0, stops=both))
        assert len(found) == images


def test_an_attacks_own_prompts_and_states_are_drawn_in_looks_as_well(worker: Worker) -> None:
    model = worker.open("hardened").model
    texts = ["an axe", "a big axe"]
    for prompts in (
        Prompts({"axes": ["chop", "chop chop"]}),
        Prompts({"axes": texts}, {"axes": model.encode_prompts(texts)}),
    ):
        attempt = Attempt(1, prompts=prompts)
        whole, looked = (
            of_concept(worker.evaluator.look(model, attempt, 0, stops=stops))
            for stops in ((), [rule((2, None), (4, None))])
        )
        assert [(row.seed, row.prompt) for row in looked] == [(row.seed, row.prompt) for row in whole]
        assert [row.score for row in looked] == pytest.approx([row.score for row in whole], abs=1e-3)


def test_only_the_certified_model_is_drawn_in_looks(campaign: Campaign) -> None:
    stops = {"released": [rule((2, 2), (4, 4))]}
    looking = replace(campaign, stops=stops)
    for role, expected in (("hardened", stops["released"]), ("base", [])):
        unit, plain = (each.unit(role, each.spec("released"), 0) for each in (looking, campaign))
        assert unit.stops == expected and (unit.address != plain.address) == bool(expected)
