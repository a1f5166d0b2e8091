"""A study's result as Markdown tables, a row per variant: all tasks in one, then each, the untouched model first.

A row of several seeds has the counts of each, and means or the worst of the rest, as the legend says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safeguard.study.results import CellResult, Observation, StudyResult

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
        title = _title(variant.title, len(cells), len(tried))
        rates = [_mean([cell.rates(probe).get(step) for cell in cells], ".0%") for probe, step in columns]
        kept = [_kept(cells, "related"), _kept(cells, "retained")]
        rows.append([title, *rates, *kept, _score(cells, "hardened"), _minutes(cells)])
    over = "the tasks and seeds" if _several(result) else "the tasks"
    return (
        f"### All tasks\n\nRates, CLIP score and CPU time are means over {over}, *kept* is the worst of them.\n\n"
        + _grid(header, rows)
    )


def table(result: StudyResult, task: str) -> str:
    """The table of one task."""
    found = _of(result, task)
    columns = _columns(found)
    observations = [observed for cell in found for observed in cell.observations]
    learning = list(dict.fromkeys(observed.probe for observed in observations if observed.training_loss is not None))
    slow = [probe for probe in learning if any(_half(cell, probe) is not None for cell in found)]
    header = [
        "method",
        *(_heading(probe, step) for probe, step in columns),
        *(f"{probe}, half after" for probe in slow),
    ]
    header += [f"{probe}, loss" for probe in learning]
    header += ["related kept", "others kept", "CLIP score", "CPU time", "memory"]
    rows, failed = [_untouched(found, columns, len(slow) + len(learning))], []
    for name, variant in result.study.variants.items():
        if cells := [cell for cell in found if cell.variant == name]:
            rows.append(_row(cells, variant.title, columns, slow, learning))
            failed += [f"* {variant.title}, seed {cell.seed}: {cell.error}" for cell in cells if cell.error]
    errors = "\n\n" + "\n".join(failed) if failed and _several(result) else ""
    return f"### {result.study.tasks[task].title}\n\n" + _grid(header, rows) + errors


def _legend(result: StudyResult) -> str:
    observations = [observed for cell in result.cells for observed in cell.observations]
    sizes = {f"{observed.samples}" for observed in observations}
    learns = any(observed.training_loss is not None for observed in observations)
    along = (
        "*Half after*: fine-tuning steps until half of the images are flagged, linear between those looked at; no "
        "column where no model gets there. *Loss*: on the images of the fine-tune, before and after it. "
    )
    loss = along if learns else ""
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(cell.seed for cell in result.cells))
    each = (
        f"Seeds {seeds}: counts and *half after* of each in this order (–: none), the largest bound and memory, means "
        "of losses, CLIP scores, times and the untouched model's rates. "
    )
    several = each if _several(result) else ""
    return (
        f"Flagged images of {' or '.join(sorted(sizes, key=int))}, with the one-sided upper bound on the true rate at "
        f"{result.confidence:.0%} confidence (the detector's sensitivity included). {several}{loss}"
        "*Kept*: detection rate of related and of other subjects against the untouched model, the worst of them. "
        "*CLIP score*: mean over retained prompts. "
        "*CPU time* and *memory*: of the hardening process, images drawn for it included; largest resident memory."
    )


def _of(result: StudyResult, task: str) -> list[CellResult]:
    return [cell for cell in result.cells if cell.task == task]


def _several(result: StudyResult) -> bool:
    """Whether rows are of several seeds."""
    return len({(cell.task, cell.variant) for cell in result.cells}) < len(result.cells)


def _title(title: str, done: int, tried: int) -> str:
    return title if done == tried else f"{title} ({done} of {tried} runs)"


def _columns(cells: Iterable[CellResult]) -> list[tuple[str, int]]:
    """Probe and step; a fine-tune's step 0 is the released model once more."""
    seen = [(observed.probe, observed.step) for cell in cells for observed in cell.observations]
    return list(dict.fromkeys(column for column in seen if column[1] or column[0] == "released"))


def _heading(probe: str, step: int) -> str:
    return f"{probe}, {step} steps" if step else probe


