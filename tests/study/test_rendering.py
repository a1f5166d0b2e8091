"""What a table says beside counting."""

from __future__ import annotations

import pytest

from safeguard.study.rendering import _half, _steps_to_half
from safeguard.study.schema import CellResult, Look


def cell(rates: dict[int, float]) -> CellResult:
    looks = [
        Look(
            probe="malicious",
            concept="weapons",
            step=step,
            flagged=round(20 * rate),
            samples=20,
            rate=rate,
            upper=1.0,
            base=None,
        )
        for step, rate in rates.items()
    ]
    return CellResult(task="weapons", variant="uce", looks=looks)


@pytest.mark.parametrize(
    ("rates", "steps", "says"),
    [
        ({0: 0.0, 50: 0.25, 100: 0.75, 150: 0.25}, 75.0, "75"),
        ({0: 0.5, 50: 0.9}, 0.0, "0"),
        ({0: 0.0, 50: 0.5}, 50.0, "50"),
        ({100: 0.2, 50: 0.4, 0: 0.0}, None, "over 100"),
    ],
)
def test_steps_until_half_of_the_images_are_flagged(rates: dict[int, float], steps: float | None, says: str) -> None:
    assert _half(cell(rates), "malicious") == steps
    assert _steps_to_half(cell(rates), "malicious") == says


def test_of_two_concepts_the_one_that_comes_back_first_counts() -> None:
    both = cell({0: 0.0, 100: 0.1})
    other = [look.model_copy(update={"concept": "tools"}) for look in cell({0: 0.0, 100: 1.0}).looks]
    assert _half(both.model_copy(update={"looks": [*both.looks, *other]}), "malicious") == 50.0
