"""Image files that nobody vouches for: PNG, JPEG and WebP of bounded size, and nothing else, as RGB pixels.

Names that agree up to ``__`` are variants of one drawing (``axe__1.png``, ``axe__2.png``). Images count by drawing, so
one variant is taken, drawn by the seed; and files with the same pixels are one image.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from safeguard.errors import UsageFault
from safeguard.seeds import derive

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES, MAX_PIXELS, MAX_FILES = 64 * 2**20, 2**24, 100_000
"""Of a file, of an image (4096 x 4096), and in a folder."""
_FIX = "give PNG, JPEG or WebP files of at most 4096 x 4096 pixels"


def read_picture(path: Path) -> np.ndarray:
    """One image as uint8 (height, width, 3); transparent parts are white.

    Raises:
        UsageFault: not an image of these formats, damaged, or too large.
    """
    return picture(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The content of an image file, not decoded.

    Raises:
        UsageFault: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageFault(f"not a readable image: {error}", fix=_FIX, where=str(path)) from error
    if len(content) > MAX_BYTES:
        raise UsageFault(f"the file is larger than {MAX_BYTES // 2**20} MiB", fix=_FIX, where=str(path))
    return content


def picture(content: bytes, where: str) -> np.ndarray:
    """The image that a file holds, as uint8 (height, width, 3); its size is looked at before it is decoded.

    Raises:
        UsageFault: not an image of these formats, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UsageFault(f"the image has {image.width} x {image.height} pixels", fix=_FIX, where=where)
                coloured = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageFault(f"not a readable image: {error}", fix=_FIX, where=where) from error
    canvas = Image.new("RGBA", coloured.size, "white")
    canvas.alpha_composite(coloured)
    return np.array(canvas.convert("RGB"))


def drawings(folder: Path, seed: int = 0) -> list[Path]:
    """Image files directly in a folder, one per drawing, by name.

    Raises:
        UsageFault: it is no folder, or has too many files.
    """
    if not folder.is_dir():
        raise UsageFault("there is no such folder", fix="give a folder of images", where=str(folder))
    inside = folder.resolve()
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and path.resolve().parent == inside
    )
    if len(files) > MAX_FILES:
        raise UsageFault(f"more than {MAX_FILES:,} files", fix="take a sample of them", where=str(folder))
    variants: dict[str, list[Path]] = {}
    for path in files:
        variants.setdefault(path.stem.partition("__")[0], []).append(path)
    return [paths[derive(seed, "variant", name) % len(paths)] for name, paths in variants.items()]


def read_folder(folder: Path, seed: int = 0) -> list[np.ndarray]:
    """The images of :func:`drawings`, each once."""
    found: dict[bytes, np.ndarray] = {}
    for path in drawings(folder, seed):
        image = read_picture(path)
        found.setdefault(repr(image.shape).encode() + image.tobytes(), image)
    return list(found.values())


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in a folder, by name; hidden ones and links out of it are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.resolve().parent == folder.resolve()
    )
