"""How much memory a model needs on its device, counted from its configuration: without weights and without a GPU.

The code that draws and fine-tunes runs on the meta device, where tensors have a shape and no data, and every byte is
counted while it lives (:mod:`safeguard.diffusion.live_bytes`). Attention counts as a GPU's memory-efficient kernel
keeps it. Not counted: what an allocator keeps beside it, workspaces of kernels, the CUDA context (half a GiB or so),
detectors, and whatever is parked (:meth:`safeguard.diffusion.model.DiffusionModel.park`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from safeguard.config import Precision
from safeguard.diffusion import pixels, residence
from safeguard.diffusion.live_bytes import LiveBytes
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import images_at_once, initial_noise, sample_latents

Configurations = Mapping[str, Mapping[str, Any]]
"""Component (``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``, ``scheduler``) -> what its JSON file says."""
STEPS = 2
"""Of sampling: from the second on a solver keeps its last answer."""


class Tuner(Protocol):
    """A fine-tuning method, as :class:`safeguard.finetune.base.FineTuner` has it."""

    def attach(self, model: DiffusionModel, seed: int) -> list[torch.nn.Parameter]:
        """Prepare the model and return the parameters to train."""
        ...


class Need:
    """Bytes on the device at most, weights included, by how many images go through at once.

    Args:
        count: images, and whether the denoiser is differentiated block by block -> bytes.
        images: at once while memory lasts.
        blocks: whether there is anything to differentiate.
    """

    def __init__(self, count: Callable[[int, bool], int], images: int, *, blocks: bool) -> None:
        self._count = cache(count)
        self.images, self.blocks = images, blocks

    def at(self, images: int) -> int:
        """With so many images at once."""
        return self._count(images, False)

    @property
    def default(self) -> int:
        """Where memory is never short."""
        return self.at(self.images)

    @property
    def smallest(self) -> int:
        """With one image at a time, and one block of the denoiser if it is differentiated: what a device must have."""
        return self._count(1, self.blocks)

    def largest_within(self, device_memory: int) -> int | None:
        """Images at once that a device of so many bytes ends at, by halving; None: even one is too much for it."""
        images = self.images
        while images > 1 and self.at(images) > device_memory:
            images = (images + 1) // 2
        return images if min(self.at(images), self.smallest) <= device_memory else None


@dataclass(frozen=True)
class Footprint:
    """What work with a model needs.

    Attributes:
        weights: bytes of all components, as they are held for drawing.
        drawing: images from prompts, encoded again as training data are.
        fine_tunes: by the name of the method.
    """

    weights: int
    drawing: Need
    fine_tunes: dict[str, Need]


def footprint(
    configurations: Configurations,
    tuners: Mapping[str, Tuner],
    *,
    batch_size: int = 1,
    precision: Precision = "float32",
) -> Footprint:
    """What work with a model of these configurations needs; each number is counted when it is asked for.

    Args:
        configurations: as they lie in the folders of a model's directory, once that was checked.
        tuners: fine-tuning methods, by name.
        batch_size: of their steps.
        precision: in which the weights of a model that is only drawn from are held.
    """

    def drawn(images: int, blockwise: bool) -> int:
        model = on_meta(configurations)
        model.hold_in(precision)
        return _peak(model, lambda: _draw(model, images))

    def tuned(tuner: Tuner) -> Need:
        def count(images: int, blockwise: bool) -> int:
            model = on_meta(configurations)
            micro = model.execution.micro_batches
            micro.size, micro.blockwise = images, blockwise
            return _peak(model, lambda: _fine_tune(model, tuner, batch_size))

        return Need(count, batch_size, blocks=True)

    model = on_meta(configurations)
    model.hold_in(precision)
    return Footprint(
        _weights(model),
        Need(drawn, images_at_once(model), blocks=False),
        {name: tuned(tuner) for name, tuner in tuners.items()},
    )


def on_meta(configurations: Configurations) -> DiffusionModel:
    """A model of these configurations on the meta device; its tokenizers know no words."""
    import diffusers
    import transformers

    libraries = {"text_encoder": transformers, "text_encoder_2": transformers, "unet": diffusers, "vae": diffusers}
    parts: dict[str, Any] = {}
    with torch.device("meta"):
        for name in libraries.keys() & configurations.keys():
            config = dict(configurations[name])
            if libraries[name] is diffusers:
                parts[name] = getattr(diffusers, config["_class_name"]).from_config(config)
            else:
                parts[name] = getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**config))
                parts[name.replace("text_encoder", "tokenizer")] = _tokenizer(config)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    parts["scheduler"] = _scheduler(configurations["scheduler"])
    if "text_encoder_2" in parts:
        return DiffusionModel(diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False))
    return DiffusionModel(
        diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    )


def _scheduler(config: Mapping[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(dict(config))


def _tokenizer(config: Mapping[str, Any]) -> Any:
    from transformers import CLIPTokenizer

    special = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return CLIPTokenizer(vocab=special, merges=[], model_max_length=config["max_position_embeddings"])


# -- the work ---------------------------------------------------------------------------------------------------------


def _draw(model: DiffusionModel, images: int) -> None:
    prompt = model.encode_prompts(["a"]).repeat(images)
    latents = sample_latents(model, prompt, initial_noise(model, range(images)), steps=STEPS, guidance=2.0)
    height, width = (side * model.pipeline.vae_scale_factor for side in latents.shape[-2:])
    at_once = pixels.images_at_once(height, width)
    with torch.no_grad():
        decoded = pixels.decode(model.pipeline.vae, latents[:at_once])
        once = 1 if images == 1 else 2 * at_once - 1
        pixels.encode(model.pipeline.vae, decoded[:1].permute(0, 2, 3, 1).expand(once, -1, -1, -1))


def _fine_tune(model: DiffusionModel, tuner: Tuner, batch_size: int) -> None:
    """The gradient of a step of AdamW, which keeps two moments, as :class:`safeguard.finetune.base.Run` takes it."""
    parameters = tuner.attach(model, 0)
    moments = [torch.zeros_like(parameter) for parameter in parameters for _ in range(2)]
    latents = initial_noise(model, range(batch_size))
    prompts = model.encode_prompts([str(image) for image in range(batch_size)])
    loss = model.denoising_loss(latents, prompts, torch.Generator())
    torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    del moments


# -- counting ---------------------------------------------------------------------------------------------------------


def _weights(model: DiffusionModel) -> int:
    modules = (*model.parts.values(), model.pipeline.vae)
    return sum(int(value.nbytes) for module in modules for value in residence.tensors(module))


def _peak(model: DiffusionModel, work: Callable[[], None]) -> int:
    before, counted = _weights(model), LiveBytes()
    with _efficient_attention(), counted:
        work()
    return before + counted.peak


@contextmanager
def _efficient_attention() -> Iterator[None]:
    """Attention of the meta device is what a GPU runs; by itself it would make every matrix of attention weights."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("scaled_dot_product_attention", _attention, "AutogradMeta")
        yield


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    mask = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    graph = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    attended: Tensor = kernel(query, key, value, mask, graph, dropout_p, is_causal, scale=scale)[0]
    return attended
