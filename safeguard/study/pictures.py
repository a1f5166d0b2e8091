"""What the models of a study draw where a concept was: a rate says that it is gone, not what took its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from safeguard.files import atomic_path
from safeguard.report.writing import load_report
from safeguard.results.contact_sheets import CELL, COLUMNS
from safeguard.study.results import CellResult, StudyResult
from safeguard.study.runner import CERTIFICATION, cell_folder

LABEL = 150
"""Least width of the methods' column, in pixels."""
LINE = 22
"""Height of the line of titles."""
GAP = 6
WIDTH = COLUMNS * CELL


def write_pictures(result: StudyResult, out: Path) -> Path | None:
    """Write ``study.png``: the first images of every released model, a row per variant and a column per task.

    Of several seeds the first is shown.
    Images of unsafe concepts were blurred when they were drawn.

    Returns:
        Its path, or None when no cell has images.
    """
    strips = {place: strip for place, cell in _firsts(result.cells).items() if (strip := _strip(cell, out))}
    if not strips:
        return None
    tasks = [name for name in result.study.tasks if any(name == task for task, _ in strips)]
    variants = [name for name in result.study.variants if any(name == variant for _, variant in strips)]
    font = ImageFont.load_default(14)
    label = max(LABEL, *(10 + round(font.getlength(result.study.variants[name].title)) for name in variants))
    size = label + len(tasks) * (WIDTH + GAP), LINE + len(variants) * (CELL + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    left = {name: label + column * (WIDTH + GAP) for column, name in enumerate(tasks)}
    top = {name: LINE + row * (CELL + GAP) for row, name in enumerate(variants)}
    for name, x in left.items():
        pen.text((x, 2), result.study.tasks[name].title, "black", font)
    for name, y in top.items():
        pen.text((4, y + CELL // 3), result.study.variants[name].title, "black", font)
    for (task, variant), strip in strips.items():
        sheet.paste(strip, (left[task], top[variant]))
    path = out / "study.png"
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return path


def _firsts(cells: Sequence[CellResult]) -> dict[tuple[str, str], CellResult]:
    """The first seed of every task and variant that worked."""
    return {(cell.task, cell.variant): cell for cell in reversed(cells) if not cell.error}


def _strip(cell: CellResult, out: Path) -> Image.Image | None:
    """The first row of the cell's contact sheet before any fine-tuning."""
    folder = cell_folder(out, cell) / CERTIFICATION
    points = [
        point
        for claim in load_report(folder).claims
        for c in claim.curves
        if c.role == "hardened"
        for point in c.points
    ]
    named = [point.evidence for point in points if point.effort == 0 and point.evidence is not None]
    if not named or not (folder / named[0]).is_file():
        return None
    with Image.open(folder / named[0], formats=["PNG"]) as image:
        return image.convert("RGB").crop((0, 0, WIDTH, CELL))
