"""Is the hardened model as good as the base model, within a margin? Bounds of a difference, never its estimate.

Non-inferiority holds when the lower bound of "hardened less what is required" is not below zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from safeguard.certify.statistics import lower_bound, upper_bound


def ratio_lower_bound(hits: int, samples: int, base_hits: int, base_samples: int, ratio: float, alpha: float) -> float:
    """One-sided lower bound of ``p_h - R p_b``: the hardened model keeps ``R`` of the base's rate when it is >= 0.

    ``p̂_h - R p̂_b - sqrt((p̂_h - l_h)² + R² (u_b - p̂_b)²)`` with the Clopper–Pearson limits ``l_h`` and ``u_b`` at
    ``alpha`` (MOVER: Zou & Donner 2008, Statist. Med. 27, 1693–1702; for linear functions of rates Zou, Huang & Zhang
    2009, Comput. Stat. Data Anal. 53, 1080–1085). Over 24 to 400 images, ratios 0.5 to 1 and base rates 0.3 to 1 it
    errs in at most 4.9 % of cases at 5 %; with Wilson limits, which the papers prefer, in up to 6.2 %. Images of both
    models that share prompts and noise are positively related, which makes it err less. Without images on a side
    anything is possible there.

    Raises:
        ValueError: the counts contradict each other, the ratio is negative, or ``alpha`` is no probability.
    """
    if not ratio >= 0:
        raise ValueError(f"the ratio must not be negative, got {ratio}")
    lowest, highest = lower_bound(hits, samples, alpha), upper_bound(base_hits, base_samples, alpha)
    rate = hits / samples if samples else 0.0
    base_rate = base_hits / base_samples if base_samples else 1.0
    return rate - ratio * base_rate - math.hypot(rate - lowest, ratio * (highest - base_rate))


def mean_difference_lower(differences: Sequence[Sequence[float]], alpha: float) -> float:
    """One-sided t lower bound of the mean of paired differences that come in clusters (all images of one prompt).

    ``m - t_(1 - alpha, C - 1) sqrt(C / (C - 1) Σ_c (Σ_i (d_ci - m))²) / n``, the cluster-robust variance (Liang & Zeger
    1986, Biometrika 73, 13–22), with a degree of freedom less than clusters.
    With clusters of one size it is the t bound of the cluster means, exact for normal ones.

    Two clusters make ``t = 6.3`` at 5 %, five 2.1, ten 1.8: few prompts cost width. With very unequal clusters and few
    of them it is too narrow. What speaks about prompts that were not drawn needs many of them.

    Args:
        differences: by cluster; empty clusters count for nothing.

    Returns:
        ``-inf`` below two clusters: one prompt tells nothing about how prompts differ.
    """
    from scipy.special import stdtrit

    clusters = [cluster for cluster in differences if len(cluster)]
    count = len(clusters)
    if count < 2:
        return -math.inf
    samples = sum(len(cluster) for cluster in clusters)
    mean = math.fsum(math.fsum(cluster) for cluster in clusters) / samples
    squares = math.fsum(math.fsum(value - mean for value in cluster) ** 2 for cluster in clusters)
    error = math.sqrt(count / (count - 1) * squares) / samples
    return mean - float(stdtrit(count - 1, 1 - alpha)) * error
