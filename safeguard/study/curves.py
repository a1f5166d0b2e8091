"""The curves of a study: how often a concept is seen along every fine-tune, all variants of a task in one panel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from safeguard.files import write_text
from safeguard.report.charts import Size, axis_line, efforts_axis, name_x, quiet, shares_axis
from safeguard.report.svg import UNIT, document, drawing, palette, plain
from safeguard.study.results import StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = Size(300, 200, left=52, right=16, top=34, bottom=44, text=11)
LEGEND = (250, 15)
"""Width of the legend, and height of one of its lines, in user units."""
COLOURS = ("#3b3f46", "#c44e12", "#1f6fb4", "#2a8c5a", "#8a4fbf", "#a8810c")
MARKERS = "osD^vPX*<>hpd"


@drawing()
def write_curves(result: StudyResult, out: Path) -> Path | None:
    """Write ``study.svg``: a row per task, a column per probe that was looked at more than twice, a line per variant.

    Of several seeds the line is the mean, in a band from the smallest to the largest.

    Returns:
        Its path, or None when no probe was.
    """
    seen: dict[str, set[int]] = {}
    for cell in result.cells:
        for observed in cell.observations:
            seen.setdefault(observed.probe, set()).add(observed.step)
    probes = {probe: steps for probe, steps in seen.items() if len(steps) > 2}
    with_rows = {cell.task for cell in result.cells if cell.observations}
    tasks = [task for task in result.study.tasks if task in with_rows]
    path = out / "study.svg"
    if not probes or not tasks:
        path.unlink(missing_ok=True)  # that of an earlier run
        return None
    width = PANEL.width * len(probes) + LEGEND[0]
    height = max(PANEL.height * len(tasks), LEGEND[1] * (len(result.study.variants) + 2))
    figure = Figure(figsize=(width / UNIT, height / UNIT), dpi=UNIT, facecolor=palette()["card"])
    figure.set_layout_engine("constrained", h_pad=8 / UNIT, w_pad=8 / UNIT)
    panels = figure.subplots(len(tasks), len(probes), squeeze=False, sharex="col", sharey=True)
    for row, task in zip(panels, tasks, strict=True):
        for axes, (probe, steps) in zip(row, probes.items(), strict=True):
            quiet(axes, PANEL)
            axes.set_ylim(0, 1)
            efforts_axis(axes, steps)
            shares_axis(axes, 1.0, "y")
            title = plain(f"{result.study.tasks[task].title}: {probe}")
            axes.set_title(title, fontsize=PANEL.text, color=palette()["ink"], loc="left", pad=10)
            axis_line(axes, "y")
            _panel(axes, result, task, probe)
    for axes in panels[-1]:
        name_x(axes, "fine-tuning steps", PANEL)
    for axes in panels[:, 0]:
        axes.set_ylabel("images with the concept", color=palette()["muted"], fontsize=PANEL.text)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    titles = [part.title for part in result.study.variants.values() if part.title in lines]
    style: dict[str, Any] = {"fontsize": PANEL.text, "labelcolor": palette()["ink"], "frameon": False}
    figure.legend([lines[title] for title in titles], [*map(plain, titles)], loc="outside right upper", **style)
    write_text(path, document(figure))
    return path


def _panel(axes: Axes, result: StudyResult, task: str, probe: str) -> None:
    """One line per variant; a task with several concepts shows the one seen most often."""
    for place, (variant, part) in enumerate(result.study.variants.items()):
        cells = [cell for cell in result.cells if (cell.task, cell.variant) == (task, variant)]
        seeds = [rates for cell in cells if (rates := cell.rates(probe))]
        if not seeds:
            continue
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        steps = sorted({step for rates in seeds for step in rates})
        along = [[rates[step] for rates in seeds if step in rates] for step in steps]
        mean = [sum(rates) / len(rates) for rates in along]
        style: dict[str, Any] = {
            "markersize": 7,
            "markeredgecolor": palette()["card"],
            "markeredgewidth": 0.75,
            "linewidth": 1.75,
            "clip_on": False,
        }
        axes.plot(steps, mean, color=colour, marker=marker, label=part.title, **style)
        if len(seeds) > 1:
            lowest, highest = [min(rates) for rates in along], [max(rates) for rates in along]
            axes.fill_between(steps, lowest, highest, color=colour, alpha=0.15, linewidth=0)
