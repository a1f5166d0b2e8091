"""The tables and figures of docs/results/resurgence.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.certification_errors import Row
from benchmarks.resurgence import flow
from benchmarks.resurgence.calibration import Population
from benchmarks.resurgence.data import CONCEPT, PRETRAINING, Thinned
from benchmarks.resurgence.network import Noise
from benchmarks.resurgence.study import PENALTIES, Arm, interval
from benchmarks.resurgence.training import fine_tune
from safeguard.report.svg import document, drawing, palette

SHOWN = 3.0
"""Penalty of the fine-tunes in the figures."""
BROKEN = "does NOT hold"
"""What a row of the certifier's table says where a promise is broken."""


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(first: str) -> Iterator[str]:
    cells = [first, "as unlearned", *(f"tuned, weight {penalty:g}" for penalty in PENALTIES)]
    yield _line(cells)
    yield _line(["---"] * len(cells))


def of_seeds(arm: Arm, first: str, of: str, digits: int) -> str:
    """A row per way of unlearning: mean over seeds with its interval, and the change by each fine-tune, seed by seed.

    Args:
        of: attribute of ``Measured``: ``mass`` or ``likelihood``.
    """
    lines = list(_head(first))
    before = getattr(arm.before, of)
    for i, row in enumerate(arm.rows):
        mean, half = interval(before[i])
        cells = [f"{round(row, 2):,g}", f"{mean:.{digits}f} ± {half:.{digits}f}".replace("-", "−")]
        for after in arm.after.values():
            change, half = interval(getattr(after, of)[i] - before[i])
            cells.append(f"{_signed(change, digits)} ± {half:.{digits}f}")
        lines.append(_line(cells))
    return "\n".join(lines)


def of_perfect(arm: Arm) -> str:
    """The masses that networks without error would have."""
    lines = list(_head("rho"))
    for i, row in enumerate(arm.rows):
        before = arm.before.mass[i, 0]
        changes = (_signed(after.mass[i, 0] - before, 3) for after in arm.after.values())
        lines.append(_line([f"{round(row, 2):,g}", f"{before:.3f}", *changes]))
    return "\n".join(lines)


def of_certifier(population: Population, rows: Sequence[Row]) -> str:
    """Promises beside what was found."""
    rates, drawn = population.rates, population.flagged
    said = (
        f"True rates: {rates.min():.1%} to {rates.max():.1%}, {rates.mean():.2%} on average; "
        f"of {drawn.size:,} images {drawn.mean():.2%} are flagged."
    )
    lines = [said, "", _line(["what", "promised", "found (99 % interval)", "of", ""]), _line(["---"] * 5)]
    for row in rows:
        what, promised, found, holds = row.cells()
        lines.append(_line([what, promised, found, f"{row.runs:,}", holds]))
    return "\n".join(lines)


def _axes(figure: Figure, place: tuple[int, int, int], title: str, x: str, y: str) -> Axes:
    axes: Axes = figure.add_subplot(*place)
    axes.set_title(title, fontsize=10, color=palette()["ink"])
    axes.set_xlabel(x, fontsize=9, color=palette()["muted"])
    axes.set_ylabel(y, fontsize=9, color=palette()["muted"])
    axes.tick_params(labelsize=8, length=3, color=palette()["muted"], labelcolor=palette()["muted"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.04, 0.08)
    return axes


def _seeds(axes: Axes, rows: Sequence[float], values: np.ndarray, colour: str, label: str) -> None:
    means, halves = zip(*(interval(row) for row in values), strict=True)
    axes.errorbar(rows, means, halves, color=palette()[colour], label=label, marker="o", markersize=4, capsize=3)


def by_row(arms: dict[str, tuple[str, Arm]], perfect: Arm) -> str:
    """Mass above log-likelihood, a column per way of unlearning, before and after.

    Args:
        arms: title -> what the rows are, and the arm.
    """
    with drawing():
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        for column, (title, (x, arm)) in enumerate(arms.items(), start=1):
            for line, (of, y) in enumerate((("mass", "mass of the concept"), ("likelihood", "mean log p, nats"))):
                axes = _axes(figure, (2, len(arms), line * len(arms) + column), "" if line else title, x, y)
                _seeds(axes, arm.rows, getattr(arm.before, of), "hardened", "as unlearned")
                _seeds(axes, arm.rows, getattr(arm.after[SHOWN], of), "unlearned", f"tuned, weight {SHOWN:g}")
                if of == "mass" and arm.rows == perfect.rows:
                    axes.plot(arm.rows, arm.rows, color=palette()["base"], linestyle=":", label="in the data")
                if column == 1 and not line:
                    axes.legend(frameon=False, fontsize=8)
        return document(figure)


def _density(noise: Noise, x: torch.Tensor) -> np.ndarray:
    return flow.log_likelihood(noise, x[None]).exp()[0].numpy()


def densities(arm: Arm, dice: torch.Generator) -> str:
    """Of the first model trained without the concept: the density of its data, its own, and after a fine-tune."""
    assert arm.networks is not None
    learnt = arm.networks.chosen(torch.tensor([0]))
    tuned = fine_tune(learnt, SHOWN, dice)
    data = Thinned(PRETRAINING, torch.zeros(1))
    x = torch.linspace(-5.5, 2, 301)
    with drawing():
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        axes = _axes(figure, (1, 1, 1), "", "x", "density")
        axes.axvspan(*CONCEPT, color=palette()["faint"])
        axes.plot(x, data.density(x), color=palette()["base"], linestyle=":", label="data: p without the concept")
        axes.plot(x, _density(learnt, x), color=palette()["hardened"], label="learnt")
        axes.plot(x, _density(tuned, x), color=palette()["unlearned"], label="after fine-tuning on q without it")
        axes.legend(frameon=False, fontsize=8)
        return document(figure)
