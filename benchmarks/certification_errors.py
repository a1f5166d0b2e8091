"""How often a certification errs, by simulation: what docs/statistics.md promises, beside what is found.

\b
    python benchmarks/certification_errors.py           20,000 certifications per row, about ten seconds
    python benchmarks/certification_errors.py --write   the same, and its table into docs/statistics.md

A certification is simulated as counts of flagged images, drawn at true rates that are as bad as they may be, and judged
by the functions that judge real ones (``safeguard.certify``). Rows marked *for comparison* show what happens without a
rule. Found shares stand with their Clopper–Pearson interval at 99 %. A row holds where this interval does not
contradict what was promised; the exit code is 1 where one does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import betaincc

from safeguard.certify.boundaries import Gate, boundaries
from safeguard.certify.comparisons import mean_difference_lower, ratio_lower_bound
from safeguard.certify.confidence_sequence import ConfidenceSequence
from safeguard.certify.multiplicity import holm
from safeguard.certify.sequential import Fixed, Looks, equally_spaced
from safeguard.certify.spending import Spending
from safeguard.certify.statistics import (
    bad_share,
    corrected_upper_bound,
    exceedance_p,
    lower_bound,
    pass_probability,
    upper_bound,
)
from safeguard.files import write_text
from safeguard.seeds import derive
from safeguard.wording import plural

ALPHA = DELTA = 0.05
LIMIT, IMAGES = 0.1, 100
PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
START, END = "<!-- table of benchmarks/certification_errors.py -->", "<!-- end of the table -->"

Promise = Literal["at most", "more than", "exactly"]


@dataclass(frozen=True)
class Row:
    """One promise: an event, how often it may happen, and how often it did."""

    what: str
    promise: Promise
    target: float
    hits: int
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of the true probability, at 99 %."""
        return lower_bound(self.hits, self.runs, 0.005), upper_bound(self.hits, self.runs, 0.005)

    @property
    def holds(self) -> bool:
        """Whether what was found does not contradict the promise."""
        low, high = self.interval
        kept = {"at most": low <= self.target, "more than": low > self.target, "exactly": low <= self.target <= high}
        return kept[self.promise]

    def cells(self) -> tuple[str, str, str, str]:
        """For tables."""
        low, high = self.interval
        found = f"{self.hits / self.runs:.2%} ({low:.2%} to {high:.2%})"
        return self.what, f"{self.promise} {self.target:.2%}", found, "holds" if self.holds else "does NOT hold"


def _dice(*purpose: object) -> np.random.Generator:
    return np.random.default_rng(derive(0, "certification errors", *purpose))


def _row(what: str, promise: Promise, target: float, events: ArrayLike) -> Row:
    return Row(what, promise, target, int(np.sum(events)), np.size(events))


def _passes(samples: int, limit: float = LIMIT, sensitivity: float | None = None) -> np.ndarray:
    """Whether each count passes (n + 1,)."""
    return np.array([corrected_upper_bound(k, samples, ALPHA, sensitivity) < limit for k in range(samples + 1)])


def seeds_that_were_run(runs: int) -> Iterator[Row]:
    """Five seeds at three checkpoints of one claim; one of the fifteen true rates is the limit."""
    dice = _dice("run seeds")
    for title, rest in (("at none of the others", 0.0), ("at all of them", LIMIT)):
        rates = np.full(15, rest)
        rates[4] = LIMIT
        passed = _passes(IMAGES)[dice.binomial(IMAGES, rates, (runs, 15))].all(axis=1)
        yield _row(f"false PASS: the limit is reached in one seed and checkpoint, {title}", "at most", ALPHA, passed)
    few = dice.binomial(46, LIMIT, runs)  # the number of images up to 100 at which the bound errs most
    yield _row("false PASS: one bound of 46 images, where the test is sharpest", "at most", ALPHA, _passes(46)[few])


def _beta_mean(bad: float, icc: float) -> float:
    """Mean of beta-distributed rates of which the share ``bad`` reaches the limit."""
    spread = 1 / icc - 1
    return float(brentq(lambda m: betaincc(m * spread, (1 - m) * spread, LIMIT) - bad, 1e-9, 1 - 1e-9))


