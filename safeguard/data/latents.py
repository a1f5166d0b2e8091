"""Images as training data: latents and text states computed once, batches drawn from a generator.

A fresh posterior sample is drawn for every batch. Text states kept here are those of the model that drew the images;
a model whose text encoder was changed encodes the captions itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safeguard.data.content_filter import check_allowed
from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import sample
from safeguard.errors import ModelFault, UsageFault
from safeguard.io.checkpoint import load_state, save_state
from safeguard.seeds import derive, spread


@dataclass(frozen=True)
class Batch:
    """Scaled latents (n, c, h, w) with their captions, and the text states of these in the model that drew them."""

    latents: Tensor
    conditioning: Conditioning
    captions: list[str]


@dataclass(frozen=True)
class LatentSet:
    """Encoded images with captions.

    Attributes:
        mean, std: posterior of each image (n, c, h, w), scaled.
        conditioning: text states of each caption, by the model that drew the images.
        captions: the captions.
        digest: sha256 over pixels and captions.
    """

    mean: Tensor
    std: Tensor
    conditioning: Conditioning
    captions: list[str]
    digest: str

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, index: Tensor, generator: torch.Generator) -> Batch:
        """The images at ``index`` with fresh posterior noise."""
        noise = torch.randn(len(index), *self.mean.shape[1:], generator=generator).to(self.mean.device)
        captions = [self.captions[row] for row in index.tolist()]
        index = index.to(self.mean.device)
        return Batch(self.mean[index] + self.std[index] * noise, self.conditioning[index], captions)

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """``size`` images drawn with replacement."""
        return self.rows(torch.randint(len(self), (size,), generator=generator), generator)

    def only(self, prompts: Collection[str]) -> LatentSet:
        """The images with these captions."""
        return self._keep([row for row, caption in enumerate(self.captions) if caption in prompts])

    def first(self, count: int) -> LatentSet:
        """The first ``count`` images; captions are in no order of their own, so these are any."""
        return self if count >= len(self) else self._keep(list(range(count)))

    def _keep(self, kept: list[int]) -> LatentSet:
        digest = hashlib.sha256(f"{self.digest} {kept}".encode()).hexdigest()
        captions = [self.captions[row] for row in kept]
        return LatentSet(self.mean[kept], self.std[kept], self.conditioning[kept], captions, digest)

    def save(self, path: Path) -> None:
        """Write the set into a file, from which :meth:`load` reads the same set."""
        tensors = {"mean": self.mean, "std": self.std, "states": self.conditioning.states}
        if self.conditioning.pooled is not None:
            tensors["pooled"] = self.conditioning.pooled
        # The layout in memory chooses the kernels, and these the last bits.
        strides = {name: value.stride() for name, value in tensors.items()}
        facts = {"name": path.name, "captions": self.captions, "digest": self.digest, "strides": strides}
        save_state(path, {"set": tensors}, facts=facts)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> LatentSet:
        """The set that :meth:`save` wrote.

        Raises:
            ModelFault: there is no such file, or it holds something else, such as a set that had another name.
        """
        groups, facts = load_state(path)
        if facts.get("name") != path.name:
            raise ModelFault(
                f"these training images were kept under another name, {facts.get('name')!r}",
                fix="delete the file; its images are drawn again",
                where=str(path),
            )
        tensors = {
            name: torch.empty_strided(value.shape, facts["strides"][name], device=device).copy_(value)
            for name, value in groups["set"].items()
        }
        conditioning = Conditioning(tensors["states"], tensors.get("pooled"))
        return cls(tensors["mean"], tensors["std"], conditioning, facts["captions"], facts["digest"])

    @staticmethod
    def join(sets: Sequence[LatentSet]) -> LatentSet:
        """All rows of several sets."""
        return LatentSet(
            torch.cat([s.mean for s in sets]),
            torch.cat([s.std for s in sets]),
            Conditioning.cat([s.conditioning for s in sets]),
            [caption for s in sets for caption in s.captions],
            hashlib.sha256("".join(s.digest for s in sets).encode()).hexdigest(),
        )


def encode(model: DiffusionModel, images: np.ndarray, captions: Sequence[str]) -> LatentSet:
    """Encode uint8 images (n, h, w, 3) and their captions."""
    if len(images) != len(captions) or not len(images):
        raise UsageFault(f"{len(images)} images and {len(captions)} captions cannot be a data set")
    mean, std = model.encode_images(images)
    digest = hashlib.sha256(images.tobytes() + "\x00".join(captions).encode()).hexdigest()
    states = model.encode_prompts(captions)
    return LatentSet(mean.to(model.device), std.to(model.device), states, list(captions), digest)


def generate(
    model: DiffusionModel,
    prompts: Sequence[str],
    count: int,
    *,
    seed: int,
    steps: int = 20,
    guidance: float = 4.0,
    done: Callable[[int], None] = lambda count: None,
) -> LatentSet:
    """A data set of ``count`` images the model itself draws for the prompts; captions are the prompts.

    Raises:
        UsageFault: the content filter refuses a prompt.
    """
    check_allowed(prompts)
    captions = spread(prompts, count, derive(seed, "captions"))
    seeds = [derive(seed, "image", index) for index in range(count)]
    return encode(model, sample(model, captions, seeds, steps=steps, guidance=guidance, done=done), captions)
