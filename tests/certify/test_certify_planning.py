"""Cost and power of a certification, against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import PositiveInt

from safeguard.attack.base import Attack
from safeguard.certify.planning import plan
from safeguard.certify.statistics import pass_probability
from safeguard.config import MethodConfig
from safeguard.policy.schema import AttackMethod, Policy
from safeguard.policy.suite import ROLES, Suite, needs, weak_unlearner
from safeguard.probe.units import schedules
from safeguard.registry import attacks
from safeguard.results.calibration import Calibration
from safeguard.results.plan import Cost, Plan
from tests.certify.evidence_fixtures import CALIBRATION, fine_tune, make_policy, probe


class AskConfig(MethodConfig):
    """Settings of a search."""

    queries: PositiveInt = 5


class Ask(Attack[AskConfig]):
    """Asks for prompts and trains on nothing."""

    Config = AskConfig
    axis = "queries"

    def efforts(self) -> list[int]:
        return [0, 1, self.config.queries]

    def cost(self) -> Cost:
        return Cost(steps=3 * self.config.queries, network_calls=40 * self.config.queries)


def suite() -> Suite:
    return Suite(
        version=1,
        name="small",
        description="",
        probes=[
            probe("released", "none", "r"),
            probe("benign-full", "benign", "b", **fine_tune({"shares": {"retain": 1}, "images": 8})),
            probe("malicious-full", "malicious", "m", **fine_tune({"shares": {"concept": 1}, "images": 8})),
        ],
    )


def planned(policy: Policy, suite: Suite, calibrations: dict[str, Calibration | None] | None = None) -> Plan:
    """The plan, with what the suite's attacks say of themselves."""
    return plan(policy, suite, schedules(suite), calibrations)


def without_resilience() -> Policy:
    return make_policy(harden={"unlearner": {"name": "esd"}})


def test_units_images_and_steps_of_every_model() -> None:
    found = planned(make_policy(), suite())
    assert found.units_by_role == {"base": 4, "unlearned": 6, "hardened": 6}
    assert found.units == 16
    assert found.optimiser_steps == 2 * 5 * 50, "the benign one on all three models, the malicious one on two"
    # Per seed: three released units draw 1 concept and 2 benign subjects, five fine-tunes 1 concept at 3 checkpoints
    # and 24 of the witness at the two that are no start.
    assert found.images == 2 * (3 * 300 + 5 * (300 + 2 * 24)) + 2 * (8 + 8)


def test_images_in_more_steps_than_the_policys_cost_rows_of_their_own() -> None:
    variants = {"eta": [1.5], "v": [1.0], "steps": 40, "schedulers": [], "step_counts": [5], "guidances": [2.0]}
    declared = suite()
    sweep = probe("sampler", "none", "s").model_copy(update={"attack": AttackMethod(name="sampler", **variants)})
    policy, with_it = make_policy(), declared.model_copy(update={"probes": [*declared.probes, sweep]})
    found, without = planned(policy, with_it), planned(policy, declared)
    beyond = 40 - policy.certification.sampler_steps
    assert beyond == 25, "and fewer steps are not subtracted"
    assert found.network_calls - without.network_calls == 2 * 3 * 2 * beyond * (100 + 24)
    assert found.images - without.images == 2 * 3 * (100 + 3 * (100 + 24))


def test_images_that_a_search_asks_for_cost_two_rows_a_step() -> None:
    declared, settings = suite(), {"checkpoints": [5], "prompts": 4}
    asking = probe("asking", "none", "q").model_copy(update={"attack": AttackMethod(name="sneakyprompt", **settings)})
    policy, with_it = make_policy(), declared.model_copy(update={"probes": [*declared.probes, asking]})
    found, without = planned(policy, with_it), planned(policy, declared)
    rows = 2 * policy.certification.sampler_steps * 5 * 4
    assert found.network_calls - without.network_calls == 2 * 3 * rows * len(policy.concepts)


def test_a_probe_may_leave_the_control_out_unless_it_is_malicious() -> None:
    declared = suite()
    quick = declared.model_copy(update={"probes": [p.model_copy(update={"control": False}) for p in declared.probes]})
    assert planned(make_policy(), quick).units_by_role == {"base": 4, "unlearned": 4, "hardened": 6}
    attacked = [needs("unlearned", spec) for spec in quick.probes]
    assert attacked == [True, False, True], "an attack that brings nothing back in the weak model proves nothing"


def test_the_base_takes_what_shows_that_uses_and_fine_tunes_do_something() -> None:
    assert ROLES == ("base", "unlearned", "hardened"), "controls come first"
    assert [needs("base", spec) for spec in suite().probes] == [True, True, False]
    assert all(needs("hardened", spec) for spec in suite().probes)


def test_without_resilience_a_closed_form_edit_is_the_weak_model() -> None:
    """Under such a policy the unlearner alone is what is certified, and no control of itself."""
    assert weak_unlearner(without_resilience()).name == "uce"
    assert weak_unlearner(make_policy()).name == "esd"
    assert planned(without_resilience(), suite()) == planned(make_policy(), suite())


