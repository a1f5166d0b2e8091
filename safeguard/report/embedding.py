"""Evidence images as ``data:`` URIs: opened with suspicion, shrunk, re-encoded without metadata, blurred where needed.

A contact sheet shows images of every concept of its unit, so one unsafe concept in a report blurs every sheet in it.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFilter

BLURRED_SIDE = 8
"""Shorter side of a blurred sheet, in pixels. Cells are never larger than it, whatever the sheet's layout."""
BLUR_RADIUS = 1.5
MAX_SIDE = 480
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Picture:
    """An image ready to embed, or the reason why there is none."""

    uri: str
    width: int
    height: int
    blurred: bool
    problem: str = ""


def _missing(problem: str) -> Picture:
    return Picture("", 0, 0, False, problem)


def blur(image: Image.Image) -> Image.Image:
    """What remains of a sheet that must not be seen: at most 8 pixels on the shorter side, then a Gaussian blur."""
    shrink = min(1.0, BLURRED_SIDE / min(image.size))
    size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    tiny = image.convert("RGB").resize(size, Image.Resampling.BOX)
    return tiny.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))


def load(run_dir: Path, name: str, *, blurred: bool) -> Picture:
    """Read a PNG of the run directory.

    Args:
        run_dir: the run directory; a path that leads out of it, also by a symbolic link, is refused.
        name: path relative to it.
        blurred: reduce it to :func:`blur` before anything is encoded.

    Returns:
        The picture, or one whose ``problem`` says in words why it cannot be shown; the report shows that instead.
    """
    try:
        path = (run_dir / name).resolve()
        if not path.is_relative_to(run_dir.resolve()):
            return _missing("refused: outside the run directory")
        if not path.is_file():
            return _missing("not in the run directory any more")
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return _missing("refused: too large")
            shown = blur(image) if blurred else image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _missing("not a readable PNG")
    shown.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Picture(_data_uri(shown, lossless=blurred), shown.width, shown.height, blurred)


def _data_uri(image: Image.Image, *, lossless: bool) -> str:
    buffer = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(  # a fresh image: no EXIF, no text chunks, no thumbnails
        buffer, "WEBP", lossless=lossless, quality=82, method=4
    )
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
