"""UCE against the check values and identities of its closed form."""

from __future__ import annotations

import torch

from safeguard.unlearn.uce import uce_update


def sines(rows: int, columns: int, a: float, b: float) -> torch.Tensor:
    index = torch.arange(1, rows * columns + 1, dtype=torch.float64).view(rows, columns)
    return torch.sin(a * index + b)


W = sines(3, 4, 1, 0)
E = sines(4, 2, 0.7, 0.3)
G = sines(4, 2, 0.9, -0.2)
P = sines(4, 3, 1.3, 0.1)


def test_check_values() -> None:
    expected = torch.tensor(
        [
            [0.517267374, 0.889546566, 0.475631235, -0.387542804],
            [-0.656177059, -0.324973589, 0.262293083, 0.621429125],
            [0.340544523, -0.464712740, -0.818523636, -0.424843563],
        ],
        dtype=torch.float64,
    )
    found = uce_update(W, E, G, P, lam=0.5, es=1, ps=1)
    assert torch.allclose(found, expected, atol=1e-9, rtol=0)
    assert abs(uce_update(W, E, G, P, lam=0.1, es=1, ps=0.1).sum().item() - 0.140428280) < 1e-9


def test_guiding_a_concept_to_itself_changes_nothing() -> None:
    assert torch.allclose(uce_update(W, E, E, P, lam=0.5, es=1, ps=1), W, atol=1e-14)


def test_infinite_regularisation_changes_nothing() -> None:
    assert torch.allclose(uce_update(W, E, G, P, lam=1e12, es=1, ps=1), W, atol=1e-9)


def test_without_regularisation_the_guide_is_reached() -> None:
    found = uce_update(W, E, G, None, lam=1e-9, es=1, ps=0)
    assert torch.allclose(found @ E, W @ G, atol=1e-6)


def test_stationarity() -> None:
    new = uce_update(W, E, G, P, lam=0.5, es=1, ps=1)
    gradient = (new @ E - W @ G) @ E.T + (new @ P - W @ P) @ P.T + 0.5 * (new - W)
    assert gradient.abs().max() < 1e-13


def test_order_scale_and_stacking_do_not_matter() -> None:
    plain = uce_update(W, E, G, P, lam=0.5, es=1, ps=1)
    assert torch.allclose(uce_update(W, E[:, [1, 0]], G[:, [1, 0]], P, lam=0.5, es=1, ps=1), plain, atol=1e-13)
    assert torch.allclose(uce_update(W, E, G, P, lam=1.5, es=3, ps=3), plain, atol=1e-13)
    other = sines(2, 4, 1, 0.5)
    stacked = uce_update(torch.cat([W, other]), E, G, P, lam=0.5, es=1, ps=1)
    assert torch.allclose(stacked[:3], plain, atol=1e-13)
    assert torch.allclose(stacked[3:], uce_update(other, E, G, P, lam=0.5, es=1, ps=1), atol=1e-13)
