"""Real emoji artwork, fetched from pinned npm packages whose digests are checked before a byte is read.

Skin-tone variants, people, flags and symbols are left out; images are composited on white at 64 x 64.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipes.reference.iconify import code_points, icons
from recipes.reference.vocabulary import NAMES, STYLES
from safeguard.errors import EnvironmentFault

SIZE = 64
"""Edge of every image in pixels."""


@dataclass(frozen=True)
class Package:
    """One npm tarball: where the images of a style lie in it, and under which licence."""

    spec: str
    integrity: str
    folder: str
    suffix: str
    licence: str
    credit: str

    @property
    def file_name(self) -> str:
        """The name ``npm pack`` gives the tarball."""
        name, version = self.spec.rsplit("@", 1)
        return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


PACKAGES: dict[str, Package] = {
    "noto": Package(
        "emoji-datasource-google@16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "package/img/google/64/",
        ".png",
        "Apache-2.0",
        "Noto Emoji, Google",
    ),
    "twemoji": Package(
        "emoji-datasource-twitter@16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "package/img/twitter/64/",
        ".png",
        "CC-BY-4.0",
        "Twemoji, Twitter and other contributors",
    ),
    "fluent-3d": Package(
        "@lobehub/fluent-emoji-3d@1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "package/assets/",
        ".webp",
        "MIT",
        "Fluent Emoji, Microsoft",
    ),
    "fluent-flat": Package(
        "@lobehub/fluent-emoji-flat@1.1.0",
        "sha512-lPYCg8+N56MIj+iOgeBeH6AF0tneXxJCvgi41rOTjAWpA5rU2WUcmU1fiIXouEe8GrSTarWCYLY2ML+rdLRHsg==",
        "package/assets/",
        ".svg",
        "MIT",
        "Fluent Emoji, Microsoft",
    ),
    "openmoji": Package(
        "openmoji@17.0.0",
        "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
        "package/color/svg/",
        ".svg",
        "CC-BY-SA-4.0",
        "OpenMoji, HfG Schwäbisch Gmünd",
    ),
    "blob": Package(
        "@iconify-json/noto-v1@1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "package/icons",
        ".json",
        "Apache-2.0",
        "Noto Emoji (v1), Google",
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji@1.2.2",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "package/icons",
        ".json",
        "Apache-2.0",
        "Firefox OS Emoji, Mozilla",
    ),
    "emojione": Package(
        "@iconify-json/emojione-v1@1.2.3",
        "sha512-UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
        "package/icons",
        ".json",
        "CC-BY-SA-4.0",
        "Emoji One (v1)",
    ),
}
"""All sets of artwork, by style."""

DETECTOR_STYLES = ("blob", "fxemoji")
"""Further styles that the detector trains on and the generator does not."""
HELD_OUT = ("openmoji", "emojione")
"""Styles nobody trains on: what the detector is calibrated on, and a downstream user's own images in probes."""

_LEFT_OUT = ("People & Body", "Flags", "Symbols", "Component")


@dataclass(frozen=True)
class Artwork:
    """Images of one or more styles.

    Attributes:
        pixels: uint8 array (n, 64, 64, 3), composited on white.
        codepoints: n Unicode sequences.
        styles: n style ids.
    """

    pixels: np.ndarray
    codepoints: list[str]
    styles: list[str]

    def rows_of_world(self) -> list[int]:
        """Rows whose code points are a name of the reference world."""
        known = {name.codepoints for name in NAMES}
        return [row for row, code in enumerate(self.codepoints) if code in known]


def fetch(style: str, cache: Path) -> Path:
    """The tarball of a style, downloaded by the npm client unless cached; its sha512 is checked either way."""
    package = PACKAGES[style]
    path = cache / package.file_name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", package.spec, "--pack-destination", str(cache)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise EnvironmentFault(
                f"could not fetch {package.spec} with the npm client: {error}",
                fix="install Node.js with npm and check the network, or put the tarball into the cache folder yourself",
                where=str(cache),
            ) from error
    digest = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise EnvironmentFault(
            f"{path.name} is not the pinned file: {digest}", fix="delete it and run again", where=str(path)
        )
    return path


def _normalise(file_stem: str) -> str:
    return "-".join(part for part in file_stem.lower().split("-") if part != "fe0f")


def _decode(data: bytes, suffix: str) -> np.ndarray:
    """One image file as uint8 (64, 64, 3) on white."""
    if suffix == ".svg":
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=4 * SIZE, height=4 * SIZE))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _json(archive_of: str, member: str, cache: Path) -> Any:
    with tarfile.open(fetch(archive_of, cache)) as archive:
        handle = archive.extractfile(member)
        if handle is None:
            raise EnvironmentFault(f"{member} is missing in {archive_of}", fix="delete the cache and run again")
        return json.load(handle)


def _wanted(cache: Path) -> set[str]:
    """Code points of emoji that show a thing: no people, flags, symbols, clock faces or skin tones."""
    return {
        _normalise(row["unified"])
        for row in _json("noto", "package/emoji.json", cache)
        if row["category"] not in _LEFT_OUT and row["subcategory"] not in ("time", "country-flag")
    } | {name.codepoints for name in NAMES}


def _files(style: str, cache: Path) -> Iterator[tuple[str, bytes, str]]:
    """Normalised code points, content and suffix of every image of a style."""
    package = PACKAGES[style]
    if package.suffix == ".json":
        codes = code_points(
            _json("noto", "package/emoji.json", cache), _json("openmoji", "package/data/openmoji.json", cache)
        )
        for code, svg in icons(_json(style, "package/icons.json", cache), codes):
            yield _normalise(code), svg, ".svg"
        return
    with tarfile.open(fetch(style, cache)) as archive:
        for member in archive:
            name = member.name
            if name.startswith(package.folder) and name.endswith(package.suffix):
                handle = archive.extractfile(member)
                if handle is not None:
                    yield _normalise(name[len(package.folder) : -len(package.suffix)]), handle.read(), package.suffix


def load(cache: Path, styles: list[str] | None = None) -> Artwork:
    """All wanted images of the styles (default: the four training styles), duplicates and near-blank ones removed."""
    wanted = _wanted(cache)
    pixels: list[np.ndarray] = []
    codes: list[str] = []
    owners: list[str] = []
    seen: set[bytes] = set()
    for style in styles or list(STYLES):
        for code, data, suffix in _files(style, cache):
            if code not in wanted:
                continue
            image = _decode(data, suffix)
            if image.std() < 4 or image.tobytes() in seen:
                continue
            seen.add(image.tobytes())
            pixels.append(image)
            codes.append(code)
            owners.append(style)
    order = sorted(range(len(codes)), key=lambda row: (owners[row], codes[row]))
    return Artwork(np.stack([pixels[i] for i in order]), [codes[i] for i in order], [owners[i] for i in order])