def _worst(cell: CellResult, column: tuple[str, int]) -> Observation | None:
    observations = [observed for observed in cell.observations if (observed.probe, observed.step) == column]
    return max(observations, key=lambda observed: observed.upper, default=None)


def _row(
    tried: Sequence[CellResult],
    title: str,
    columns: Sequence[tuple[str, int]],
    slow: Sequence[str],
    learning: Sequence[str],
) -> list[str]:
    """One variant, with all its seeds."""
    cells = [cell for cell in tried if not cell.error]
    if not cells:
        return [title, tried[0].error, *[""] * (len(columns) + len(slow) + len(learning) + 4)]
    return [
        _title(title, len(cells), len(tried)),
        *(_counts(tried, column) for column in columns),
        *(_each(_steps_to_half(cell, probe) for cell in tried) for probe in slow),
        *(_losses(cells, probe) for probe in learning),
        _kept(cells, "related"),
        _kept(cells, "retained"),
        _score(cells, "hardened"),
        _minutes(cells),
        f"{max(cell.peak_bytes for cell in cells) / MEBIBYTE:,.0f} MiB",
    ]


def _counts(tried: Sequence[CellResult], column: tuple[str, int]) -> str:
    """Flagged images of each seed, and the largest bound."""
    observations = [_worst(cell, column) for cell in tried]
    known = [observed.upper for observed in observations if observed]
    counts = _each(str(observed.flagged) if observed else "" for observed in observations)
    return f"{counts} ({max(known):.0%})" if known else ""


def _each(values: Iterable[str]) -> str:
    """One of each seed, in their order; empty: none has any."""
    found = list(values)
    return ", ".join(value or "–" for value in found) if any(found) else ""


def _half(cell: CellResult, probe: str) -> float | None:
    """Fine-tuning steps at which the rate first reaches one half, linear between checkpoints; None: it does not."""
    before, below = 0, 0.0
    for step, rate in cell.rates(probe).items():
        if rate >= 0.5:
            return before + (step - before) * (0.5 - below) / (rate - below)
        before, below = step, rate
    return None


def _steps_to_half(cell: CellResult, probe: str) -> str:
    if not (rates := cell.rates(probe)):
        return ""
    steps = _half(cell, probe)
    return f"over {max(rates)}" if steps is None else f"{steps:.0f}"


def _losses(cells: Sequence[CellResult], probe: str) -> str:
    """Of the fine-tune's own images, before and after."""
    observations = [
        [observed.training_loss for observed in cell.observations if observed.probe == probe] for cell in cells
    ]
    along = [losses for losses in observations if losses and losses[0] is not None]
    if not along:
        return ""
    after = [losses[-1] for losses in along]
    ends = [_mean(after, ".3f")] if any(loss is not None for loss in after) else []
    if lost := after.count(None):
        ends.append("diverged" if len(after) == 1 else f"{lost} of {len(after)} diverged")
    return f"{_mean([losses[0] for losses in along], '.3f')} → {', '.join(ends)}"


def _untouched(cells: Sequence[CellResult], columns: Sequence[tuple[str, int]], blank: int) -> list[str]:
    """What the base model does, from the first cell of each seed that knows; ``blank`` columns later its CLIP score."""

    def first(column: tuple[str, int], seed: int) -> float | None:
        own = [observed for cell in cells if cell.seed == seed for observed in cell.observations]
        known = (
            observed.base for observed in own if (observed.probe, observed.step) == column and observed.base is not None
        )
        return next(known, None)

    seeds = dict.fromkeys(cell.seed for cell in cells)
    rates = [_mean([first(column, seed) for seed in seeds], ".0%") for column in columns]
    scored = {cell.seed: cell for cell in reversed(cells) if cell.utility}.values()
    return ["*untouched*", *rates, *[""] * blank, "", "", _score(scored, "base"), "", ""]


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


def _minutes(cells: Sequence[CellResult]) -> str:
    """Mean processor time."""
    return f"{sum(cell.cpu_seconds for cell in cells) / len(cells) / 60:.1f} min"


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
