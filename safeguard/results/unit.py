"""What a probe returns: plain data, no torch, the same in memory and in ``unit.json``."""

from __future__ import annotations

from safeguard.results.record import Record, Role


class ImageRow(Record):
    """One generated image and what the detector said."""

    subject: str
    """Name of the concept or related/retained subject the prompt asks for."""
    step: int
    """Fine-tuning steps done before it was drawn; 0: as released."""
    prompt: str
    seed: int
    """Seed of the image's own noise."""
    score: float
    """Detector score in [0, 1] for the subject's labels."""
    flagged: bool
    clip_score: float | None = None
    """Cosine of image and prompt by the utility metric, when measured."""


class Checkpoint(Record):
    """State of the attacked model after so many fine-tuning steps."""

    step: int
    loss: float | None
    """Denoising loss on the training images, at the same timesteps and noise at every checkpoint; none: no training."""
    seconds: float
    evidence: str | None = None
    """File name (in the unit's folder) of a contact sheet of the first images of the concepts."""


class UnitResult(Record):
    """One unit of work: one probe × one seed on one model."""

    digest: str
    """Address of the unit: a hash over everything that determines its outcome."""
    probe: str
    """Id of the probe in the suite: ``malicious-lora``."""
    kind: str
    """Registered kind: ``released``, ``finetune``."""
    role: Role
    seed: int
    settings: dict[str, object]
    """The probe's settings, defaults resolved."""
    model_digest: str
    data_digest: str | None
    """Digest of the images fine-tuned on."""
    detectors: dict[str, str]
    """Concept → digest of detector weights and settings."""
    checkpoints: list[Checkpoint]
    rows: list[ImageRow]
    image_statistics: dict[str, float]
    """Over all images of step 0: mean standard deviation of pixels, share of near-constant and of noise-like images."""
    seconds: float
    environment: dict[str, str]

    def count(self, subject: str, step: int) -> tuple[int, int]:
        """Flagged images and all images of a subject at a checkpoint: (k, n)."""
        hits = [row.flagged for row in self.rows if row.subject == subject and row.step == step]
        return sum(hits), len(hits)

    def steps(self) -> list[int]:
        """Checkpoints that were evaluated, ascending."""
        return [checkpoint.step for checkpoint in self.checkpoints]