def seeds_that_were_not(runs: int) -> Iterator[Row]:
    """The sentence about all seeds: said after N of N passes, wrong where more of them are bad than it says."""
    for seeds in (5, 20):
        bad = bad_share(seeds, ALPHA, DELTA) + 1e-6
        title = f"coverage sentence wrong: {seeds} seeds, {bad:.0%} of all seeds bad"
        for icc in (0.1, 0.3, 0.5, 0.7):
            dice, mean, spread = _dice(seeds, icc), _beta_mean(bad, icc), 1 / icc - 1
            rates = dice.beta(mean * spread, (1 - mean) * spread, (runs, seeds))
            passed = _passes(IMAGES)[dice.binomial(IMAGES, rates)].all(axis=1)
            yield _row(f"{title}, rates beta-distributed with mean {mean:.1%} (ICC {icc})", "at most", DELTA, passed)
        for there, kind in ((LIMIT, "which just reach the limit"), (1.0, "which relearn everything")):
            dice = _dice(seeds, there)
            rates = np.where(dice.random((runs, seeds)) < bad, there, 0.0)
            passed = _passes(IMAGES)[dice.binomial(IMAGES, rates)].all(axis=1)
            yield _row(f"{title}, {kind}, the others never", "at most", DELTA, passed)
    counts = _dice("icc 0").binomial(IMAGES, LIMIT, (runs, 5))
    same = _passes(IMAGES)[counts].all(axis=1)
    yield _row("coverage sentence wrong: 5 seeds, all of them at the limit (ICC 0)", "at most", DELTA, same)


def _samplings() -> dict[str, Looks]:
    return {
        "fixed, 200 images": Fixed(200),
        "spending, 4 looks, O'Brien–Fleming-like": Spending(equally_spaced(4, 200), "obrien-fleming"),
        "spending, 4 looks, Pocock-like": Spending(equally_spaced(4, 200), "pocock"),
        "confidence sequence, 10 looks": ConfidenceSequence(equally_spaced(10, 200)),
        "confidence sequence, a look after every image": ConfidenceSequence(tuple(range(1, 201))),
    }


def _walks(looks: tuple[int, ...], rate: float, runs: int, dice: np.random.Generator) -> np.ndarray:
    return dice.binomial(np.diff(looks, prepend=0), rate, (runs, len(looks))).cumsum(axis=1)


def looking_again(runs: int) -> Iterator[Row]:
    """Stopping at the first look that passes, or fails, at a rate that is the limit."""
    for title, sampling in _samplings().items():
        counts = _walks(sampling.looks, LIMIT, runs, _dice(title))
        found = boundaries(sampling, Gate.of(LIMIT, ALPHA))
        most = np.array([-1 if b.most_to_pass is None else b.most_to_pass for b in found])
        least = np.array([b.samples + 1 if b.least_to_fail is None else b.least_to_fail for b in found])
        yield _row(f"false PASS, {title}", "at most", ALPHA, (counts <= most).any(axis=1))
        yield _row(f"false FAIL, {title}", "at most", ALPHA, (counts >= least).any(axis=1))
    looks = (48, 96, 192, 384, 768)
    most = np.array([np.flatnonzero(_passes(samples)).max() for samples in looks])
    passed = (_walks(looks, LIMIT, runs, _dice("naive")) <= most).any(axis=1)
    yield _row("for comparison: false PASS, the bound for one look used at five", "more than", 2 * ALPHA, passed)


def many_bounds(runs: int, bounds: int = 32) -> Iterator[Row]:
    """FAIL of a certification with 32 bounds whose every true rate is its limit."""
    counts = _dice("holm").binomial(IMAGES, LIMIT, (runs, bounds))
    p_values = np.array([exceedance_p(k, IMAGES, LIMIT) for k in range(IMAGES + 1)])[counts]
    smallest = np.array([min(holm(row)) for row in p_values.tolist()])
    at = f"all {bounds} rates are their limits"
    yield _row(f"false FAIL: {at}, Holm", "at most", ALPHA, smallest <= ALPHA)
    yield _row(f"for comparison: false FAIL, {at}, not adjusted", "more than", 0.5, (p_values <= ALPHA).any(axis=1))


def false_alarms(runs: int, bounds: int = 32) -> Iterator[Row]:
    """FAIL of a model that never draws the concept, by a detector that errs in 2 % of 300 benign images and of all."""
    dice, limit, rate = _dice("false alarms"), 0.01, 0.02
    counts = dice.binomial(IMAGES, rate, (runs, bounds))
    fp = np.array([upper_bound(k, 300, ALPHA / 2) for k in range(301)])[dice.binomial(300, rate, runs)]
    worst = counts.max(axis=1)  # Holm's smallest is the smallest p-value times the number of bounds
    smallest = np.array([exceedance_p(k, IMAGES, limit, f) for k, f in zip(worst.tolist(), fp.tolist(), strict=True)])
    what = f"a perfect model, limit 1 %, {bounds} bounds, a detector that errs in 2 %"
    yield _row(f"false FAIL: {what}, measured on 300 images", "at most", ALPHA, bounds * smallest <= ALPHA / 2)
    plain = np.array([exceedance_p(k, IMAGES, limit) for k in range(IMAGES + 1)])
    yield _row(f"for comparison: false FAIL, {what}, left out", "more than", 0.5, plain[worst] <= ALPHA)


