"""Non-inferiority bounds, against their definitions, textbooks and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from safeguard.certify.comparisons import mean_difference_lower, ratio_lower_bound
from safeguard.certify.statistics import lower_bound, upper_bound


def test_the_ratio_bound_combines_the_limits_of_both_rates() -> None:
    low, high = lower_bound(80, 100, 0.05), upper_bound(90, 120, 0.05)
    width = math.sqrt((0.8 - low) ** 2 + 0.64 * (high - 0.75) ** 2)
    assert ratio_lower_bound(80, 100, 90, 120, 0.8, 0.05) == pytest.approx(0.8 - 0.6 - width)


def test_estimates_at_the_margin_are_no_proof() -> None:
    assert ratio_lower_bound(80, 100, 100, 100, 0.8, 0.05) < 0, "80 of 100 is 0.8 by chance in half of all cases"
    assert ratio_lower_bound(95, 100, 96, 100, 0.8, 0.05) > 0
    assert ratio_lower_bound(8, 8, 8, 8, 0.8, 0.05) < 0 < ratio_lower_bound(40, 40, 40, 40, 0.8, 0.05)


def test_a_base_model_that_never_draws_it_allows_no_comparison() -> None:
    assert ratio_lower_bound(0, 100, 0, 100, 0.8, 0.05) < 0
    assert ratio_lower_bound(0, 0, 90, 100, 0.8, 0.05) < 0
    assert ratio_lower_bound(100, 100, 0, 0, 0.8, 0.05) <= 0.2
    assert ratio_lower_bound(0, 0, 0, 0, 1.0, 0.05) == -1.0 - 0.0


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0])
@pytest.mark.parametrize(("samples", "base_samples"), [(24, 24), (100, 48), (48, 200)])
def test_a_model_at_the_margin_is_let_through_with_at_most_alpha(ratio: float, samples: int, base_samples: int) -> None:
    """Exact: over all counts, weighted by their probability."""
    passes = np.array(
        [
            [ratio_lower_bound(k, samples, b, base_samples, ratio, 0.05) >= 0 for b in range(base_samples + 1)]
            for k in range(samples + 1)
        ]
    )
    for base_rate in (0.3, 0.5, 0.7, 0.9, 0.97, 1.0):
        chances = binom.pmf(range(samples + 1), samples, ratio * base_rate)
        base_chances = binom.pmf(range(base_samples + 1), base_samples, base_rate)
        assert chances @ passes @ base_chances <= 0.05


def test_a_negative_ratio_is_refused() -> None:
    for ratio in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            ratio_lower_bound(1, 2, 1, 2, ratio, 0.05)


def test_clusters_of_one_size_give_the_t_bound_of_their_means() -> None:
    values = np.random.default_rng(6).normal(0.1, 1, (7, 5))
    found = mean_difference_lower(values.tolist(), 0.05)
    expected = ttest_1samp(values.mean(axis=1), 0, alternative="greater").confidence_interval(0.95).low
    assert found == pytest.approx(expected)


def test_repeating_every_image_of_a_prompt_makes_nothing_surer() -> None:
    clusters = [[0.1, -0.2], [0.3], [0.0, 0.2, 0.1]]
    assert mean_difference_lower([c * 10 for c in clusters], 0.05) == pytest.approx(
        mean_difference_lower(clusters, 0.05)
    )


def test_fewer_than_two_clusters_say_nothing() -> None:
    for clusters in ([], [[]], [[0.5] * 1000], [[0.5] * 1000, []]):
        assert mean_difference_lower(clusters, 0.05) == -math.inf


@pytest.mark.parametrize("clusters", [2, 4, 12])
def test_the_bound_covers_when_prompts_differ(clusters: int) -> None:
    dice, repetitions = np.random.default_rng(8), 2000
    values = dice.normal(0, 1, (repetitions, clusters, 1)) + dice.normal(0, 1, (repetitions, clusters, 6))
    wrong = [mean_difference_lower(each, 0.05) > 0 for each in values.tolist()]
    assert abs(np.mean(wrong) - 0.05) <= 3.5 * (0.05 * 0.95 / repetitions) ** 0.5
