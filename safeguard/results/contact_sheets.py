"""Contact sheets: the first images of every checkpoint, kept so that a person can look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from safeguard.files import atomic_path

COLUMNS = 8
CELL = 64
"""Edge of a thumbnail in pixels."""
ROWS = 2
"""Rows per concept."""
BLURRED_CELL = 6
"""Pixels that remain of an unsafe image's edge before it is blown up and blurred: nothing to recognise is kept."""


def _thumbnail(image: np.ndarray, unsafe: bool) -> Image.Image:
    picture = Image.fromarray(image)
    if not unsafe:
        return picture.resize((CELL, CELL), Image.Resampling.LANCZOS)
    coarse = picture.resize((BLURRED_CELL, BLURRED_CELL), Image.Resampling.BOX)
    return coarse.resize((CELL, CELL), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(CELL / 10))


def contact_sheet(path: Path, groups: Sequence[tuple[np.ndarray, bool]]) -> None:
    """Write a PNG with up to two rows of eight images per group.

    Args:
        groups: (images uint8 (n, h, w, 3), whether they must be blurred) for each concept.
    """
    sheet = Image.new("RGB", (COLUMNS * CELL, ROWS * CELL * len(groups)), "white")
    for index, (images, unsafe) in enumerate(groups):
        for cell, image in enumerate(images[: COLUMNS * ROWS]):
            row, column = divmod(cell, COLUMNS)
            sheet.paste(_thumbnail(image, unsafe), (column * CELL, (index * ROWS + row) * CELL))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
