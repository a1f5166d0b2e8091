"""Many tests of one certification: when one of many bounds lies above its limit, is that more than chance?

PASS needs no correction, since all must pass (an intersection–union test, Berger 1982). FAIL needs one bound above its
limit, and among many bounds of a model that is good enough one will be there by chance.
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the given order (Holm 1979, Scand. J. Statist. 6, 65–70).

    In ascending order ``p_(1) <= … <= p_(m)`` the adjusted ones are ``max over j <= i of (m - j + 1) p_(j)``, at most
    1. Whoever rejects those up to ``alpha`` rejects any true hypothesis with probability at most ``alpha``, however the
    tests depend on each other.

    Raises:
        ValueError: a p-value is none.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values must be from 0 to 1, got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted
