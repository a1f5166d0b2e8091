"""Holm's correction, against its definition and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from safeguard.certify.multiplicity import holm


def test_holm_of_an_example_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.6, 0.7]) == [1.0, 1.0]


def stepwise(p_values: list[float], alpha: float) -> set[int]:
    """The procedure as Holm wrote it: reject the smallest while it is at most alpha over what is left."""
    rejected: set[int] = set()
    for place in sorted(range(len(p_values)), key=lambda index: p_values[index]):
        if p_values[place] > alpha / (len(p_values) - len(rejected)):
            break
        rejected.add(place)
    return rejected


def test_adjusted_values_reject_what_the_procedure_rejects() -> None:
    dice = np.random.default_rng(2)
    for _ in range(200):
        values = (dice.random(dice.integers(1, 12)) ** 4).tolist()
        adjusted = holm(values)
        assert {place for place, p in enumerate(adjusted) if p <= 0.05} == stepwise(values, 0.05)
        assert all(after >= before for after, before in zip(adjusted, values, strict=True))


def test_the_order_of_tests_does_not_matter() -> None:
    values = [0.3, 0.001, 0.02, 0.02, 0.9]
    turned = holm(values[::-1])
    assert turned[::-1] == holm(values)


def test_any_wrong_rejection_is_rarer_than_alpha_also_beside_false_hypotheses() -> None:
    uniform = np.random.default_rng(4).random((4000, 8))
    uniform[:, 6:] = 1e-6
    wrong = [min(holm(row.tolist())[:6]) <= 0.05 for row in uniform]
    assert np.mean(wrong) <= 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5
    assert np.mean(wrong) >= 0.03, "nor is it wasteful"


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([0.1, value])
