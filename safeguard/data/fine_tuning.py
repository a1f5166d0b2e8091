"""Images to fine-tune on, as :class:`safeguard.config.FineTuningData` describes them, for attacks and for hardening.

The untouched base model draws the images of every source by itself, from prompts and noise that the seed gives, so they
are the same for every model that is attacked; somebody's own images it encodes. What attacks see is kept on disk under
an address of all that determines it, so that the base model need not be in memory when another model is attacked, and
other processes find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from safeguard.cache import address
from safeguard.config import FineTuningData, Source
from safeguard.data.judging import Judge
from safeguard.data.latents import LatentSet, encode, generate
from safeguard.data.own_images import OwnImages
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import PolicyFault, UsageFault
from safeguard.io.checkpoint import held
from safeguard.policy.schema import Policy, Subject
from safeguard.results.unit import TrainingImages
from safeguard.seeds import derive, spread


def subjects_of(policy: Policy, source: Source) -> list[Subject]:
    """Whose images a policy's fine-tunes on that source see."""
    return {"concept": list[Subject](policy.concepts), "related": policy.related, "retain": list(policy.retain)}[source]


def missing(policy: Policy, description: FineTuningData) -> list[Source]:
    """The sources that a description names and the policy has no subject of."""
    return [source for source in description.shares if not subjects_of(policy, source)]


@dataclass(frozen=True)
class Part:
    """The images of one source: so many, for these prompts, or from a folder whose content has that digest."""

    source: Source
    count: int
    prompts: tuple[str, ...]
    folder: str | None = None
    digest: str | None = None


def parts(description: FineTuningData, policy: Policy, seed: int) -> list[Part]:
    """What a description means under a policy; the seed chooses among prompts, which keep the policy's order.

    Raises:
        PolicyFault: the policy declares no subject of one of the sources.
    """
    if lacking := missing(policy, description):
        raise PolicyFault(
            f"a fine-tune needs {lacking[0]!r} images, but the policy declares no such subject",
            fix="declare related subjects of a concept and retained subjects, or fine-tune on something else",
        )
    found = []
    for source, count in description.counts().items():
        if source == description.shows:
            found.append(Part(source, count, (), description.folder, description.digest))
            continue
        every = [prompt for subject in subjects_of(policy, source) for prompt in subject.prompt_list]
        chosen = every
        if description.prompts is not None:
            few = spread(every, min(description.prompts, len(every)), derive(seed, "prompts", source))
            chosen = [prompt for prompt in every if prompt in few]
        found.append(Part(source, count, tuple(chosen)))
    return found


def check_drawn(description: FineTuningData) -> None:
    """Refuse images of a folder where hardening looks ahead: what it learns would not follow from the policy.

    Raises:
        PolicyFault: the description names a folder.
    """
    if description.folder is not None:
        raise PolicyFault(
            f"hardening draws its images, and cannot take them from the folder {description.folder!r}",
            fix="name folders in the attacks of a suite, and sources in a policy",
        )


def joined(sets: Sequence[LatentSet]) -> LatentSet:
    """All of several sets; one as it is."""
    return LatentSet.join(sets) if len(sets) > 1 else sets[0]


