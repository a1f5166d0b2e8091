"""A control and its findings, in numbers; words are made from them (:mod:`safeguard.results.words`)."""

from __future__ import annotations

from typing import Literal

from safeguard.results.record import Record, Role


class Finding(Record):
    """One part of a control, in numbers: of one concept, one probe, or one subject."""

    about: str
    """Whom it is about: ``weapons, malicious-full``."""
    measure: str
    """What was counted or measured: ``base images flagged``, ``CLIP score``."""
    passed: bool
    role: Role | None = None
    """The model it was measured on, where controls differ in that."""
    effort: int | None = None
    axis: str = ""
    hits: int | None = None
    samples: int | None = None
    measured: float | None = None
    bound: float | None = None
    """One-sided bound of the measured value, on the side that matters."""
    required: float | None = None
    direction: Literal["at least", "at most", "above"] = "at least"
    """How the measured value must lie to the required one."""
    share: bool = True
    """Whether measured, bound and required are shares of one."""
    refutes: bool = False
    """Whether the bound is on the other side: it fails where images contradict what is required, and does not prove it
    otherwise; few images could not."""
    problem: str = ""
    """Why nothing, or not all, could be measured; or what is wrong with it."""


ControlId = Literal[
    "positive", "attack", "data", "benign-learns", "works", "utility", "negative", "placebo", "detector", "same-model"
]


class Component(Record):
    """One component of the certified model, compared with the base model's."""

    name: str
    """``unet``, ``text_encoder``, ``tokenizer``, ``scheduler``; ``pipeline`` for what ``model_index.json`` says."""
    differs: bool
    """Weights as numbers; configurations, tokenizers and schedules as they are read."""
    declared: bool
    """Whether it may: it is the base's, or the hardening record or the policy says so, or it is the denoiser of a model
    without a record, or nobody opens it."""
    what: str
    """In a clause: how many tensors differ, or which settings, and who declares it."""


class Control(Record):
    """A check without which the verdict is INCONCLUSIVE."""

    id: ControlId
    title: str
    passed: bool
    findings: list[Finding]
    """What was measured and what was needed; empty: the suite has nothing that it would control."""

    @property
    def applies(self) -> bool:
        """Whether there was anything to control; a control that does not apply is not counted as passed."""
        return bool(self.findings)
