"""The curve of a calibration: what a detector finds, and flags in error, at every threshold."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from safeguard.errors import UsageFault
from safeguard.files import atomic_path
from safeguard.report.charts import Size, axis_line, name_x, panel, shares_axis
from safeguard.report.svg import drawing, palette, plain
from safeguard.results.measured import MeasuredErrors

SIZE = Size(560, 340, 60, 16, 16, 48)
WIDTHS = (1.2, 2.0, 2.8)
FORMATS = (".svg", ".png")


def check_format(path: Path) -> None:
    """Refuse a name that says no format.

    Raises:
        UsageFault: neither SVG nor PNG.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageFault("the plot is SVG or PNG", fix="name the file .svg or .png", where=str(path))


@drawing()
def write_curve(measured: MeasuredErrors, path: Path) -> None:
    """Write the share of positives flagged (lines) and of negatives (dashed) over the threshold, by stratum."""
    with atomic_path(path) as temporary:
        figure = _figure(measured)
        figure.patch.set_visible(True)
        figure.savefig(temporary, format=path.suffix.lower()[1:], metadata={"Date": None} if _svg(path) else None)


def _svg(path: Path) -> bool:
    return path.suffix.lower() == ".svg"


def _figure(measured: MeasuredErrors) -> Figure:
    figure, axes = panel(SIZE)
    axis_line(axes, "y")
    thresholds = [point.threshold for point in measured.curve]
    for place, stratum in enumerate(measured.record.strata):
        width, name = WIDTHS[place % len(WIDTHS)], plain(stratum.data)
        if stratum.positives:
            found = [point.detected[place] / stratum.positives for point in measured.curve]
            axes.plot(thresholds, found, color=palette()["hardened"], linewidth=width, label=f"{name}: found")
        if stratum.negatives:
            wrong = [point.false_alarms[place] / stratum.negatives for point in measured.curve]
            axes.plot(
                thresholds, wrong, color=palette()["muted"], linewidth=width, linestyle="--", label=f"{name}: in error"
            )
    axes.axvline(measured.record.threshold, color=palette()["muted"], linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    shares_axis(axes, 1.0, "y")
    name_x(axes, "threshold", SIZE)
    axes.legend(frameon=False, fontsize=9)
    return figure
