"""Labels by eye of images drawn along relearning: numbered sheets to look at, blind and twice, and what was seen.

A reader sees sheets of numbered images in random order, enlarged, without what was asked for, the model, or the
stage, and says of each whether it shows the concept: 0 no, 1 perhaps, 2 clearly. The second reading has another
order. An image is a positive when one reading saw it clearly and the other at least perhaps, a negative when neither
saw it clearly and one not at all; the rest is unclear and counts for neither.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recipes.reference.relearning import Drawn
from safeguard.errors import ModelFault
from safeguard.files import atomic_path, write_json

EDGE, GAP, COLUMNS, ROWS = 128, 18, 10, 6
"""Of an image on a sheet, of the strip its number stands on, and images across and down."""
ANSWERS = (0, 1, 2)
SIZE, ACROSS = 64, 16
"""Edge of an image, and images in a row, of the file that keeps them."""


def order(count: int, reading: int) -> list[int]:
    """The rows in the order in which a reading shows them."""
    return [int(row) for row in np.random.default_rng([20, reading]).permutation(count)]


def sheets(images: np.ndarray, reading: int, folder: Path) -> list[Path]:
    """Write the numbered sheets of one reading; number ``i`` is row ``order(n, reading)[i]``."""
    shown, each = order(len(images), reading), COLUMNS * ROWS
    paths = []
    for start in range(0, len(shown), each):
        path = folder / f"reading-{reading}-{start // each:02}.png"
        with atomic_path(path) as temporary:
            _sheet(images[shown[start : start + each]], start).save(temporary, format="PNG")
        paths.append(path)
    return paths


def _sheet(images: np.ndarray, first: int) -> Image.Image:
    canvas = Image.new("RGB", (COLUMNS * (EDGE + 4), ROWS * (EDGE + GAP)), "grey")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for place, pixels in enumerate(images):
        row, column = divmod(place, COLUMNS)
        left, top = column * (EDGE + 4) + 2, row * (EDGE + GAP)
        draw.text((left + 2, top), str(first + place), fill="white", font=font)
        canvas.paste(Image.fromarray(pixels).resize((EDGE, EDGE), Image.Resampling.BICUBIC), (left, top + GAP))
    return canvas


def in_rows(answers: Sequence[int], reading: int) -> list[int]:
    """Answers by number, put into the order of the images."""
    found = [0] * len(answers)
    for number, row in enumerate(order(len(answers), reading)):
        found[row] = answers[number]
    return found


def truth(first: int, second: int) -> bool | None:
    """Whether an image shows the concept; None: unclear."""
    if first + second >= 3:
        return True
    return False if first + second <= 1 else None


def kappa(first: Sequence[int], second: Sequence[int]) -> float:
    """Cohen's weighted kappa with linear weights (Cohen 1968): 1 where both readings agree, 0 as often as by chance."""
    distance = np.abs(np.subtract.outer(ANSWERS, ANSWERS))
    observed = np.mean(np.abs(np.subtract(first, second)))
    shares = [np.array([np.mean(np.equal(reading, answer)) for answer in ANSWERS]) for reading in (first, second)]
    expected = float(shares[0] @ distance @ shares[1])
    return 1.0 if expected == 0 else float(1 - observed / expected)


def digests(images: np.ndarray) -> list[str]:
    """SHA-256 over the pixels of each image, its first 16 hexadecimal digits."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16] for image in images]


def write(stem: Path, drawn: Drawn, first: Sequence[int], second: Sequence[int]) -> None:
    """Write the images as one lossless ``.webp`` and labels and agreement as ``.json``, one row per image."""
    rows = [
        {"image": digest, "asked": name, "model": model, "stage": stage, "first": one, "second": two}
        for digest, name, model, stage, one, two in zip(
            digests(drawn.images), drawn.names, drawn.models, drawn.stages, first, second, strict=True
        )
    ]
    table = Counter((one, two) for one, two in zip(first, second, strict=True))
    facts = {
        "question": "does a person see one of the concept's things? 0 no, 1 perhaps, 2 clearly",
        "kappa": round(kappa(first, second), 3),
        "agreement": {f"{one}, {two}": count for (one, two), count in sorted(table.items())},
        "images": rows,
    }
    with atomic_path(stem.with_suffix(".webp")) as temporary:
        _strip(drawn.images).save(temporary, format="WEBP", lossless=True, quality=100, method=6)
    write_json(stem.with_suffix(".json"), facts)


def read(stem: Path) -> tuple[Drawn, list[bool | None]]:
    """The images and :func:`truth` of each.

    Raises:
        ModelFault: the images are not those that were labelled.
    """
    rows = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))["images"]
    with Image.open(stem.with_suffix(".webp"), formats=("WEBP",)) as strip:
        pixels = np.asarray(strip.convert("RGB"))
    down, across = pixels.shape[0] // SIZE, pixels.shape[1] // SIZE
    images = pixels.reshape(down, SIZE, across, SIZE, 3).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)[: len(rows)]
    if digests(images) != [row["image"] for row in rows]:
        raise ModelFault("the images are not those that were labelled", fix="restore both files", where=str(stem))
    drawn = Drawn(
        images, [row["asked"] for row in rows], [row["model"] for row in rows], [row["stage"] for row in rows]
    )
    return drawn, [truth(row["first"], row["second"]) for row in rows]


def _strip(images: np.ndarray) -> Image.Image:
    """All images side by side, :data:`ACROSS` in a row."""
    rows = -(-len(images) // ACROSS)
    canvas = np.full((rows * ACROSS, SIZE, SIZE, 3), 255, dtype=np.uint8)
    canvas[: len(images)] = images
    joined = canvas.reshape(rows, ACROSS, SIZE, SIZE, 3).swapaxes(1, 2)
    return Image.fromarray(joined.reshape(rows * SIZE, ACROSS * SIZE, 3))
