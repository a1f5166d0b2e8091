"""A latent diffusion pipeline in memory, with the few operations that every method is written in.

Stable Diffusion 1.x and 2.x (epsilon and v prediction) and SDXL share this one code path. Shapes: images are uint8
(n, height, width, 3), latents float (n, channels, h, w) already multiplied by ``scaling_factor``, timesteps int64 (n,).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safeguard.config import Precision
from safeguard.diffusion import pixels, residence
from safeguard.diffusion.architectures import PIPELINES, unsupported
from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.execution import Execution
from safeguard.diffusion.noising import Noising
from safeguard.errors import ModelFault

PARTS = ("unet", "text_encoder", "text_encoder_2")
"""Components that hardening or a fine-tune may change, as diffusers names them."""
TEXTS = 64
"""Texts encoded at once."""


class DiffusionModel:
    """A diffusers pipeline seen as a noise predictor.

    Args:
        pipeline: StableDiffusionPipeline or StableDiffusionXLPipeline, all modules on one device.
        stored: type each tensor is stored in on disk, by names such as ``unet.conv_in.weight``; None: as in memory.
        device: where it computes, if that is not where its modules are: they are parked until :meth:`on_device`.

    Attributes:
        device: where it computes.
        parts: those of :data:`PARTS` that the pipeline has, by name.
        exposed_parts: parts that a fine-tune trains: the denoiser, and what hardening changed besides. What was
            hardened is what is attacked.
        execution: how the denoiser is run: arithmetic, rows at once, recorded passes.

    Raises:
        ModelFault: another class of pipeline, or it predicts neither noise nor v.
    """

    def __init__(
        self,
        pipeline: Any,
        stored: Mapping[str, torch.dtype] | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        name = type(pipeline).__name__
        if name not in PIPELINES:
            raise ModelFault(unsupported(name), fix="use a Stable Diffusion 1.x, 2.x or XL text-to-image model")
        self.pipeline = pipeline
        self.stored = dict(stored or {})
        self.unet = pipeline.unet
        self.parts: dict[str, torch.nn.Module] = {
            name: module for name in PARTS if (module := getattr(pipeline, name, None)) is not None
        }
        self.exposed_parts = frozenset({"unet"})
        self.execution = Execution(self.unet)
        self.device = torch.empty(0, device=device or pipeline.unet.device).device  # "cuda" is one of several
        config = pipeline.scheduler.config
        self.prediction_type: str = config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelFault(
                f"prediction type {self.prediction_type!r} is not supported", fix="use an epsilon or v-prediction model"
            )
        self.alphas_cumprod: Tensor = pipeline.scheduler.alphas_cumprod.to(self.device)
        """abar_t, shape (timesteps,)."""
        self._noising = Noising()
        self._states: dict[str, Conditioning] = {}
        self._states_of: object = None

    @property
    def timesteps(self) -> int:
        """Number of training timesteps."""
        return len(self.alphas_cumprod)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of all parts, by names such as ``unet.conv_in.weight`` and ``text_encoder.….weight``."""
        return {
            f"{part}.{name}": parameter
            for part, module in self.parts.items()
            for name, parameter in module.named_parameters()
        }

    def differing_parts(self, other: DiffusionModel) -> frozenset[str]:
        """Parts whose weights are not exactly those of another model."""

        def differs(part: str) -> bool:
            ours, theirs = (model.parts[part].state_dict() if part in model.parts else {} for model in (self, other))
            return ours.keys() != theirs.keys() or any(
                value.shape != theirs[name].shape or not torch.equal(value, theirs[name].to(value))
                for name, value in ours.items()
            )

        return frozenset(part for part in self.parts if differs(part))

    def freeze(self) -> None:
        """No part takes gradients."""
        for module in self.parts.values():
            module.requires_grad_(False)

    def frozen_copy(self, *, parked: bool = False) -> DiffusionModel:
        """The same pipeline with its own copy of every part, which takes no gradients: a teacher.

        Args:
            parked: the copy is made off the device and stays there until :meth:`on_device`.
        """
        pipeline = copy.copy(self.pipeline)
        for name, module in self.parts.items():
            copied_part = residence.parked_copy(module) if parked else copy.deepcopy(module)
            setattr(pipeline, name, copied_part.requires_grad_(False).eval())
        copied = DiffusionModel(pipeline, self.stored, device=self.device)
        copied.exposed_parts = self.exposed_parts
        copied.execution = Execution(copied.unet, self.execution)
        return copied

    # -- where the weights are, and in which type --------------------------------------------------------------------

    @property
    def parked(self) -> bool:
        """Whether the weights are off the device."""
        return any(value.device != self.device for part in self.parts.values() for value in part.parameters())

    def park(self) -> None:
        """Keep the weights in main memory, and none on the device, until :meth:`on_device`.

        Parameters stay the same objects. An autoencoder that other models share comes back when one of them needs it.
        """
        for module in (*self.parts.values(), self.pipeline.vae):
            residence.park(module)
        self.execution.graphs.forget()  # they know weights by their addresses

    @contextmanager
    def on_device(self) -> Iterator[DiffusionModel]:
        """Inside, the weights are on the device; then they are where they were before.

        One model's weights at a time fit the cards that others do not fit::

            teacher = model.frozen_copy(parked=True)
            with teacher.on_device():
                ...
        """
        parked = self.parked
        for module in self.parts.values():
            residence.fetch(module, self.device)
        try:
            yield self
        finally:
            if parked:
                self.park()

    def hold_in(self, precision: Precision) -> None:
        """Hold the weights of all parts in this type: bfloat16 takes half the memory, for a model only drawn from.

        The autoencoder stays what it is, and latents between steps are float32.
        """
        for module in self.parts.values():
            residence.cast(module, getattr(torch, precision))
        self.forget_texts()
        self.__dict__.pop("_time_ids", None)
        self.execution.graphs.forget()

    # -- text -------------------------------------------------------------------------------------------------------

    def forget_texts(self) -> None:
        """Encode every prompt anew; needed where a tokenizer was replaced, weights are watched."""
        self._states, self._states_of = {}, None

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Text states of the prompts, truncated to the context length.

        They carry gradients where a text encoder takes them. Otherwise each distinct prompt is encoded once, by itself,
        so that its states depend neither on other prompts nor on order, and kept until an encoder's weights change.
        The empty prompt stands for no prompt: for SDXL that is zeros, if its ``force_zeros_for_empty_prompt`` says so,
        since they, and not the states of an empty text, are what it was trained with and what guidance starts from.
        """
        encoders = [value for name, part in self.parts.items() if name != "unet" for value in part.parameters()]
        if torch.is_grad_enabled() and any(value.requires_grad for value in encoders):
            distinct = list(dict.fromkeys(prompts))
            return self.encode_anew(distinct)[[distinct.index(prompt) for prompt in prompts]]
        weights = [(id(value), value._version) for value in encoders]  # changes with every change in place
        if weights != self._states_of:
            self._states, self._states_of = {}, weights
        with torch.no_grad():
            new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
            self._states |= {prompt: self._encode([prompt]) for prompt in new}
        return Conditioning.cat([self._states[prompt] for prompt in prompts])

    def encode_anew(self, prompts: Sequence[str]) -> Conditioning:
        """Text states computed here and now, with gradients where they are enabled."""
        if torch.is_grad_enabled():  # what is kept for gradients does not come in smaller parts
            starts = range(0, len(prompts), TEXTS)
            return Conditioning.cat([self._encode(prompts[start : start + TEXTS]) for start in starts])
        parts = self.execution.in_batches("read", lambda rows: self._encode(prompts[rows]), len(prompts), TEXTS)
        return Conditioning.cat(parts)

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text states of these prompts in one pass."""
        texts = list(prompts)
        if not hasattr(self.pipeline, "text_encoder_2"):
            return Conditioning(self.pipeline.encode_prompt(texts, self.device, 1, False)[0])
        states, _, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            given = torch.tensor([bool(prompt) for prompt in texts], device=self.device)
            states, pooled = states * given[:, None, None], pooled * given[:, None]
        return Conditioning(states, pooled)

    @property
    def empty(self) -> Conditioning:
        """No prompt, one row."""
        return self.encode_prompts([""])

    # -- noise prediction -------------------------------------------------------------------------------------------

    @cached_property
    def _time_ids(self) -> Tensor:
        size = self.unet.config.sample_size * self.pipeline.vae_scale_factor
        return torch.tensor([[size, size, 0, 0, size, size]], dtype=self.unet.dtype, device=self.device)

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw output at timesteps ``t`` (n,); what it means is ``prediction_type``.

        Where memory was short the network runs on parts of the rows, and once more when it is differentiated.
        """
        time_ids = None if conditioning.pooled is None else self._time_ids
        return self.execution.run(latents, t, conditioning, time_ids)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each (n, 1, 1, 1)."""
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def predict_noise(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """epsilon; from a model of v (Salimans & Ho 2022) it is sqrt(abar) v + sqrt(1 - abar) x."""
        output = self.predict(latents, t, conditioning)
        if self.prediction_type == "epsilon":
            return output
        signal, noise = self.coefficients(t)
        return signal * output + noise * latents

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps."""
        signal, scale = self.coefficients(t)
        return signal * latents + scale * noise

    def denoising_loss(self, latents: Tensor, conditioning: Conditioning, generator: torch.Generator) -> Tensor:
        """L_DM: mean squared error of the network's target at uniform timesteps and fresh noise.

        Inside :meth:`learning_from`, with its offset of the noise and its weights.
        """
        t, noise = self.draw_noise(len(latents), generator)
        return self.denoising_loss_at(latents, conditioning, t, self._noising.shifted(noise, generator))

    def denoising_loss_at(self, latents: Tensor, conditioning: Conditioning, t: Tensor, noise: Tensor) -> Tensor:
        """L_DM at given timesteps and noise."""
        target = noise
        if self.prediction_type == "v_prediction":
            signal, scale = self.coefficients(t)
            target = signal * noise - scale * latents
        output = self.predict(self.add_noise(latents, noise, t), t, conditioning)
        return self._noising.mean((output - target).pow(2), self.alphas_cumprod[t], self.prediction_type)

    @contextmanager
    def learning_from(self, noising: Noising) -> Iterator[None]:
        """Inside, denoising losses have this noise and these weights."""
        before, self._noising = self._noising, noising
        try:
            yield
        finally:
            self._noising = before

    def draw_noise(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform timesteps (count,) and Gaussian noise (count, c, h, w), drawn on the CPU so that devices agree."""
        t = torch.randint(0, self.timesteps, (count,), generator=generator)
        noise = torch.randn(count, *self.latent_shape, generator=generator)
        return t.to(self.device), noise.to(self.device)

    # -- pixels -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Scaled posterior mean and standard deviation of uint8 images: two tensors (n, c, h, w) on the CPU."""
        vae, parts = self._autoencoder(), list[tuple[Tensor, Tensor]]()
        for chunk in np.array_split(images, max(1, len(images) // pixels.images_at_once(*images.shape[1:3]))):

            def work(rows: slice, chunk: np.ndarray = chunk) -> tuple[Tensor, Tensor]:
                mean, std = pixels.encode(vae, torch.from_numpy(chunk[rows]).to(self.device))
                return mean.cpu(), std.cpu()

            parts += self.execution.in_batches("encode", work, len(chunk), len(chunk))
        return torch.cat([mean for mean, _ in parts]), torch.cat([std for _, std in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Images of scaled latents."""
        vae = self._autoencoder()
        height, width = (side * self.pipeline.vae_scale_factor for side in latents.shape[-2:])

        def work(rows: slice) -> Tensor:
            return pixels.decode(vae, latents[rows]).cpu()

        parts = self.execution.in_batches("decode", work, len(latents), pixels.images_at_once(height, width))
        return torch.cat(parts).permute(0, 2, 3, 1).numpy()

    def _autoencoder(self) -> Any:
        """The autoencoder, on the device: whoever shares it may have parked it."""
        residence.fetch(self.pipeline.vae, self.device)
        return self.pipeline.vae


class Weights:
    """A copy of some parameters, off the device, to come back to: with :meth:`restore`, or after a ``with`` block."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._values = {name: residence.off_device(value) for name, value in parameters.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the stored values back in place."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._values[name])

    def leave(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Come back to all but these."""
        stay = {id(parameter) for parameter in parameters}
        self._parameters = {name: value for name, value in self._parameters.items() if id(value) not in stay}

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()
