"""Chances of a plan: the detector's errors, checkpoints and seeds that differ; against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from safeguard.certify.chances import ICCS, SHARES, Exam, by_seeds, chance, of_all, of_one_seed, rates_of_seeds
from safeguard.certify.planning import plan
from safeguard.certify.statistics import bad_share, most_hits_to_pass, pass_probability, sensitivity_lower
from safeguard.policy.schema import Policy
from safeguard.policy.suite import Suite
from safeguard.probe.units import schedules
from safeguard.results.calibration import Calibration
from safeguard.results.plan import Plan, Stop
from tests.certify.evidence_fixtures import CALIBRATION, fine_tune, make_policy, probe

SUITE = Suite(
    name="small",
    probes=[
        probe("released", "none", "r"),
        probe("malicious-full", "malicious", "m", **fine_tune({"shares": {"concept": 1}, "images": 8})),
    ],
)


def planned(policy: Policy, calibration: Calibration | None = None) -> Plan:
    return plan(policy, SUITE, schedules(SUITE), {"weapons": calibration})


def looked_once(most_hits: int | None, samples: int = 100) -> tuple[Stop, ...]:
    return (Stop(samples=samples, most_to_pass=most_hits, least_to_fail=None),)


def exam(*most_hits: int | None, false_positive: float = 0.0) -> Exam:
    return Exam(0.1, tuple(map(looked_once, most_hits)), false_positive)


def test_alike_seeds_are_independent_bounds() -> None:
    found = chance(exam(4, 4, 4), 0.02, seeds=5)
    assert found == pytest.approx(pass_probability(0.02, 100, 0.1, 0.05, repetitions=15))


@pytest.mark.parametrize("icc", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("mean", [0.01, 0.05, 0.3])
def test_rates_of_seeds_have_the_mean_and_the_variance_that_was_asked_for(mean: float, icc: float) -> None:
    rates = rates_of_seeds(mean, icc)
    assert rates.mean() == pytest.approx(mean, rel=0.02)
    assert rates.var() == pytest.approx(icc * mean * (1 - mean), rel=0.05)
    assert rates_of_seeds(mean, 0.0).tolist() == [mean] and rates_of_seeds(0.0, icc).tolist() == [0.0]


@pytest.mark.parametrize("icc", [0.0, 0.1, 0.5])
def test_the_chance_agrees_with_simulation(icc: float) -> None:
    dice, mean, seeds, runs = np.random.default_rng(12), 0.05, 3, 20_000
    spread = 1 / icc - 1 if icc else None
    rates = (
        dice.beta(mean * spread, (1 - mean) * spread, (runs, seeds, 1)) if spread else np.full((runs, seeds, 1), mean)
    )
    flagged = rates + 0.02 * (1 - rates)
    passed = (dice.binomial(100, flagged, (runs, seeds, 2)) <= [4, 5]).all(axis=(1, 2))
    assert chance(exam(4, 5, false_positive=0.02), mean, seeds, icc) == pytest.approx(passed.mean(), abs=0.01)


def test_more_seeds_pass_less_often_and_differing_ones_hide_a_mean_at_the_limit() -> None:
    chances = [chance(exam(4), 0.05, seeds) for seeds in (1, 2, 5, 20)]
    assert chances == sorted(chances, reverse=True)
    assert chance(exam(4), 0.1, 2) < 0.001
    assert 0.06 < chance(exam(4), 0.1, 2, 0.1) < 0.2 and 0.35 < chance(exam(4), 0.1, 2, 0.5) < 0.67


def test_an_impossible_checkpoint_is_never_passed() -> None:
    assert of_one_seed(exam(4, None), np.array([0.0, 0.1])).tolist() == [0.0, 0.0]
    assert chance(exam(None), 0.0, 1) == 0.0


def test_rows_by_seeds_show_the_bad_share_and_every_chance() -> None:
    exams = [exam(4, 4), Exam(0.2, (looked_once(5, 50),))]
    rows = by_seeds(exams, declared=7, alpha=0.05, calibrated=False)
    assert [row.seeds for row in rows] == [1, 2, 3, 5, 7, 10, 20]
    for row in rows:
        assert row.bad_share == bad_share(row.seeds, 0.05, 0.05)
        assert [(c.share_of_limit, c.icc) for c in row.chances] == [(share, icc) for share in SHARES for icc in ICCS]
        alike = row.chances[0].probability
        assert alike == pytest.approx(chance(exams[0], 0.01, row.seeds) * chance(exams[1], 0.02, row.seeds))
    assert of_all(exams, 0.02, 3) == pytest.approx(chance(exams[0], 0.02, 3) * chance(exams[1], 0.02, 3))


def test_two_requirements_on_the_same_images_are_one_exam() -> None:
    both = [{"probe": "malicious-*", "max_rate": 0.1, "budget": 10}, {"probe": "*-full", "max_rate": 0.2}]
    found = planned(make_policy(requirements=both))
    strict, loose = (most_hits_to_pass(100, limit, 1 - 0.95) for limit in (0.1, 0.2))
    assert [power.most_hits for power in found.powers] == [strict, loose]
    (at_10,) = [each.probability for each in found.chances if each.rate == 0.1]
    expected = chance(exam(strict, strict, loose), 0.1, 2)
    assert at_10 == pytest.approx(expected, rel=1e-9)
    product = found.powers[0].chances[4].probability * found.powers[1].chances[4].probability
    assert at_10 > product, "a model that passes one is likelier to pass the other"


def test_the_plan_uses_the_numbers_of_the_gate_with_the_detector_in() -> None:
    (power, *_) = planned(make_policy(), CALIBRATION).powers
    sensitivity = sensitivity_lower(CALIBRATION, (1 - 0.95) / 2)
    assert power.sensitivity == sensitivity
    assert power.most_hits == most_hits_to_pass(100, 0.1, 1 - 0.95, sensitivity)
    assert power.false_positive_rate == CALIBRATION.false_positive_rate == 0.01
    assert power.chances[0].probability == pytest.approx(
        pass_probability(0.01, 100, 0.1, 1 - 0.95, repetitions=2, sensitivity=sensitivity)
    ), "a model that never draws it is flagged as often as the detector errs"
    (plain, *_) = planned(make_policy()).powers
    assert (plain.sensitivity, plain.false_positive_rate, plain.chances[0].probability) == (None, None, 1.0)


def test_a_detector_that_errs_more_often_than_the_limit_allows_is_warned_about() -> None:
    noisy = Calibration.of_one(
        labels=CALIBRATION.labels,
        positives=400,
        detected=396,
        negatives=400,
        false_alarms=20,
        data="emoji",
        threshold=0.5,
    )
    policy = make_policy(
        requirements=[{"probe": "released", "max_rate": 0.03}], certification={"samples": 300, "seeds": 3}
    )
    found = planned(policy, noisy)
    (warning,) = found.warnings
    assert found.impossible == [] and "never draws it" in warning and "5.00" in warning
    assert planned(make_policy(), CALIBRATION).warnings == []


def test_what_can_never_pass_is_named_with_the_number_it_needs() -> None:
    few = planned(make_policy(certification={"samples": 28}))
    assert few.warnings == few.impossible and "at least 29 are needed" in few.impossible[0]
    with_detector = planned(make_policy(certification={"samples": 29}), CALIBRATION)
    assert with_detector.powers[0].smallest_samples == 36
    assert "at least 36 are needed" in with_detector.impossible[0] and "sees at least 97" in with_detector.impossible[0]
    assert planned(make_policy(certification={"samples": 36}), CALIBRATION).impossible == []
