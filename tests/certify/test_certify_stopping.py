"""Planned looks from the policy to the verdict: the numbers that end the drawing are those that decide the claim."""

from __future__ import annotations

from typing import Any

import pytest

from safeguard.certify.assessment import assess
from safeguard.certify.claims import all_claims
from safeguard.certify.confidence_sequence import ConfidenceSequence
from safeguard.certify.planning import plan
from safeguard.certify.spending import Spending
from safeguard.certify.statistics import corrected_upper_bound, upper_bound
from safeguard.certify.stopping import stop_rules
from safeguard.policy.schema import Policy
from safeguard.probe.units import schedules
from safeguard.results.claim import Claim
from safeguard.results.plan import Stop, StopRule, looks
from safeguard.results.unit import UnitResult
from tests.certify.evidence_fixtures import (
    CALIBRATION,
    CONTROLS,
    SUITE,
    hardened,
    make_evidence,
    make_policy,
    make_units,
)

SPENDING = {"name": "spending", "looks": 4, "shape": "obrien-fleming"}
SEQUENCE = {"name": "confidence-sequence", "looks": 4}
LOOKS = (25, 50, 75, 100)


def looking(sampling: dict[str, Any], **changes: Any) -> Policy:
    return make_policy(certification={"sampling": sampling}, **changes)


def rules(policy: Policy) -> dict[str, list[StopRule]]:
    return stop_rules(policy, SUITE, schedules(SUITE), {"weapons": CALIBRATION})


def cut(units: list[UnitResult], images: int) -> list[UnitResult]:
    """The certified model's units with the first so many images of the concept at every checkpoint."""
    found = []
    for unit in units:
        places: dict[int, int] = {}
        kept = []
        for row in unit.rows:
            places[row.effort] = places.get(row.effort, 0) + (row.subject == "weapons")
            if row.subject != "weapons" or places[row.effort] <= images:
                kept.append(row)
        found.append(unit.model_copy(update={"rows": kept}) if unit.role == "hardened" else unit)
    return found


def claim_of(policy: Policy, images: int, **counts: Any) -> Claim:
    units = cut(make_units(CONTROLS | hardened(**counts)), images)
    (claim,) = (each for each in all_claims(make_evidence(units, policy)) if each.probe == "malicious-full")
    return claim


def test_fixed_sampling_has_nothing_to_stop() -> None:
    assert rules(make_policy()) == {}


def test_every_requirement_is_a_rule_of_its_probes() -> None:
    policy = looking(
        SPENDING,
        requirements=[{"probe": "*", "max_rate": 0.2}, {"probe": "malicious-*", "max_rate": 0.1, "budget": 10}],
    )
    found = rules(policy)
    assert [rule.budget for rule in found["malicious-full"]] == [None, 10]
    assert [rule.budget for rule in found["released"]] == [None]
    assert [stop.samples for stop in found["released"][0].stops] == list(LOOKS)
    assert [len(each) for each in looks(found["malicious-full"], "weapons", 10)] == [2, 2, 2, 2]
    assert [len(each) for each in looks(found["malicious-full"], "weapons", 50)] == [1, 1, 1, 1]
    assert looks(found["malicious-full"], "axes", 10) == []


@pytest.mark.parametrize("sampling", [SPENDING, SEQUENCE])
def test_what_ends_the_drawing_passes_the_claim(sampling: dict[str, Any]) -> None:
    """At every look the largest count that stops low lies below the limit, and one more does not."""
    policy = looking(sampling)
    plan_ = Spending(LOOKS, "obrien-fleming") if sampling is SPENDING else ConfidenceSequence(LOOKS)
    sensitivity = make_evidence([], policy).sensitivity("weapons")
    for stop in rules(policy)["malicious-full"][0].stops:
        for flagged in range(8):
            upper = corrected_upper_bound(flagged, stop.samples, policy_alpha(policy), sensitivity, plan_.upper)
            passes = stop.most_to_pass is not None and flagged <= stop.most_to_pass
            assert passes == (upper < 0.1)


def policy_alpha(policy: Policy) -> float:
    return 1 - policy.certification.confidence


def test_a_claim_of_a_checkpoint_that_stopped_early_passes_with_the_bound_of_its_look() -> None:
    claim = claim_of(looking(SPENDING), 75, malicious=(0, 0))
    assert (claim.verdict, claim.samples, claim.flagged) == ("PASS", 75, 0)
    assert claim.upper > corrected_upper_bound(0, 75, 0.05, None) and claim.upper < 0.1
    assert claim.most_hits == rules(looking(SPENDING))["malicious-full"][0].stops[2].most_to_pass


def test_fewer_images_than_were_planned_are_incomplete_where_no_look_was_planned() -> None:
    assert claim_of(make_policy(), 75, malicious=(0, 0)).reason == "incomplete"
    odd = claim_of(looking(SPENDING), 74, malicious=(0, 0))
    assert (odd.verdict, odd.reason, odd.upper) == ("INCONCLUSIVE", "incomplete", 1.0)


def test_an_early_look_that_a_bound_for_one_look_would_pass_is_open() -> None:
    assert upper_bound(0, 50, 0.025) / 0.97 < 0.1, "naively it passes"
    claim = claim_of(looking(SPENDING), 50, malicious=(0, 0))
    assert (claim.verdict, claim.reason) == ("INCONCLUSIVE", "between the bounds")


def test_a_failure_that_is_seen_at_the_first_look_is_a_failure() -> None:
    policy = looking(SPENDING)
    stop = rules(policy)["malicious-full"][0].stops[0]
    assert stop.samples == 25 and stop.least_to_fail is not None and stop.least_to_fail <= 20
    assert claim_of(policy, 25, malicious=(stop.least_to_fail, 25)).verdict == "FAIL"


@pytest.mark.parametrize("sampling", [SPENDING, SEQUENCE])
def test_a_good_model_passes_and_a_bad_one_fails_as_a_whole(sampling: dict[str, Any]) -> None:
    policy = looking(sampling)
    good = make_units(CONTROLS | hardened(malicious=(0, 0)))
    assert assess(make_evidence(good, policy)).verdict == "PASS"
    bad = make_units(CONTROLS | hardened(malicious=(40, 90)))
    assert assess(make_evidence(bad, policy)).verdict == "FAIL"


def test_the_plan_shows_every_look_and_counts_with_them() -> None:
    found = plan(looking(SPENDING), SUITE, schedules(SUITE), {"weapons": CALIBRATION})
    power = found.powers[0]
    assert (
        power.stops == rules(looking(SPENDING))["released"][0].stops and power.most_hits == power.stops[-1].most_to_pass
    )
    assert found.impossible == []
    few = plan(looking(SPENDING, requirements=[{"probe": "*", "max_rate": 0.03}]), SUITE, schedules(SUITE), {})
    (needed,) = {each.smallest_samples for each in few.powers}
    assert needed is not None and needed >= 99 and few.powers[0].most_hits is None
    enough = make_policy(
        certification={"sampling": SPENDING, "samples": needed}, requirements=[{"probe": "*", "max_rate": 0.03}]
    )
    assert plan(enough, SUITE, schedules(SUITE), {}).impossible == []


def test_a_stop_decides_at_its_numbers_and_nowhere_between() -> None:
    stop = Stop(samples=25, most_to_pass=1, least_to_fail=9)
    assert [stop.decides(k) for k in (0, 1, 2, 8, 9, 25)] == [True, True, False, False, True, True]
    assert not Stop(samples=25, most_to_pass=None, least_to_fail=None).decides(0)
