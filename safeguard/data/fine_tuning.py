"""Images to fine-tune on: drawn by the untouched base model, the same for every model that is attacked.

A set is kept on disk under an address of all that determines it, so that the base model need not be in memory when
another model is attacked, and other processes find it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from safeguard.cache import address
from safeguard.config import Source
from safeguard.data.latents import LatentSet, generate, spread
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import PolicyFault, UsageFault
from safeguard.io.checkpoint import held
from safeguard.policy.schema import Policy, Subject
from safeguard.seeds import derive


def subjects_of(policy: Policy, source: Source) -> list[Subject]:
    """Whose images a policy's fine-tunes of that kind see."""
    return {"concept": list[Subject](policy.concepts), "related": policy.related, "retain": list(policy.retain)}[source]


class DataSets:
    """The training sets of one policy.

    Args:
        policy: whose subjects they show.
        base_digest: of the model that draws them.
        code: digest of the code that draws them.
        folder: where they are kept.
        device: where they are used.

    Attributes:
        base: the model that draws what is not there yet; None while it is not in memory.
        used: digests of the sets that were handed out, until somebody clears the list.
    """

    def __init__(self, policy: Policy, base_digest: str, code: str, folder: Path, device: torch.device) -> None:
        self.base: DiffusionModel | None = None
        self.used: list[str] = []
        self._policy, self._base_digest, self._code = policy, base_digest, code
        self._folder, self._device = folder, device
        self._sets: dict[Path, LatentSet] = {}

    def get(self, source: Source, count: int, seed: int, prompts: int | None = None) -> LatentSet:
        """``count`` images of a source, for so many of its prompts, which the seed chooses; none: for all.

        Raises:
            PolicyFault: the policy declares no such subject.
            UsageFault: the set was never drawn, and the base model is not in memory.
        """
        every = [prompt for subject in subjects_of(self._policy, source) for prompt in subject.prompt_list]
        if not every:
            raise PolicyFault(
                f"a fine-tune needs {source!r} images, but the policy declares no such subject",
                fix="declare related subjects of a concept and retained subjects, or leave the probe out of the suite",
            )
        chosen = every if prompts is None else spread(every, min(prompts, len(every)), derive(seed, "prompts", source))
        drawn = derive(self._policy.seed, "probe data", source, count, seed)
        facts = {"base": self._base_digest, "code": self._code, "prompts": chosen, "count": count, "seed": drawn}
        path = self._folder / f"{address(facts)}.safetensors"
        if path not in self._sets:
            with held(path, waiting=lambda: None):  # another process may be drawing it
                self._sets[path] = self._load(path) if path.exists() else self._draw(path, chosen, count, drawn)
        self.used.append(self._sets[path].digest)
        return self._sets[path]

    def _load(self, path: Path) -> LatentSet:
        return LatentSet.load(path, self._device)

    def _draw(self, path: Path, prompts: list[str], count: int, seed: int) -> LatentSet:
        if self.base is None:
            raise UsageFault("these training images were not drawn", fix="run the certification again", where=str(path))
        found = generate(self.base, prompts, count, seed=seed)
        found.save(path)
        return found