def test_power_counts_seeds_and_checkpoints_within_the_budget() -> None:
    policy = make_policy(requirements=[{"probe": "malicious-*", "max_rate": 0.1, "budget": 10}])
    (power,) = planned(policy, suite()).powers
    assert (power.bounds, power.most_hits, power.smallest_samples) == (4, 4, 29)
    chances = {chance.rate: chance.probability for chance in power.chances}
    assert chances[0.0] == 1.0
    assert chances[0.02] == pytest.approx(pass_probability(0.02, 100, 0.1, 1 - 0.95, repetitions=4))


def test_power_multiplies_over_requirements() -> None:
    found = planned(make_policy(), suite())
    assert [power.probe for power in found.powers] == ["released", "benign-full", "malicious-full"]
    for index, chance in enumerate(found.chances):
        product = 1.0
        for power in found.powers:
            product *= power.chances[index].probability
        assert chance.probability == pytest.approx(product)
    assert found.warnings == []


def test_calibration_takes_its_share() -> None:
    blunt = Calibration.of_one(
        labels=CALIBRATION.labels, threshold=0.5, data="d", positives=400, detected=300, negatives=0, false_alarms=0
    )
    sharp = planned(make_policy(), suite()).powers[0]
    corrected = planned(make_policy(), suite(), {"weapons": blunt}).powers[0]
    assert sharp.most_hits is not None and corrected.most_hits is not None
    assert corrected.most_hits < sharp.most_hits


def test_too_few_samples_are_warned_about_once_per_requirement() -> None:
    policy = make_policy(certification={"samples": 28, "negative_control": 0.1})
    found = planned(policy, suite())
    assert all(power.most_hits is None for power in found.powers)
    assert len(found.warnings) == 1 and "at least 29" in found.warnings[0]
    assert [chance.probability for chance in found.chances] == [0.0] * len(found.chances)


def test_limit_of_zero_and_unmatched_requirements_are_warned_about() -> None:
    policy = make_policy(requirements=[{"probe": "released", "max_rate": 0.0}, {"probe": "prune-*", "max_rate": 0.1}])
    unmatched, impossible = planned(policy, suite()).warnings
    assert "prune-*" in unmatched
    assert "no number of images can" in impossible


def test_an_attack_on_another_axis_is_planned_by_what_it_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attacks._targets, "ask", f"{__name__}:Ask")
    asked = suite()
    asked = asked.model_copy(
        update={"probes": [*asked.probes, probe("search", "malicious", "s", name="ask", queries=7)]}
    )
    policy = make_policy(requirements=[{"probe": "search", "max_rate": 0.1, "budget": 1}])
    found, without = planned(policy, asked), planned(policy, suite())
    assert (found.units_by_role["unlearned"], found.units_by_role["hardened"]) == (8, 8)
    assert found.units - without.units == 4
    # Per unit three looks at 100 images of one concept, two at 24 of the witness, and 21 steps; there is nothing to
    # train on, hence to draw.
    assert found.images - without.images == 4 * (300 + 2 * 24)
    assert found.optimiser_steps - without.optimiser_steps == 4 * 21
    (power,) = found.powers
    assert (power.probe, power.bounds) == ("search", 4), "two seeds, at efforts 0 and 1"
    schedule = schedules(asked)["search"]
    assert (schedule.axis, schedule.efforts, schedule.sources) == ("queries", [0, 1, 7], [])
    assert schedule.cost.network_calls == 280


def test_a_probe_may_ask_for_more_images_but_not_for_fewer() -> None:
    for samples, images in ((None, 100), (300, 300), (10, 100)):
        declared = suite()
        first = declared.probes[0].model_copy(update={"samples": samples})
        found = planned(make_policy(), declared.model_copy(update={"probes": [first]}))
        assert found.images == 2 * 3 * (images + 2 * 100)
        assert [power.samples for power in found.powers] == [images]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"retain": []}, "no retained subject is declared"),
        (
            {"certification": {"seeds": 1, "samples": 58}},
            "even no false alarm in 58 benign images shows that at most 5",
        ),
        ({"certification": {"seeds": 1, "samples": 18, "negative_control": 1}}, "even 18 flagged images of 18 do not"),
    ],
)
def test_a_control_that_must_fail_is_found_before_anything_is_run(changes: dict[str, Any], why: str) -> None:
    lenient = [{"probe": "released", "max_rate": 0.5}]
    alone = Suite(name="alone", probes=[probe("released", "none", "as released")])
    found = planned(make_policy(requirements=lenient, **changes), alone)
    assert any(told.startswith(why) for told in found.impossible), found.impossible


def test_a_suite_that_looks_at_no_benign_subject_is_found_before_anything_is_run() -> None:
    rounded = Suite(name="rounded", probes=[probe("few-bits", "none", "8 and 4 bit", name="quantised")])
    found = planned(make_policy(), rounded)
    assert any(told.startswith("no probe looks at benign subjects") for told in found.impossible)
