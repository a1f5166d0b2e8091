"""Samplings: bounds that hold whenever one stops, by exact recursion, by simulation, and against naive looking."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy.integrate import quad
from scipy.stats import binom, norm

from safeguard.certify.boundaries import Gate, boundaries, operation
from safeguard.certify.confidence_sequence import ConfidenceSequence, log_martingale
from safeguard.certify.sequential import Fixed, Looks, equally_spaced, planned
from safeguard.certify.spending import Spending, largest_error, nominal_levels, spending
from safeguard.certify.statistics import corrected_upper_bound, exceedance_p, lower_bound, upper_bound
from safeguard.certify.walk import stopped
from safeguard.policy.sampling import FixedSampling, Sampling, SequenceSampling, Shape, SpendingSampling
from safeguard.results.plan import Stop

SHAPES: tuple[Shape, ...] = ("obrien-fleming", "pocock")
EVERY = tuple(range(1, 61))
SAMPLINGS: dict[str, Looks] = {
    "fixed": Fixed(60),
    "obrien-fleming": Spending((15, 30, 45, 60), "obrien-fleming"),
    "pocock": Spending((15, 30, 45, 60), "pocock"),
    "uneven": Spending((7, 40, 60), "pocock"),
    "confidence sequence": ConfidenceSequence((20, 40, 60)),
    "after every image": ConfidenceSequence(EVERY),
}
RATES = [0.003, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9]


def walks(looks: tuple[int, ...], rate: float, repetitions: int = 20_000) -> np.ndarray:
    """Flagged images at each look (repetitions, looks)."""
    dice = np.random.default_rng(round(rate * 1e4) + len(looks))
    steps = np.diff(looks, prepend=0)
    return dice.binomial(steps, rate, (repetitions, len(looks))).cumsum(axis=1)


def ever_wrong(looks: tuple[int, ...], rate: float, wrong: list[list[bool]]) -> float:
    """Exact probability that the count is at one of the looks one at which the bound is wrong."""
    state = np.ones(1)
    gone, before = 0.0, 0
    for samples, bad in zip(looks, wrong, strict=True):
        step = binom.pmf(np.arange(samples - before + 1), samples - before, rate)
        state, before = np.convolve(state, step), samples
        gone += state[bad].sum()
        state[bad] = 0
    return gone


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("rate", RATES)
def test_no_look_errs_with_more_than_alpha(name: str, rate: float) -> None:
    sampling = SAMPLINGS[name]
    too_low = [[sampling.upper(k, n, 0.05) <= rate for k in range(n + 1)] for n in sampling.looks]
    too_high = [[sampling.lower(k, n, 0.05) >= rate for k in range(n + 1)] for n in sampling.looks]
    unlikely = [[sampling.exceedance_p(k, n, rate) <= 0.05 for k in range(n + 1)] for n in sampling.looks]
    for wrong in (too_low, too_high, unlikely):
        assert ever_wrong(sampling.looks, rate, wrong) <= 0.05 + 1e-9


def test_looking_again_at_bounds_of_one_look_errs_far_more_often() -> None:
    looks = (48, 96, 192, 384, 768)
    naive = [[upper_bound(k, n, 0.05) < 0.1 for k in range(n + 1)] for n in looks]
    assert 0.12 < ever_wrong(looks, 0.1, naive) < 0.15
    for shape in SHAPES:
        plan = Spending((12, 24, 48, 96, 192), shape)
        most = [max((k for k in range(n) if plan.upper(k, n, 0.05) < 0.1), default=-1) for n in plan.looks]
        passed = walks(plan.looks, 0.1) <= most
        assert passed.any(axis=1).mean() <= 0.05 + 3 * (0.05 * 0.95 / 20_000) ** 0.5


@pytest.mark.parametrize("name", SAMPLINGS)
def test_bounds_are_ordered_and_meet_at_the_ends(name: str) -> None:
    sampling = SAMPLINGS[name]
    for samples in sampling.looks[::7] + sampling.looks[-1:]:
        upper = [sampling.upper(k, samples, 0.05) for k in range(samples + 1)]
        assert upper == sorted(upper) and upper[-1] == 1.0
        assert all(sampling.lower(k, samples, 0.05) <= k / samples <= up + 1e-12 for k, up in enumerate(upper))
        assert sampling.lower(0, samples, 0.05) == 0.0
        assert sampling.lower(samples, samples, 0.05) == pytest.approx(1 - upper[0])
        assert sampling.upper(0, samples, 0.01) > upper[0]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_p_values_fall_with_hits_and_end_at_one_without_any(name: str) -> None:
    sampling = SAMPLINGS[name]
    samples = sampling.looks[-1]
    values = [sampling.exceedance_p(k, samples, 0.1) for k in range(samples + 1)]
    assert values[0] == 1.0 and values == sorted(values, reverse=True) and 0 < values[-1] < 1e-6
    assert sampling.exceedance_p(3, samples, 1.0) == 1.0 and sampling.exceedance_p(3, samples, 0.0) == 0.0


def test_fixed_sampling_is_clopper_pearson() -> None:
    assert Fixed(60).looks == (60,)
    for flagged in (0, 3, 60):
        assert Fixed(60).lower(flagged, 60, 0.05) == lower_bound(flagged, 60, 0.05)
        assert Fixed(60).upper(flagged, 60, 0.05) == upper_bound(flagged, 60, 0.05)
        assert Fixed(60).exceedance_p(flagged, 60, 0.1) == exceedance_p(flagged, 60, 0.1)


def test_spending_functions_of_lan_and_demets() -> None:
    for shape in SHAPES:
        spent = [spending(shape, share / 10, 0.05) for share in range(12)]
        assert spent == sorted(spent) and spent[0] == 0.0
        assert spent[10] == pytest.approx(0.05) == pytest.approx(spent[11])
    assert spending("obrien-fleming", 0.5, 0.05) == pytest.approx(2 - 2 * norm.cdf(1.959964 / math.sqrt(0.5)), abs=1e-6)
    assert spending("pocock", 0.5, 0.05) == pytest.approx(0.05 * math.log(1 + (math.e - 1) / 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("looks", [(30, 60), (12, 24, 36, 48), (5, 40, 61)])
def test_levels_spend_what_they_may_and_hardly_less(shape: Shape, looks: tuple[int, ...]) -> None:
    levels = nominal_levels(looks, shape, 0.05)
    assert levels[0] == pytest.approx(spending(shape, looks[0] / looks[-1], 0.05))
    for number in range(1, len(looks) + 1):
        allowed = spending(shape, looks[number - 1] / looks[-1], 0.05)
        assert largest_error(looks[:number], levels[:number]) <= allowed + 1e-12
    assert largest_error(looks, levels) >= 0.97 * 0.05
    bonferroni = np.diff([spending(shape, look / looks[-1], 0.05) for look in looks], prepend=0)
    assert all(level >= share * (1 - 1e-9) for level, share in zip(levels, bonferroni, strict=True))
    assert levels[-1] > 1.05 * bonferroni[-1]


def test_the_largest_error_is_no_smaller_than_at_any_rate() -> None:
    looks, levels = (10, 25, 40), (0.004, 0.02, 0.045)
    largest = largest_error(looks, levels)
    for rate in np.linspace(0.005, 0.995, 397):
        wrong = [[upper_bound(k, n, a) <= rate for k in range(n + 1)] for n, a in zip(looks, levels, strict=True)]
        assert ever_wrong(looks, rate, wrong) <= largest + 1e-12


def test_a_number_of_images_that_is_no_look_says_nothing() -> None:
    plan = SAMPLINGS["pocock"]
    for samples in (0, 14, 31, 120):
        assert (plan.lower(0, samples, 0.05), plan.upper(0, samples, 0.05)) == (0.0, 1.0)
        assert plan.exceedance_p(samples, samples, 0.1) == 1.0


@pytest.mark.parametrize(("flagged", "samples", "rate"), [(0, 20, 0.1), (3, 20, 0.4), (20, 20, 0.7), (1, 5, 0.05)])
def test_the_martingale_is_the_mean_likelihood_ratio_of_smaller_rates(flagged: int, samples: int, rate: float) -> None:
    def ratio(p: float) -> float:
        return (p / rate) ** flagged * ((1 - p) / (1 - rate)) ** (samples - flagged)

    mean = quad(ratio, 0, rate, epsabs=1e-14)[0] / rate
    assert math.exp(log_martingale(flagged, samples, rate)) == pytest.approx(mean)


def test_it_is_a_martingale() -> None:
    for flagged, rate in itertools.product((0, 2, 7), (0.05, 0.3)):
        now, hit, miss = (
            math.exp(log_martingale(k, n, rate)) for k, n in ((flagged, 9), (flagged + 1, 10), (flagged, 10))
        )
        assert rate * hit + (1 - rate) * miss == pytest.approx(now)


def test_the_bounds_of_a_sequence_are_where_the_martingale_has_grown_to_one_over_alpha() -> None:
    sequence = ConfidenceSequence((100,))
    for flagged in (0, 1, 30, 99):
        upper = sequence.upper(flagged, 100, 0.05)
        assert log_martingale(flagged, 100, upper) == pytest.approx(math.log(20))
        assert upper > upper_bound(flagged, 100, 0.05)
    assert sequence.exceedance_p(30, 100, sequence.lower(30, 100, 0.05)) == pytest.approx(0.05)
    assert sequence.upper(0, 2, 0.05) > 0.8 and sequence.upper(0, 0, 0.05) == 1.0 and sequence.lower(0, 0, 0.05) == 0.0
    with pytest.raises(ValueError, match="no bound"):
        sequence.upper(5, 4, 0.05)


def test_many_images_do_not_upset_the_sequence() -> None:
    sequence = ConfidenceSequence(())
    assert 0.1 < sequence.upper(10_000, 100_000, 0.05) < 0.105
    assert sequence.exceedance_p(60_000, 100_000, 0.1) == 0.0 and sequence.exceedance_p(10, 100_000, 0.1) == 1.0


def test_walks_stop_where_their_boundaries_are() -> None:
    looks, low, high = (4, 10, 12), [0, 1, 3], [4, 7, 9]
    counts = walks(looks, 0.3, 200_000)
    found = stopped(looks, np.array([0.3, 0.8]), np.array([low, low]), np.array([high, high]))
    assert found.shape == (2, 3, 2)
    going = np.ones(len(counts), dtype=bool)
    for look in range(3):
        for side, out in enumerate((counts[:, look] <= low[look], counts[:, look] >= high[look])):
            assert found[0, look, side] == pytest.approx((going & out).mean(), abs=0.004)
        going &= (counts[:, look] > low[look]) & (counts[:, look] < high[look])


def test_boundaries_of_one_look_are_the_acceptance_number() -> None:
    (only,) = boundaries(Fixed(100), Gate.of(0.1, 0.05))
    assert only == Stop(samples=100, most_to_pass=4, least_to_fail=16)
    assert only.decides(4) and only.decides(16) and not only.decides(5) and not only.decides(15)
    (few,) = boundaries(Fixed(20), Gate.of(0.1, 0.05))
    assert few.most_to_pass is None and not few.decides(0)
    assert boundaries(Fixed(1), Gate.of(0.1, 0.05))[0].least_to_fail is None


def test_boundaries_account_for_the_detector_and_for_other_tests() -> None:
    (found,) = boundaries(Fixed(200), Gate.of(0.1, 0.05, sensitivity=0.8, false_positive=0.03, tests=32))
    assert found.most_to_pass is not None and found.least_to_fail is not None
    assert corrected_upper_bound(found.most_to_pass, 200, 0.05, 0.8) < 0.1
    assert corrected_upper_bound(found.most_to_pass + 1, 200, 0.05, 0.8) >= 0.1
    assert (
        exceedance_p(found.least_to_fail, 200, 0.1, 0.03)
        <= 0.05 / 32
        < exceedance_p(found.least_to_fail - 1, 200, 0.1, 0.03)
    )


@pytest.mark.parametrize("name", SAMPLINGS)
def test_what_a_look_decides_is_what_its_bounds_say(name: str) -> None:
    sampling = SAMPLINGS[name]
    for stop in boundaries(sampling, Gate.of(0.2, 0.05)):
        samples, passing, failing = stop.samples, stop.most_to_pass, stop.least_to_fail
        for flagged in range(samples + 1):
            assert (passing is not None and flagged <= passing) == (sampling.upper(flagged, samples, 0.05) < 0.2)
            p = sampling.exceedance_p(flagged, samples, 0.2)
            assert (failing is not None and flagged >= failing) == (p <= 0.05)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("rate", [0.0, 0.03, 0.2, 0.45])
def test_operation_agrees_with_simulation(name: str, rate: float) -> None:
    sampling = SAMPLINGS[name]
    found = boundaries(sampling, Gate.of(0.2, 0.05))
    counts = walks(sampling.looks, rate)
    passed, failed = np.zeros(len(counts), dtype=bool), np.zeros(len(counts), dtype=bool)
    images = np.zeros(len(counts))
    for look, stop in enumerate(found):
        samples, passing, failing = stop.samples, stop.most_to_pass, stop.least_to_fail
        going = ~(passed | failed)
        images[going] = samples
        passed |= going & (passing is not None) & (counts[:, look] <= (passing or 0))
        failed |= going & (failing is not None) & (counts[:, look] >= (failing or 0))
    exact = operation(found, rate)
    assert (exact.passes, exact.fails) == pytest.approx((passed.mean(), failed.mean()), abs=0.012)
    assert exact.images == pytest.approx(images.mean(), abs=0.5)


def test_planned_looks_save_images_and_cost_next_to_no_power() -> None:
    fixed = operation(boundaries(Fixed(200), Gate.of(0.1, 0.05)), 0.03)
    often = operation(boundaries(Spending((50, 100, 150, 200), "obrien-fleming"), Gate.of(0.1, 0.05)), 0.03)
    assert often.passes > fixed.passes - 0.01
    assert often.images < 0.7 * fixed.images


@pytest.mark.parametrize(("looks", "samples", "expected"), [(4, 100, (25, 50, 75, 100)), (5, 48, (10, 20, 29, 39, 48))])
def test_looks_are_equally_spaced(looks: int, samples: int, expected: tuple[int, ...]) -> None:
    assert equally_spaced(looks, samples) == expected


def test_fewer_images_than_looks_are_looked_at_one_by_one() -> None:
    assert equally_spaced(5, 3) == (1, 2, 3)


def test_a_policy_declares_its_sampling() -> None:
    reader: TypeAdapter[Sampling] = TypeAdapter(Sampling)
    assert planned(reader.validate_python({"name": "fixed"}), 80) == Fixed(80)
    spent = planned(reader.validate_python({"name": "spending", "looks": 2, "shape": "pocock"}), 80)
    assert spent == Spending((40, 80), "pocock")
    sequence = planned(reader.validate_python({"name": "confidence-sequence", "looks": 4}), 80)
    assert sequence == ConfidenceSequence((20, 40, 60, 80))
    assert planned(FixedSampling(), 10).looks == (10,)
    assert planned(SpendingSampling(name="spending"), 100).looks == (25, 50, 75, 100)
    assert planned(SequenceSampling(name="confidence-sequence"), 100).looks[0] == 10
    for wrong in ({"name": "until-it-passes"}, {"name": "spending", "looks": 6}, {"name": "fixed", "looks": 2}):
        with pytest.raises(ValidationError):
            reader.validate_python(wrong)
