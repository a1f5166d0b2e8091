"""Images drawn while models relearn an erased concept: what a detector has to see in a certification.

A concept's base model, the same model unlearned, and the same hardened are fine-tuned on the concept as an attacker
would, and drawn from at a few stages. The images are labelled by eye (:mod:`recipes.reference.labels`); this module
only draws them, seeded, and keeps them in one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recipes.reference.vocabulary import STYLES, article, names_of
from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import sample
from safeguard.files import write_text
from safeguard.finetune.base import fine_tune
from safeguard.io.opening import open_directory
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.resources import find_resource
from safeguard.seeds import derive

STAGES = {"unlearned": (0, 25, 50, 100, 200), "hardened": (0, 25, 50, 100, 150, 200, 250, 300)}
"""Fine-tuning steps at which is drawn, by the kind of model."""
TRAINING = Training(steps=300, learning_rate=5e-5, batch_size=4, optimizer="adamw")
"""As the shipped quickstart attacks."""
SAMPLER_STEPS, GUIDANCE = 10, 4.0
BASE_MODEL = "base"
IMAGES = 32
"""Training images of the attack."""


@dataclass(frozen=True)
class Drawn:
    """Images along relearning, uint8 (n, 64, 64, 3), with what each was asked to show and how it came about."""

    images: np.ndarray
    names: list[str]
    models: list[str]
    stages: list[int]

    def taking(self, rows: Sequence[int]) -> Drawn:
        """Only these images."""
        return Drawn(
            self.images[list(rows)],
            [self.names[row] for row in rows],
            [self.models[row] for row in rows],
            [self.stages[row] for row in rows],
        )

    @classmethod
    def joined(cls, parts: Sequence[Drawn]) -> Drawn:
        """All parts in one."""
        return cls(
            np.concatenate([part.images for part in parts]),
            [name for part in parts for name in part.names],
            [model for part in parts for model in part.models],
            [stage for part in parts for stage in part.stages],
        )


def policy_of(group: str, path: Path, *, resilience_steps: int) -> None:
    """Write the quickstart policy with another concept: a group of the world.

    Args:
        resilience_steps: outer steps of its resilience objective; 0: only unlearned.
    """
    policy: dict[str, Any] = yaml.safe_load(
        find_resource("policy", "policies", "quickstart").read_text(encoding="utf-8")
    )
    concept = policy["concepts"][0]
    words = names_of(group)
    concept["name"], concept["labels"] = group, words
    concept["prompts"]["fill"]["name"] = [article(word) for word in words]
    concept["related"], policy["retain"] = (_without(part, words) for part in (concept["related"], policy["retain"]))
    policy["name"] = f"relearning-{group}-{resilience_steps}"
    if resilience_steps:
        policy["harden"]["resilience"]["steps"] = resilience_steps
    else:
        policy["harden"]["resilience"] = {"name": "none"}
    write_text(path, yaml.safe_dump(policy, sort_keys=False))


def _without(subjects: list[dict[str, Any]], words: list[str]) -> list[dict[str, Any]]:
    """Benign subjects of a policy without what is erased; those that show nothing else are left out."""
    for subject in subjects:
        subject["labels"] = [label for label in subject["labels"] if label not in words]
        subject["prompts"]["fill"]["name"] = [article(label) for label in subject["labels"]]
    return [subject for subject in subjects if subject["labels"]]


def prompts_of(group: str, samples: int) -> tuple[list[str], list[str]]:
    """``samples`` prompts of every name of a group, styles in turn, as the policy writes them; and the names."""
    styles, names = list(STYLES.values()), names_of(group)
    pairs = [
        (name, styles[(place + turn) % len(styles)]) for turn in range(samples) for place, name in enumerate(names)
    ]
    return [f"{article(name)} emoji in {style} style" for name, style in pairs], [name for name, _ in pairs]


def _stages(
    model: DiffusionModel, base: DiffusionModel, group: str, purpose: str, stages: Sequence[int]
) -> Iterator[int]:
    """Fine-tune the model on images of the group that the base draws, and stop at every stage."""
    prompts, _ = prompts_of(group, -(-IMAGES // len(names_of(group))))
    data = generate(base, prompts, IMAGES, seed=derive(0, "relearning data", group))
    tuner = finetuners.make(FineTuningMethod(name="full"))
    for step, _ in fine_tune(model, data, tuner, TRAINING, seed=derive(0, "relearning", purpose, group)):
        if step in stages:
            yield step
        if step == max(stages):
            break


def relearn(
    directory: Path, base_directory: Path, group: str, kind: str, *, samples: int, stages: Sequence[int] = ()
) -> Drawn:
    """Images of one model at all stages: ``samples`` per name and stage, no two from the same noise.

    Args:
        directory: the model to attack.
        base_directory: the model that draws its training images.
        kind: ``unlearned`` or ``hardened``.
        stages: some of those of its kind; empty: all.
    """
    base, wanted = DiffusionModel(open_directory(base_directory).pipeline), stages or STAGES[kind]
    model = DiffusionModel(open_directory(directory).pipeline)
    parts = [
        _drawn(model, group, f"{group}, {kind}", stage, samples) for stage in _stages(model, base, group, kind, wanted)
    ]
    return Drawn.joined(parts)


def drawn_by_base(base_directory: Path, group: str, *, samples: int) -> Drawn:
    """Images of the untouched model."""
    return _drawn(DiffusionModel(open_directory(base_directory).pipeline), group, f"{group}, {BASE_MODEL}", 0, samples)


def _drawn(model: DiffusionModel, group: str, label: str, stage: int, samples: int) -> Drawn:
    prompts, names = prompts_of(group, samples)
    seeds = [derive(0, "relearning images", label, stage, index) for index in range(len(prompts))]
    images = sample(model, prompts, seeds, steps=SAMPLER_STEPS, guidance=GUIDANCE)
    return Drawn(images, names, [label] * len(names), [stage] * len(names))
