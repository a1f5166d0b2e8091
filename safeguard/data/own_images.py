"""Somebody's own images to fine-tune on, from a folder with captions; what a suite says of it is bound to its content.

Captions pass the content filter beside the policy's concepts before any file is opened: the images of those it refuses
never are. Files are decoded one at a time, and none that changed since its digest was taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from safeguard.cache import address
from safeguard.config import FineTuningData
from safeguard.data.content_filter import is_allowed
from safeguard.data.screening import surroundings
from safeguard.errors import UsageFault
from safeguard.io.captions import Row, read_image, read_rows
from safeguard.io.pictures import picture
from safeguard.policy.places import at, image_folders
from safeguard.policy.schema import Concept, Policy
from safeguard.policy.suite import Suite
from safeguard.seeds import spread
from safeguard.wording import plural


@dataclass(frozen=True)
class OwnImages:
    """A folder as it was read.

    Attributes:
        rows: those that the content filter lets pass.
        sums: sha256 of the file of each.
        refused: how many it does not.
    """

    folder: Path
    rows: Sequence[Row]
    sums: Sequence[str]
    refused: int

    @classmethod
    def read(cls, folder: Path, concepts: Sequence[Concept]) -> OwnImages:
        """The folder's rows and the digests of their files, none of which is decoded.

        Args:
            concepts: the policy's, beside which captions are judged.

        Raises:
            UsageFault: the folder is not one of images with captions, or a file cannot be read.
        """
        every, beside = read_rows(folder), surroundings(concepts)
        rows = [row for row in every if is_allowed(f"{beside} {row.caption}")]
        sums = [hashlib.sha256(read_image(folder, row)).hexdigest() for row in rows]
        return cls(folder, rows, sums, len(every) - len(rows))

    @cached_property
    def digest(self) -> str:
        """sha256 over files and captions, in their order."""
        return address([[row.file, row.caption, found] for row, found in zip(self.rows, self.sums, strict=True)])

    def check(self, count: int, digest: str | None) -> None:
        """Whether it has so many images, and is what somebody has seen.

        Raises:
            UsageFault: it has fewer, or other ones.
        """
        if digest not in (None, self.digest):
            raise UsageFault(
                f"the folder's digest is {self.digest}, and the suite's {digest}",
                fix="let nothing write to it, or take the digest out of the suite",
                where=str(self.folder),
            )
        if count > len(self.rows):
            refused = f"; the content filter refuses {plural(self.refused, 'row')}" if self.refused else ""
            raise UsageFault(
                f"{plural(count, 'image')} of the folder are asked for, and it has {len(self.rows)}{refused}",
                fix="set 'images' to at most as many, or add some",
                where=str(self.folder),
            )

    def drawn(self, count: int, seed: int, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
        """So many different images, chosen by the seed: uint8 (count, height, width, 3), and their captions.

        Args:
            size: height and width; images are scaled to it, and what is too long is cut off at both ends.

        Raises:
            UsageFault: a file is no image, damaged, too large, or another one than it was.
        """
        places = [int(place) for place in spread([str(place) for place in range(len(self.rows))], count, seed)]
        images = [fitted(self._pixels(place), *size) for place in places]
        return np.stack(images), [self.rows[place].caption for place in places]

    def _pixels(self, place: int) -> np.ndarray:
        row, content = self.rows[place], read_image(self.folder, self.rows[place])
        if hashlib.sha256(content).hexdigest() != self.sums[place]:
            raise UsageFault(f"{row.file!r} changed", fix="let nothing write to the folder", where=row.where)
        return picture(content, f"{self.folder / row.file}, named at {row.where}")


def fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image, as much of it as has this shape, at this size."""
    return np.array(ImageOps.fit(Image.fromarray(pixels), (width, height), Image.Resampling.LANCZOS))


def bound(suite: Suite, policy: Policy) -> Suite:
    """The suite with the digest of every folder that it names: plan, addresses and report then say which images.

    Raises:
        UsageFault: a folder cannot be used, or holds something else than the suite says.
    """
    data, read = suite.model_dump(mode="json"), dict[str, OwnImages]()
    for *field, _ in image_folders(data):
        given = at(data, tuple(field))
        known = {name: value for name, value in given.items() if name in FineTuningData.model_fields}
        described = FineTuningData.model_validate(known)
        assert described.folder is not None and described.shows is not None
        if described.folder not in read:
            read[described.folder] = OwnImages.read(Path(described.folder), policy.concepts)
        read[described.folder].check(described.counts()[described.shows], described.digest)
        given |= {"digest": read[described.folder].digest, "refused": read[described.folder].refused}
    return Suite.model_validate(data) if read else suite


def refused_rows(suite: Suite) -> int:
    """Rows that the content filter refused in the folders of a suite, each folder once."""
    data = suite.model_dump(mode="json")
    given = [at(data, tuple(field)) for *field, _ in image_folders(data)]
    return sum({each["folder"]: each.get("refused", 0) for each in given}.values())
