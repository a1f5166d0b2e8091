"""The curves of a study: how often a concept is seen along every fine-tune, all variants of a task in one panel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from safeguard.files import atomic_path
from safeguard.study.results import StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (3.6, 2.3)
"""Width and height of a panel, in inches."""
LEGEND = (3.4, 0.17)
"""Width of the legend, and height of one of its lines, in inches."""
COLOURS = ("#3b3f46", "#c44e12", "#1f6fb4", "#2a8c5a", "#8a4fbf", "#a8810c")
MARKERS = "osD^vPX*<>hpd"
SETTINGS: dict[Any, Any] = {"svg.hashsalt": "safeguard", "svg.fonttype": "none", "font.size": 9}


def write_curves(result: StudyResult, out: Path) -> Path | None:
    """Write ``study.svg``: a row per task, a column per probe that was looked at more than twice, a line per variant.

    Of several seeds the line is the mean, in a band from the smallest to the largest.

    Returns:
        Its path, or None when no probe was.
    """
    observations = [observed for cell in result.cells for observed in cell.observations]
    steps = {
        observed.probe: {other.step for other in observations if other.probe == observed.probe}
        for observed in observations
    }
    probes = [probe for probe, seen in steps.items() if len(seen) > 2]
    tasks = [
        task for task in result.study.tasks if any(cell.task == task and cell.observations for cell in result.cells)
    ]
    path = out / "study.svg"
    if not probes or not tasks:
        path.unlink(missing_ok=True)  # that of an earlier run
        return None
    with mpl.rc_context(SETTINGS):
        height = max(PANEL[1] * len(tasks), LEGEND[1] * (len(result.study.variants) + 2))
        size = PANEL[0] * len(probes) + LEGEND[0], height
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(tasks), len(probes), squeeze=False, sharex="col", sharey=True)
        for row, task in zip(panels, tasks, strict=True):
            for axes, probe in zip(row, probes, strict=True):
                _panel(axes, result, task, probe)
                axes.set_title(f"{result.study.tasks[task].title}: {probe}", fontsize=9)
        for axes in panels[-1]:
            axes.set_xlabel("fine-tuning steps")
        for axes in panels[:, 0]:
            axes.set_ylabel("images with the concept")
        lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
        titles = [part.title for part in result.study.variants.values() if part.title in lines]
        figure.legend([lines[title] for title in titles], titles, loc="outside right upper", frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return path


def _panel(axes: Axes, result: StudyResult, task: str, probe: str) -> None:
    """One line per variant; a task with several concepts shows the one seen most often."""
    for place, (variant, part) in enumerate(result.study.variants.items()):
        cells = [cell for cell in result.cells if (cell.task, cell.variant) == (task, variant)]
        seeds = [rates for cell in cells if (rates := cell.rates(probe))]
        if seeds:
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            steps = sorted({step for rates in seeds for step in rates})
            along = [[rates[step] for rates in seeds if step in rates] for step in steps]
            mean = [sum(rates) / len(rates) for rates in along]
            axes.plot(steps, mean, color=colour, marker=marker, markersize=4, linewidth=1.4, label=part.title)
            if len(seeds) > 1:
                lowest, highest = [min(rates) for rates in along], [max(rates) for rates in along]
                axes.fill_between(steps, lowest, highest, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
