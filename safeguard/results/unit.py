"""What a unit of work found: plain data, no torch, the same in memory and in ``unit.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from safeguard.config import Source
from safeguard.results.record import Record, Role

UNIT_FILE = "unit.json"
"""Of a finished unit, in its folder."""


class ImageRow(Record):
    """One generated image and what the detector said."""

    subject: str
    """Name of the concept or related/retained subject the prompt asks for."""
    effort: int
    """What the attack had spent before it was drawn; 0: as released."""
    prompt: str
    seed: int
    """Seed of the image's own noise."""
    image: str
    """sha256 (hexadecimal) of its pixels, uint8 (height, width, 3), so that drawing it again can be compared."""
    score: float
    """Detector score in [0, 1] for the subject's labels."""
    flagged: bool
    metrics: dict[str, float] = {}
    """Values of the policy's metrics for this image, by name."""


TrialKind = Literal["given", "random", "confirmed"]
"""Whether the suite gave a configuration, it was drawn at random from a declared distribution, or it is the worst that
a search found, trained again with a fresh seed."""


class Trial(Record):
    """One of several fine-tunes that an attack tried, each from the released weights."""

    kind: TrialKind
    """Where its configuration is from."""
    tried: NonNegativeInt
    """Configurations that the attack had tried by then, those that it looked at by itself included."""
    configuration: dict[str, Any]
    """Data, method and training, as a grid takes them."""


class Checkpoint(Record):
    """State of the attacked model after so much effort."""

    effort: int
    loss: float | None
    """The attack's own loss, measured alike at every checkpoint (of a fine-tune: the denoising loss on its images, at
    the same timesteps and noise); none: it has none."""
    seconds: float
    label: str = ""
    """What was done, where efforts count variants: ``stored erasers dropped``; empty: the effort says it."""
    trial: Trial | None = None
    """Which fine-tune was tried, where efforts number configurations."""
    prompts: str | None = None
    """Digest of the prompts that the attack put in the place of the policy's; none: it left them."""
    refused_prompts: int = 0
    """Prompts of the attack that the content filter refused; they were not drawn."""
    image_statistics: dict[str, float] = {}
    """Of what was drawn there: mean standard deviation of pixels, shares of near-constant and noise-like images."""
    evidence: str | None = None
    """File name (in the unit's folder) of a contact sheet of the first images of the concepts."""


class TrainingImages(Record):
    """Images of one source that an attack saw, as the concepts' own detectors judge them."""

    digest: str
    """Of the set."""
    source: Source
    """Whose they are said to be."""
    images: PositiveInt
    flagged: dict[str, NonNegativeInt]
    """Concept -> images that its detector flags."""
    shown: NonNegativeInt
    """Images that the detector of any concept flags."""

    @model_validator(mode="after")
    def _counted(self) -> TrainingImages:
        if max([*self.flagged.values(), 0]) > self.shown or self.shown > self.images:
            raise ValueError(f"of {self.images} images {self.shown} and {self.flagged} cannot be flagged")
        return self


class UnitResult(Record):
    """One unit of work: one probe × one seed on one model."""

    address: str
    """sha256 over :attr:`facts`."""
    facts: dict[str, Any]
    """Everything that determines the outcome (:class:`safeguard.policy.examination.UnitSpec`)."""
    probe: str
    """Id of the probe in the suite: ``malicious-lora``."""
    attack: str
    """Registered name: ``released``, ``finetune``."""
    axis: str
    """What efforts count, in the plural: ``fine-tuning steps``."""
    efforts: list[int]
    """After which efforts the concepts were to be looked for."""
    role: Role
    seed: int
    nonce: str
    """Hexadecimal; with the policy's seed it gives prompts, noise and the attack's randomness."""
    settings: dict[str, object]
    """The attack's settings, defaults resolved."""
    model_digest: str
    data_digests: list[str]
    """Digests of the image sets it trained on."""
    training_images: list[TrainingImages] = []
    """What these show, by source; empty: it saw none, or nobody looked."""
    detectors: dict[str, str]
    """Concept → digest of detector weights and settings."""
    thresholds: dict[str, float]
    """The same detectors → score from which an image is flagged."""
    metrics: dict[str, str]
    """Metric → digest of its weights and settings."""
    checkpoints: list[Checkpoint]
    rows: list[ImageRow]
    image_statistics: dict[str, float]
    """Over all images at effort 0: mean standard deviation of pixels, shares of near-constant and noise-like ones."""
    seconds: float
    cpu_seconds: float
    """Processor time of the process that ran it."""
    environment: dict[str, str]

    def count(self, subject: str, effort: int) -> tuple[int, int]:
        """Flagged images and all images of a subject at a checkpoint: (k, n)."""
        hits = [row.flagged for row in self.rows if row.subject == subject and row.effort == effort]
        return sum(hits), len(hits)

    def checkpoint(self, effort: int) -> Checkpoint | None:
        """The checkpoint at an effort; none: it was not looked at."""
        return next((point for point in self.checkpoints if point.effort == effort), None)

    def evaluated(self) -> list[int]:
        """Efforts of the checkpoints that were evaluated, ascending."""
        return [checkpoint.effort for checkpoint in self.checkpoints]
