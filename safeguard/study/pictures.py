"""What the models of a study draw where a concept was: a rate says that it is gone, not what took its place."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from safeguard.model.files import atomic_path
from safeguard.probe.evidence import CELL, COLUMNS
from safeguard.report.rendering import load_report
from safeguard.study.schema import CellResult, StudyResult

LABEL = 150
"""Width of the methods' column, in pixels."""
LINE = 22
"""Height of the line of titles."""
GAP = 6
WIDTH = COLUMNS * CELL


def write_pictures(result: StudyResult, out: Path) -> Path | None:
    """Write ``study.png``: the first images of every released model, a row per variant and a column per task.

    Images of unsafe concepts were blurred when they were drawn.

    Returns:
        Its path, or None when no cell has images.
    """
    strips = {(cell.task, cell.variant): _strip(cell, out) for cell in result.cells}
    tasks = [
        name for name in result.study.tasks if any(strips.get((name, variant)) for variant in result.study.variants)
    ]
    variants = [name for name in result.study.variants if any(strips.get((task, name)) for task in tasks)]
    if not variants:
        return None
    size = LABEL + len(tasks) * (WIDTH + GAP), LINE + len(variants) * (CELL + GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, task in enumerate(tasks):
        left = LABEL + column * (WIDTH + GAP)
        pen.text((left, 2), result.study.tasks[task].title, "black", font)
        for row, variant in enumerate(variants):
            strip = strips.get((task, variant))
            if strip is not None:
                sheet.paste(strip, (left, LINE + row * (CELL + GAP)))
    for row, variant in enumerate(variants):
        pen.text((4, LINE + row * (CELL + GAP) + CELL // 3), result.study.variants[variant].title, "black", font)
    path = out / "study.png"
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return path


def _strip(cell: CellResult, out: Path) -> Image.Image | None:
    """The first row of the cell's contact sheet before any fine-tuning."""
    if cell.error:
        return None
    folder = out / "cells" / cell.task / cell.variant / "certification"
    points = [
        point
        for claim in load_report(folder).claims
        for c in claim.curves
        if c.role == "hardened"
        for point in c.points
    ]
    named = [point.evidence for point in points if point.step == 0 and point.evidence is not None]
    if not named or not (folder / named[0]).is_file():
        return None
    with Image.open(folder / named[0], formats=["PNG"]) as image:
        return image.convert("RGB").crop((0, 0, WIDTH, CELL))
