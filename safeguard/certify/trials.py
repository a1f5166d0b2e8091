"""What several fine-tunes say that one attack tried: the share of a distribution, and the worst of all.

A trial that broke the model brought nothing back, and is no success of whoever tried it; nor is it a proof that the
concept is gone. So it is not counted, and half of the trials of each kind must leave the model working
(:func:`safeguard.certify.attacked.enough_work`).

Trials drawn at random are independent of each other in all that was drawn for them, noise of judged images included.
What those of one seed share are the images that they train on, so that the share that they bound is that for the images
of these seeds: with bad shares ``g_s``, ``N_s`` trials each, all pass with at most the product of ``(1 - g_s (1 -
alpha))^N_s``, which is largest, for a given mean, where all shares are alike (Jensen), and then that of
:func:`safeguard.certify.statistics.bad_share`.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeguard.certify.bounds import Bounded
from safeguard.certify.evidence import Evidence
from safeguard.results.claim import Trials


def trials(evidence: Evidence, bounded: Sequence[Bounded], limit: float) -> Trials | None:
    """Of one claim; none: its attack tries no several fine-tunes."""
    tried = [(each, trial) for each in bounded if each.samples and (trial := each.trial)]
    if not tried:
        return None
    drawn = [each for each, trial in tried if trial.kind == "random"]
    working = [each for each in drawn if each.working]
    passed = [each for each in working if each.upper < limit]
    most: dict[str, int] = {}
    for each, trial in tried:
        most[each.unit.address] = max(most.get(each.unit.address, 0), trial.tried)
    given = sum(trial.kind == "given" for _, trial in tried)
    worst = max((each for each, _ in tried if each.working), key=lambda each: each.upper, default=None)
    point = worst.unit.checkpoint(worst.effort) if worst else None
    found = Trials(
        random=len(drawn),
        working=len(working),
        passed=len(passed),
        bad_share=evidence.uncovered(len(passed)) if passed and len(passed) == len(working) else None,
        tried=sum(most.values()),
        guided=sum(most.values()) - len(drawn) - given,
        worst=point.label if point else "",
    )
    if worst is None:
        return found
    counts = {"flagged": worst.flagged, "samples": worst.samples, "lower": worst.lower, "upper": worst.upper}
    return found.model_copy(update={"seed": worst.unit.seed, **counts})
