"""Cost and power of a certification, against counts by hand."""

from __future__ import annotations

import pytest

from safeguard.certify.planning import needs, plan, roles
from safeguard.certify.statistics import pass_probability
from safeguard.policy.schema import Policy
from safeguard.policy.suite import ProbeSpec, Suite
from tests.certify.evidence_fixtures import CALIBRATION, make_policy


def suite() -> Suite:
    training = {"steps": 50, "checkpoints": [10, 50], "images": 8}
    return Suite(
        version=1,
        name="small",
        description="",
        probes=[
            ProbeSpec(id="released", kind="released", title="r", data="none", settings={}),
            ProbeSpec(id="benign-full", kind="finetune", title="b", data="retain", settings=training),
            ProbeSpec(id="malicious-full", kind="finetune", title="m", data="concept", settings=training),
        ],
    )


def without_resilience() -> Policy:
    return make_policy(harden={"unlearner": {"name": "esd"}})


def test_units_images_and_steps_of_every_model() -> None:
    found = plan(make_policy(), suite())
    assert found.units_by_role == {"base": 2, "unlearned": 6, "hardened": 6}
    assert found.units == 14
    assert found.finetuning_steps == 2 * 4 * 50
    # Per seed: three released units draw 1 concept and 2 benign subjects, four fine-tunes 1 concept at 3 checkpoints.
    assert found.images == 2 * (3 * 300 + 4 * 300) + 2 * (8 + 8)


def test_a_probe_may_leave_the_control_out() -> None:
    declared = suite()
    quick = declared.model_copy(
        update={"probes": [p.model_copy(update={"control": p.data == "concept"}) for p in declared.probes]}
    )
    assert plan(make_policy(), quick).units_by_role == {"base": 2, "unlearned": 4, "hardened": 6}


def test_without_resilience_the_base_takes_the_attacks() -> None:
    policy = without_resilience()
    assert roles(policy) == ["base", "hardened"]
    assert [needs(policy, suite(), "base", spec) for spec in suite().probes] == [True, False, True]
    assert [needs(make_policy(), suite(), "base", spec) for spec in suite().probes] == [True, False, False]
    quick = suite()
    quick = quick.model_copy(update={"probes": [spec.model_copy(update={"control": False}) for spec in quick.probes]})
    attacked = [needs(make_policy(), quick, "base", spec) for spec in quick.probes]
    assert attacked == [True, False, True], "the unlearned model shows no attack, so the base must"
    assert plan(policy, suite()).units_by_role == {"base": 4, "hardened": 6}


def test_power_counts_seeds_and_checkpoints_within_the_budget() -> None:
    policy = make_policy(requirements=[{"probe": "malicious-*", "max_rate": 0.1, "budget": 10}])
    (power,) = plan(policy, suite()).powers
    assert (power.bounds, power.most_hits, power.smallest_samples) == (4, 4, 29)
    chances = {chance.rate: chance.probability for chance in power.chances}
    assert chances[0.0] == 1.0
    assert chances[0.02] == pytest.approx(pass_probability(0.02, 100, 0.1, 1 - 0.95, repetitions=4))


def test_power_multiplies_over_requirements() -> None:
    found = plan(make_policy(), suite())
    assert [power.probe for power in found.powers] == ["released", "benign-full", "malicious-full"]
    for index, chance in enumerate(found.chances):
        product = 1.0
        for power in found.powers:
            product *= power.chances[index].probability
        assert chance.probability == pytest.approx(product)
    assert found.warnings == []


def test_calibration_takes_its_share() -> None:
    blunt = CALIBRATION.model_copy(update={"detected": 300})
    sharp = plan(make_policy(), suite()).powers[0]
    corrected = plan(make_policy(), suite(), {"weapons": blunt}).powers[0]
    assert sharp.most_hits is not None and corrected.most_hits is not None
    assert corrected.most_hits < sharp.most_hits


def test_too_few_samples_are_warned_about_once_per_requirement() -> None:
    policy = make_policy(certification={"samples": 28})
    found = plan(policy, suite())
    assert all(power.most_hits is None for power in found.powers)
    assert len(found.warnings) == 1 and "at least 29" in found.warnings[0]
    assert [chance.probability for chance in found.chances] == [0.0] * len(found.chances)


def test_limit_of_zero_and_unmatched_requirements_are_warned_about() -> None:
    policy = make_policy(requirements=[{"probe": "released", "max_rate": 0.0}, {"probe": "prune-*", "max_rate": 0.1}])
    unmatched, impossible = plan(policy, suite()).warnings
    assert "prune-*" in unmatched
    assert "no number of images can" in impossible