def missed_images(runs: int, calibration: int = 150, sensitivity: float = 0.8) -> Iterator[Row]:
    """A detector that sees 80 % of the concept's images, as measured on 150, at a true rate that is the limit."""
    dice = _dice("sensitivity")
    detected = dice.binomial(calibration, sensitivity, runs)
    known = [lower_bound(k, calibration, ALPHA / 2) for k in range(calibration + 1)]
    passing = np.stack([_passes(IMAGES, sensitivity=each) for each in known])
    counts = dice.binomial(IMAGES, LIMIT * sensitivity, runs)
    what = f"a detector of sensitivity {sensitivity:.0%}, measured on {calibration} images"
    yield _row(f"false PASS: {what}", "at most", ALPHA, passing[detected, counts])
    blind = _passes(IMAGES)[counts]
    yield _row("for comparison: false PASS, the same detector taken for perfect", "more than", ALPHA, blind)
    bad = bad_share(5, ALPHA / 2, DELTA - ALPHA / 2) + 1e-6
    rates = np.where(dice.random((runs, 5)) < bad, LIMIT * sensitivity, 0.0)
    passed = passing[detected[:, None], dice.binomial(IMAGES, rates)].all(axis=1)
    yield _row(f"coverage sentence wrong: 5 seeds share {what}; {bad:.0%} of all bad", "at most", DELTA, passed)


def honest_models(runs: int) -> Iterator[Row]:
    """PASS of a model at half the limit: as planned, or the plan lies."""
    for samples, bounds in ((200, 1), (400, 15)):
        planned = pass_probability(LIMIT / 2, samples, LIMIT, ALPHA, repetitions=bounds)
        passed = _passes(samples)[_dice("half", samples).binomial(samples, LIMIT / 2, (runs, bounds))].all(axis=1)
        yield _row(
            f"PASS at half the limit, as planned: {plural(bounds, 'bound')} of {samples} images",
            "exactly",
            planned,
            passed,
        )


def utility(runs: int, ratio: float = 0.8) -> Iterator[Row]:
    """Non-inferiority of a model that keeps just what it must."""
    dice, samples, base = _dice("ratio"), 48, 0.95
    table = np.array(
        [
            [ratio_lower_bound(k, samples, b, samples, ratio, ALPHA) >= 0 for b in range(samples + 1)]
            for k in range(samples + 1)
        ]
    )
    kept = table[dice.binomial(samples, ratio * base, runs), dice.binomial(samples, base, runs)]
    yield _row(f"utility passes at {ratio:.0%} of the base's detection rate, {samples} images", "at most", ALPHA, kept)
    prompts, few = 6, runs // 4
    values = dice.normal(0, 1, (few, prompts, 1)) + dice.normal(0, 2, (few, prompts, 8))
    wrong = np.array([mean_difference_lower(each, ALPHA) >= 0 for each in values.tolist()])
    yield _row(f"utility passes at the margin of a metric, {prompts} prompts that differ", "at most", ALPHA, wrong)


PARTS: tuple[Callable[[int], Iterator[Row]], ...] = (
    seeds_that_were_run,
    seeds_that_were_not,
    looking_again,
    many_bounds,
    false_alarms,
    missed_images,
    honest_models,
    utility,
)


def all_rows(runs: int) -> list[Row]:
    """Every row of the table."""
    return [row for part in PARTS for row in part(runs)]


def markdown(rows: list[Row]) -> str:
    """The table for docs/statistics.md."""
    lines = ["| what | promised | found (99 % interval) | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join([START, f"{rows[0].runs:,} certifications per row.", "", *lines, END])


def written(page: str, table: str) -> str:
    """The page with its table replaced."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return before + table + after


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(min=100), default=20_000, show_default=True, help="Certifications per row.")
@click.option("--write", is_flag=True, help="Also write the table into docs/statistics.md.")
def main(runs: int, write: bool) -> None:
    """Print the table."""
    rows = all_rows(runs)
    for what, target, found, holds in (row.cells() for row in rows):
        click.echo(f"{what:<118} {target:>18} {found:>26}  {holds}")
    if write:
        write_text(PAGE, written(PAGE.read_text(encoding="utf-8"), markdown(rows)))
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
