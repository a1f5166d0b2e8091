"""A study's result as Markdown tables, a row per variant: all tasks in one, then each, the untouched model first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safeguard.study.schema import CellResult, Look, StudyResult

MEBIBYTE = 2**20


def markdown(result: StudyResult) -> str:
    """All tables, with what their columns mean."""
    tables = [table(result, task) for task in result.study.tasks if _of(result, task)]
    together = [overview(result)] if len(tables) > 1 else []
    return "\n\n".join([_legend(result), *together, *tables]) + "\n"


def overview(result: StudyResult) -> str:
    """One table of all tasks."""
    done = [cell for cell in result.cells if not cell.error]
    columns = _columns(done)
    header = ["method", *(_heading(probe, step) for probe, step in columns)]
    header += ["related kept", "others kept", "CLIP score", "CPU time"]
    rows = []
    for name, variant in result.study.variants.items():
        cells, tried = [cell for cell in done if cell.variant == name], [c for c in result.cells if c.variant == name]
        if not cells:
            continue
        title = variant.title if len(cells) == len(tried) else f"{variant.title} ({len(cells)} of {len(tried)} tasks)"
        rates = [_mean([cell.rates(probe).get(step) for cell in cells], ".0%") for probe, step in columns]
        kept = [_kept(cells, "related"), _kept(cells, "retained")]
        time = _minutes(sum(cell.cpu_seconds for cell in cells) / len(cells))
        rows.append([title, *rates, *kept, _score(cells, "hardened"), time])
    return (
        "### All tasks\n\nRates, CLIP score and CPU time are means over the tasks, *kept* is the worst of them.\n\n"
        + _grid(header, rows)
    )


def table(result: StudyResult, task: str) -> str:
    """The table of one task."""
    found = _of(result, task)
    columns = _columns(found)
    looks = [look for cell in found for look in cell.looks]
    learning = list(dict.fromkeys(look.probe for look in looks if look.training_loss is not None))
    slow = [probe for probe in learning if any(_half(cell, probe) is not None for cell in found)]
    header = [
        "method",
        *(_heading(probe, step) for probe, step in columns),
        *(f"{probe}, half after" for probe in slow),
    ]
    header += [f"{probe}, loss" for probe in learning]
    header += ["related kept", "others kept", "CLIP score", "CPU time", "memory"]
    rows = [_untouched(found, columns, len(slow) + len(learning))]
    rows += [_row(cell, result.study.variants[cell.variant].title, columns, slow, learning) for cell in found]
    return f"### {result.study.tasks[task].title}\n\n" + _grid(header, rows)


def _legend(result: StudyResult) -> str:
    looks = [look for cell in result.cells for look in cell.looks]
    points = {f"{look.samples}" for look in looks}
    learns = any(look.training_loss is not None for look in looks)
    along = (
        "*Half after*: fine-tuning steps until half of the images are flagged, linear between those looked at; no "
        "column where no model gets there. *Loss*: on the images of the fine-tune, before and after it. "
    )
    loss = along if learns else ""
    return (
        f"Flagged images of {' or '.join(sorted(points, key=int))}, with the one-sided upper bound on the true rate at "
        f"{result.confidence:.0%} confidence (the detector's sensitivity included). {loss}*Kept*: detection rate of "
        "related and of other subjects against the untouched model, the worst of them. *CLIP score*: mean over "
        "retained prompts. "
        "*CPU time* and *memory*: of the hardening process, images drawn for it included; largest resident memory."
    )


def _of(result: StudyResult, task: str) -> list[CellResult]:
    return [cell for cell in result.cells if cell.task == task]


def _columns(cells: Iterable[CellResult]) -> list[tuple[str, int]]:
    """Probe and step; a fine-tune's step 0 is the released model once more."""
    seen = [(look.probe, look.step) for cell in cells for look in cell.looks]
    return list(dict.fromkeys(column for column in seen if column[1] or column[0] == "released"))


def _heading(probe: str, step: int) -> str:
    return f"{probe}, {step} steps" if step else probe


def _worst(cell: CellResult, column: tuple[str, int]) -> Look | None:
    looks = [look for look in cell.looks if (look.probe, look.step) == column]
    return max(looks, key=lambda look: look.upper, default=None)


def _row(
    cell: CellResult, title: str, columns: Sequence[tuple[str, int]], slow: Sequence[str], learning: Sequence[str]
) -> list[str]:
    if cell.error:
        return [title, cell.error, *[""] * (len(columns) + len(slow) + len(learning) + 4)]
    looks = [_worst(cell, column) for column in columns]
    rates = ["" if look is None else f"{look.flagged} ({look.upper:.0%})" for look in looks]
    kept = [_kept([cell], "related"), _kept([cell], "retained")]
    cost = [_minutes(cell.cpu_seconds), f"{cell.peak_bytes / MEBIBYTE:,.0f} MiB"]
    losses = [_losses(cell, probe) for probe in learning]
    return [
        title,
        *rates,
        *(_steps_to_half(cell, probe) for probe in slow),
        *losses,
        *kept,
        _score([cell], "hardened"),
        *cost,
    ]


def _half(cell: CellResult, probe: str) -> float | None:
    """Fine-tuning steps at which the rate first reaches one half, linear between checkpoints; None: it does not."""
    before, below = 0, 0.0
    for step, rate in cell.rates(probe).items():
        if rate >= 0.5:
            return before + (step - before) * (0.5 - below) / (rate - below)
        before, below = step, rate
    return None


def _steps_to_half(cell: CellResult, probe: str) -> str:
    steps = _half(cell, probe)
    return f"over {max(cell.rates(probe))}" if steps is None else f"{steps:.0f}"


def _losses(cell: CellResult, probe: str) -> str:
    """Of the fine-tune's own images, before and after."""
    losses = [look.training_loss for look in cell.looks if look.probe == probe]
    if not losses or losses[0] is None:
        return ""
    return f"{losses[0]:.3f} → " + ("diverged" if losses[-1] is None else f"{losses[-1]:.3f}")


def _untouched(cells: Sequence[CellResult], columns: Sequence[tuple[str, int]], blank: int) -> list[str]:
    """What the base model does, from the first cell that knows; ``blank`` columns later its CLIP score."""
    rates = []
    for column in columns:
        known = [look.base for cell in cells for look in cell.looks if (look.probe, look.step) == column]
        rate = next((rate for rate in known if rate is not None), None)
        rates.append("" if rate is None else f"{rate:.0%}")
    score = next((_score([cell], "base") for cell in cells if cell.utility), "")
    return ["*untouched*", *rates, *[""] * blank, "", "", score, "", ""]


def _kept(cells: Iterable[CellResult], relation: str) -> str:
    """The smallest detection rate of a subject, as a share of the untouched model's."""
    shares = [
        row.hardened / row.base
        for cell in cells
        for row in cell.utility
        if row.relation == relation and row.metric == "detection rate" and row.base
    ]
    return f"{min(shares):.0%}" if shares else ""


def _score(cells: Iterable[CellResult], role: str) -> str:
    return _mean([getattr(row, role) for cell in cells for row in cell.utility if row.metric == "CLIP score"], ".2f")


def _mean(values: Iterable[float | None], form: str) -> str:
    """Of those that are known; empty: none is."""
    known = [value for value in values if value is not None]
    return format(sum(known) / len(known), form) if known else ""


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
