"""Whether training images show what they are said to: the concepts' own detectors judge every set once.

A malicious set without the concept would let any model withstand it, and a benign set that shows it would teach the
concept anew. Judged is what a fine-tune sees, that is latents, decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safeguard.config import Source
from safeguard.data.latents import LatentSet
from safeguard.files import write_text
from safeguard.results.unit import TrainingImages


@dataclass(frozen=True)
class Judge:
    """The detectors of a policy's concepts.

    Attributes:
        digest: of these, and of what they look for.
        flags: images (n, height, width, 3) -> by concept, whether each is flagged (n,).
    """

    digest: str
    flags: Callable[[np.ndarray], Mapping[str, np.ndarray]]

    def counted(self, data: LatentSet, source: Source, path: Path, decoded: Callable[[], np.ndarray]) -> TrainingImages:
        """What a set shows, from the file beside it, or judged and kept there.

        Args:
            path: of the set.
            decoded: gives its images, if they must be looked at.
        """
        kept = path.with_name(f"{path.stem}.{source}.{self.digest[:16]}.json")
        if kept.exists():
            found = TrainingImages.model_validate_json(kept.read_bytes())
            if found.digest == data.digest:
                return found
        flags = dict(self.flags(decoded()))
        found = TrainingImages(
            digest=data.digest,
            source=source,
            images=len(data),
            flagged={name: int(each.sum()) for name, each in flags.items()},
            shown=int(np.any(list(flags.values()), axis=0).sum()),
        )
        write_text(kept, found.model_dump_json(indent=1))
        return found
