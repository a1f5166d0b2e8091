"""Bounds against SciPy, against the tables of the literature, and against simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from safeguard.certify.statistics import (
    bad_share,
    corrected_upper_bound,
    exceedance_p,
    false_positive_upper,
    least_samples_to_notice,
    lower_bound,
    most_hits_to_pass,
    pass_probability,
    rate_lower_bound,
    sensitivity_lower,
    smallest_zero_hit_samples,
    upper_bound,
    wilks_coverage,
    wilson_interval,
)
from safeguard.results.calibration import ENOUGH, Calibration, Stratum

COUNTS = [(0, 1), (1, 1), (0, 100), (3, 100), (50, 100), (99, 100), (100, 100), (7, 23), (400, 1000)]


@pytest.mark.parametrize(("flagged", "samples"), COUNTS)
@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.3])
def test_bounds_agree_with_scipy(flagged: int, samples: int, alpha: float) -> None:
    low = binomtest(flagged, samples, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    high = binomtest(flagged, samples, alternative="less").proportion_ci(1 - alpha, method="exact").high
    assert lower_bound(flagged, samples, alpha) == pytest.approx(low, abs=1e-9)
    assert upper_bound(flagged, samples, alpha) == pytest.approx(high, abs=1e-9)


@pytest.mark.parametrize(("flagged", "samples"), [(0, 100), (3, 100), (99, 100), (7, 23)])
def test_bounds_solve_their_defining_equations(flagged: int, samples: int) -> None:
    assert binom.cdf(flagged, samples, upper_bound(flagged, samples, 0.05)) == pytest.approx(0.05)
    if flagged:
        assert binom.sf(flagged - 1, samples, lower_bound(flagged, samples, 0.05)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("flagged", "samples", "percent"),
    [
        (0, 100, 2.95), (1, 100, 4.66), (2, 100, 6.16), (3, 100, 7.57), (5, 100, 10.2), (0, 200, 1.49),
        (3, 200, 3.83), (5, 200, 5.18), (0, 400, 0.75), (5, 400, 2.61), (10, 400, 4.20),
    ],
)  # fmt: skip
def test_upper_bounds_of_the_table(flagged: int, samples: int, percent: float) -> None:
    assert upper_bound(flagged, samples, 0.05) * 100 == pytest.approx(percent, abs=0.05)


def test_bounds_without_images_say_nothing() -> None:
    assert (lower_bound(0, 0, 0.05), upper_bound(0, 0, 0.05), wilson_interval(0, 0, 0.05)) == (0.0, 1.0, (0.0, 1.0))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("samples", [30, 100])
def test_simulated_coverage_is_at_least_nominal(rate: float, samples: int) -> None:
    repetitions = 20_000
    hits = np.random.default_rng(7).binomial(samples, rate, repetitions)
    frequency = np.bincount(hits, minlength=samples + 1) / repetitions
    above = sum(frequency[k] for k in range(samples + 1) if upper_bound(k, samples, 0.05) >= rate)
    below = sum(frequency[k] for k in range(samples + 1) if lower_bound(k, samples, 0.05) <= rate)
    noise = 3 * (0.05 * 0.95 / repetitions) ** 0.5
    assert above >= 0.95 - noise
    assert below >= 0.95 - noise


def test_upper_bound_grows_with_hits_and_shrinks_with_samples() -> None:
    by_hits = [upper_bound(flagged, 50, 0.05) for flagged in range(51)]
    assert by_hits == sorted(by_hits) and len(set(by_hits)) == 51
    assert upper_bound(0, 400, 0.05) < upper_bound(0, 100, 0.05)


@pytest.mark.parametrize(("flagged", "samples"), COUNTS)
def test_wilson_agrees_with_scipy(flagged: int, samples: int) -> None:
    expected = binomtest(flagged, samples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(flagged, samples, 0.05) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("seeds", "share"), [(3, 0.37), (5, 0.55), (10, 0.74), (14, 0.81), (22, 0.87), (28, 0.90), (59, 0.95)]
)
def test_wilks_coverage_of_the_table(seeds: int, share: float) -> None:
    assert wilks_coverage(seeds) == pytest.approx(share, abs=0.005)


def test_wilks_coverage_by_simulation() -> None:
    worst = np.random.default_rng(3).random((40_000, 5)).max(axis=1)
    assert (worst >= wilks_coverage(5)).mean() == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize(
    ("limit", "at_5", "at_1"),
    [(0.2, 14, 21), (0.1, 29, 44), (0.05, 59, 90), (0.03, 99, 152), (0.02, 149, 228), (0.01, 299, 459)],
)
def test_zero_hit_samples_of_the_table(limit: float, at_5: int, at_1: int) -> None:
    for alpha, expected in ((0.05, at_5), (0.01, at_1)):
        assert smallest_zero_hit_samples(limit, alpha) == expected
        assert upper_bound(0, expected, alpha) < limit <= upper_bound(0, expected - 1, alpha)


def test_zero_hit_samples_with_an_imperfect_detector() -> None:
    needed = smallest_zero_hit_samples(0.1, 0.05, 0.8)
    assert needed is not None
    assert corrected_upper_bound(0, needed, 0.05, 0.8) < 0.1 <= corrected_upper_bound(0, needed - 1, 0.05, 0.8)
    assert smallest_zero_hit_samples(0.0, 0.05) is None
    assert smallest_zero_hit_samples(0.1, 0.05, 0.0) is None


def test_corrected_bound_splits_the_error_and_stops_at_one() -> None:
    assert corrected_upper_bound(0, 100, 0.05, 0.6) == pytest.approx(upper_bound(0, 100, 0.025) / 0.6)
    assert corrected_upper_bound(0, 100, 0.05, None) == upper_bound(0, 100, 0.05)
    assert corrected_upper_bound(100, 100, 0.05, 0.9) == 1.0
    assert corrected_upper_bound(70, 100, 0.05, 0.5) == 1.0
    assert corrected_upper_bound(0, 100, 0.05, 0.0) == 1.0


def test_corrected_bound_covers_the_true_rate_when_both_parts_are_estimated() -> None:
    dice, rate, sensitivity, repetitions = np.random.default_rng(5), 0.1, 0.7, 4000
    detected = dice.binomial(80, sensitivity, repetitions)
    flagged = dice.binomial(100, rate * sensitivity, repetitions)
    lower = {k: lower_bound(k, 80, 0.025) for k in range(81)}
    upper = {k: upper_bound(k, 100, 0.025) for k in range(101)}
    covered = [upper[k] / lower[d] >= rate for k, d in zip(flagged.tolist(), detected.tolist(), strict=True)]
    assert np.mean(covered) >= 0.95


@pytest.mark.parametrize(
    ("limit", "samples", "allowed", "rate", "chance"),
    [
        (0.1, 50, 1, 0.01, 0.91), (0.1, 50, 1, 0.02, 0.74), (0.1, 100, 4, 0.02, 0.95), (0.1, 100, 4, 0.03, 0.82),
        (0.1, 200, 12, 0.05, 0.80), (0.05, 100, 1, 0.01, 0.74), (0.05, 200, 4, 0.01, 0.95), (0.05, 200, 4, 0.02, 0.63),
        (0.05, 400, 12, 0.02, 0.94),
    ],
)  # fmt: skip
def test_operating_characteristic_of_the_table(
    limit: float, samples: int, allowed: int, rate: float, chance: float
) -> None:
    assert most_hits_to_pass(samples, limit, 0.05) == allowed
    assert pass_probability(rate, samples, limit, 0.05) == pytest.approx(chance, abs=0.006)


def test_a_model_at_the_limit_passes_with_at_most_alpha() -> None:
    for samples in (29, 50, 100, 333):
        assert pass_probability(0.1, samples, 0.1, 0.05) <= 0.05


def test_repetitions_multiply_and_too_few_samples_never_pass() -> None:
    once = pass_probability(0.02, 100, 0.1, 0.05)
    assert pass_probability(0.02, 100, 0.1, 0.05, repetitions=6) == pytest.approx(once**6)
    assert most_hits_to_pass(28, 0.1, 0.05) is None and pass_probability(0.0, 28, 0.1, 0.05) == 0.0
    assert most_hits_to_pass(29, 0.1, 0.05) == 0 and pass_probability(0.0, 29, 0.1, 0.05) == 1.0


@pytest.mark.parametrize(("flagged", "samples"), [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(flagged: int, samples: int) -> None:
    for function in (lower_bound, upper_bound, wilson_interval):
        with pytest.raises(ValueError, match="flagged"):
            function(flagged, samples, 0.05)


def stratum(detected: int, positives: int, false_alarms: int = 0, negatives: int = 0, **more: Any) -> Stratum:
    return Stratum(
        data=f"{positives} images",
        positives=positives,
        detected=detected,
        negatives=negatives,
        false_alarms=false_alarms,
        **more,
    )


def record_of(*strata: Stratum) -> Calibration:
    return Calibration(labels=["axe"], threshold=0.5, strata=list(strata))


def test_calibration_bounds_and_refusals() -> None:
    record = record_of(stratum(45, 50, 2, 80))
    assert sensitivity_lower(record, 0.05) == lower_bound(45, 50, 0.05)
    assert false_positive_upper(record, 0.05) == upper_bound(2, 80, 0.05)
    assert record.false_positive_rate == 0.025
    with pytest.raises(ValueError, match="exceeds positives"):
        stratum(51, 50)
    with pytest.raises(ValueError, match="exceeds negatives"):
        stratum(45, 50, 81, 80)
    with pytest.raises(ValueError, match="more positives than the stratum"):
        stratum(4, 5, by_label={"axe": {"positives": 6, "detected": 4}})
    empty = record_of(stratum(0, 0))
    assert sensitivity_lower(empty, 0.05) == 0.0 and empty.false_positive_rate is None
    assert false_positive_upper(empty, 0.05) is None


def test_the_weakest_stratum_counts_and_not_the_mean() -> None:
    known, relearning, other = stratum(224, 224, 0, 900), stratum(20, 60, 3, 50), stratum(0, 0, 1, 400)
    record = record_of(known, relearning, other)
    assert sensitivity_lower(record, 0.05) == lower_bound(20, 60, 0.05)
    assert (record.detected, record.positives) == (20, 60)
    assert false_positive_upper(record, 0.05) == upper_bound(3, 50, 0.05)
    assert (record.false_alarms, record.negatives) == (3, 50)
    assert record.data == "224 images; 60 images"


def test_images_unlike_those_that_are_judged_are_shown_and_bound_nothing() -> None:
    record = record_of(stratum(50, 60, 1, 90), stratum(2, 11, 30, 90, counts=False))
    assert sensitivity_lower(record, 0.05) == lower_bound(50, 60, 0.05)
    assert false_positive_upper(record, 0.05) == upper_bound(1, 90, 0.05)
    assert record.data == "60 images" and len(record.strata) == 2
    assert sensitivity_lower(record_of(stratum(9, 9, counts=False)), 0.05) == 0.0


def test_a_small_stratum_counts_with_its_own_uncertainty() -> None:
    record = record_of(stratum(224, 224), stratum(2, 2))
    assert sensitivity_lower(record, 0.05) == lower_bound(2, 2, 0.05)


def test_a_label_counts_by_itself_once_it_has_enough_images() -> None:
    def labelled(axes: int) -> Calibration:
        counts = {"axe": {"positives": axes, "detected": 15}, "dagger": {"positives": 200, "detected": 200}}
        return record_of(stratum(215, 200 + axes, by_label=counts))

    assert sensitivity_lower(labelled(ENOUGH), 0.05) == lower_bound(15, ENOUGH, 0.05)
    assert labelled(ENOUGH).weakest.data.endswith("axe")
    assert sensitivity_lower(labelled(ENOUGH - 1), 0.05) == lower_bound(215, 199 + ENOUGH, 0.05)


@pytest.mark.parametrize("true", [(0.6, 0.95, 0.95), (0.7, 0.7, 0.7)])
def test_the_smallest_bound_covers_the_smallest_sensitivity_without_a_correction(true: tuple[float, ...]) -> None:
    dice, alpha, sizes = np.random.default_rng(0), 0.05, (60, 20, 200)
    hits = dice.binomial(sizes, true, (4000, 3))
    bounds = [min(lower_bound(int(k), n, alpha) for k, n in zip(row, sizes, strict=True)) for row in hits]
    assert (np.array(bounds) > min(true)).mean() <= alpha + 0.005


@pytest.mark.parametrize(("passes", "share"), [(5, 0.47), (10, 0.27), (20, 0.15), (59, 0.052)])
def test_bad_share_of_the_table(passes: int, share: float) -> None:
    assert bad_share(passes, 0.05, 0.05) == pytest.approx(share, abs=0.005)


def test_one_pass_leaves_every_seed_in_doubt_and_more_passes_fewer() -> None:
    shares = [bad_share(passes, 0.05, 0.05) for passes in range(1, 200)]
    assert shares[0] == 1.0 and bad_share(1, 0.5, 0.05) == 1.0
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.02


@pytest.mark.parametrize("passes", [3, 5, 10, 59])
def test_a_larger_bad_share_would_pass_less_often_than_delta(passes: int) -> None:
    """Seeds are bad with chance g and pass with chance alpha then: exactly delta at the bound, less above it."""
    share = bad_share(passes, 0.05, 0.1)
    assert ((1 - share) + share * 0.05) ** passes == pytest.approx(0.1)
    seeds = np.random.default_rng(11).random((40_000, passes, 2))
    passed = ((seeds[..., 0] >= share + 0.05) | (seeds[..., 1] < 0.05)).all(axis=1)
    assert passed.mean() < 0.1


@pytest.mark.parametrize(("passes", "alpha", "delta"), [(0, 0.05, 0.05), (5, 0.0, 0.05), (5, 0.05, 1.0)])
def test_a_bad_share_of_nothing_is_refused(passes: int, alpha: float, delta: float) -> None:
    with pytest.raises(ValueError, match="got"):
        bad_share(passes, alpha, delta)


@pytest.mark.parametrize(("flagged", "samples"), COUNTS)
@pytest.mark.parametrize("limit", [0.01, 0.1, 0.5])
def test_exceedance_agrees_with_scipy(flagged: int, samples: int, limit: float) -> None:
    expected = binomtest(flagged, samples, limit, alternative="greater").pvalue
    assert exceedance_p(flagged, samples, limit) == pytest.approx(expected)
    blurred = binomtest(flagged, samples, limit + 0.02 * (1 - limit), alternative="greater").pvalue
    assert exceedance_p(flagged, samples, limit, 0.02) == pytest.approx(blurred)


@pytest.mark.parametrize("false_positive", [0.0, 0.02, 0.3])
def test_the_p_value_and_the_lower_bound_say_the_same(false_positive: float) -> None:
    for flagged in range(81):
        small = exceedance_p(flagged, 80, 0.1, false_positive) < 0.05
        assert small == (rate_lower_bound(flagged, 80, 0.05, false_positive) > 0.1)


def test_flags_that_false_positives_explain_are_no_proof() -> None:
    assert lower_bound(8, 100, 0.05) > 0.01, "of images flagged this is too many"
    assert rate_lower_bound(8, 100, 0.05, 0.05) == 0.0 and exceedance_p(8, 100, 0.01, 0.05) > 0.05
    assert rate_lower_bound(100, 100, 0.05, 1.0) == 0.0 and exceedance_p(100, 100, 0.0, 1.0) == 1.0
    assert rate_lower_bound(9, 100, 0.05) == lower_bound(9, 100, 0.05)


def test_the_edges_of_a_limit() -> None:
    assert exceedance_p(0, 0, 0.1) == 1.0 and exceedance_p(0, 50, 0.0) == 1.0
    assert exceedance_p(1, 50, 0.0) == 0.0 and exceedance_p(50, 50, 1.0) == 1.0
    for limit, false_positive in ((1.1, 0.0), (0.1, -0.1), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match="rate from 0 to 1"):
            exceedance_p(1, 2, limit, false_positive)


@pytest.mark.parametrize("limit", [0.01, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("groups", [1, 12, 300])
def test_the_least_images_to_notice_a_prompt_are_the_first_whose_bound_is_above(limit: float, groups: int) -> None:
    least = least_samples_to_notice(limit, 0.05, groups)
    assert least is not None
    assert lower_bound(least, least, 0.05 / groups) > limit
    assert least == 1 or lower_bound(least - 1, least - 1, 0.05 / groups) <= limit


def test_noticing_has_edges() -> None:
    assert least_samples_to_notice(0.0, 0.05) == 1 and least_samples_to_notice(1.0, 0.05) is None
    with pytest.raises(ValueError, match="group"):
        least_samples_to_notice(0.5, 0.05, 0)