class DataSets:
    """The training sets of attacks under one policy.

    Their prompts and noise follow from the nonce, as all of an examination does: all models that are compared learn
    from the same images, and nobody who hardens one knows on which it will be attacked.

    Args:
        policy: whose subjects they show.
        base_digest: of the model that draws them.
        code: digest of the code that draws them.
        folder: where they are kept.
        device: where they are used.
        exam: seed of the examination (:func:`safeguard.seeds.examination`).
        judge: what says whether images show a concept; none: nobody looks.

    Attributes:
        base: the model that draws what is not there yet; None while it is not in memory.
        used: digests of the sets that were handed out, until somebody clears the list.
        looked: what they show, by source, likewise.
    """

    def __init__(
        self,
        policy: Policy,
        base_digest: str,
        code: str,
        folder: Path,
        device: torch.device,
        exam: int,
        judge: Judge | None = None,
    ) -> None:
        self.base: DiffusionModel | None = None
        self.used: list[str] = []
        self.looked: list[TrainingImages] = []
        self._policy, self._base_digest, self._code = policy, base_digest, code
        self._folder, self._device, self._exam, self._judge = folder, device, exam, judge
        self._sets: dict[Path, LatentSet] = {}
        self._seen: dict[tuple[Path, Source], TrainingImages] = {}

    def get(self, description: FineTuningData, seed: int) -> LatentSet:
        """The images of a description, whose prompts and noise are the seed's.

        Raises:
            PolicyFault: the policy declares no such subject.
            UsageFault: a folder cannot be used; the set was never drawn, and the base model is not in memory.
        """
        chosen = parts(description, self._policy, derive(self._exam, "training prompts", seed))
        found = joined([self._part(part, seed) for part in chosen])
        if found.digest not in self.used:
            self.used.append(found.digest)
        return found

    def _part(self, part: Part, seed: int) -> LatentSet:
        drawn = derive(self._exam, "probe data", part.source, part.count, seed)
        what = {"folder": part.digest} if part.folder else {"prompts": part.prompts}
        facts = {"base": self._base_digest, "code": self._code, "count": part.count} | what
        path = self._folder / f"{address(facts | {'seed': drawn})}.safetensors"
        if path not in self._sets:
            with held(path, waiting=lambda: None):  # another process may be drawing it
                self._sets[path] = self._load(path) if path.exists() else self._draw(path, part, drawn)
        if self._judge is not None:
            self._look(self._judge, path, part.source)
        return self._sets[path]

    def _look(self, judge: Judge, path: Path, source: Source) -> None:
        """Note what a set shows; it is judged once and the counts are kept beside it."""
        if (path, source) not in self._seen:
            with held(path, waiting=lambda: None):
                data = self._sets[path]
                self._seen[path, source] = judge.counted(
                    data, source, path, lambda: self._drawer(path).decode(data.mean)
                )
        if self._seen[path, source] not in self.looked:
            self.looked.append(self._seen[path, source])

    def _load(self, path: Path) -> LatentSet:
        return LatentSet.load(path, self._device)

    def _draw(self, path: Path, part: Part, seed: int) -> LatentSet:
        base = self._drawer(path)
        make = self._encoded if part.folder else self._generated
        found = make(base, part, seed)
        found.save(path)
        return found

    def _drawer(self, path: Path) -> DiffusionModel:
        if self.base is None:
            raise UsageFault(
                "these training images were not drawn before the model was attacked",
                fix="Attack.draw() and training_set() name all the images that run() asks for",
                where=str(path),
            )
        return self.base

    def _generated(self, base: DiffusionModel, part: Part, seed: int) -> LatentSet:
        return generate(base, part.prompts, part.count, seed=seed)

    def _encoded(self, base: DiffusionModel, part: Part, seed: int) -> LatentSet:
        """Somebody's own images."""
        assert part.folder is not None
        if part.digest is None:
            raise UsageFault(
                "nobody has said what lies in the folder", fix="read the suite beside its policy", where=part.folder
            )
        own = OwnImages.read(Path(part.folder), self._policy.concepts)
        own.check(part.count, part.digest)
        side = base.latent_shape[-1] * base.pipeline.vae_scale_factor
        return encode(base, *own.drawn(part.count, seed, (side, side)))


class SimulatedDataSets:
    """The training sets of simulated fine-tunes: one for every choice of prompts, however many simulations ask for it.

    An attack and a simulation have the same numbers, and prompts chosen alike; never the same noise, and the same
    choice by chance only: what a certificate rests on was not looked at before.

    Args:
        base: the model that draws them.
    """

    def __init__(self, base: DiffusionModel, policy: Policy) -> None:
        self._base, self._policy = base, policy
        self._sets: dict[Part, LatentSet] = {}

    def get(self, description: FineTuningData, seed: int) -> LatentSet:
        """The images of a description, for prompts that the seed chooses.

        Raises:
            PolicyFault: the policy declares no such subject, or the images are in a folder.
        """
        check_drawn(description)
        return joined([self._part(part) for part in parts(description, self._policy, seed)])

    def _part(self, part: Part) -> LatentSet:
        if part not in self._sets:
            drawn = derive(self._policy.seed, "simulated data", part.source, part.count, *part.prompts)
            self._sets[part] = generate(self._base, part.prompts, part.count, seed=drawn)
        return self._sets[part]
