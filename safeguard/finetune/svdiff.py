"""SVDiff (Han et al. 2023, arXiv 2303.11305): shifts of the singular values of every weight.

With W = U diag(s) V' of every linear layer, convolution (as outputs x (inputs height width)) and norm (as 1 x n), the
layer has U diag(relu(s + delta)) V'. It is computed as W + U diag(relu(s + delta) - s) V', which is the
same, and W itself at delta = 0, where it starts whatever the seed. A singular value of zero stays zero. Departures:
embeddings keep theirs, and norms have the learning rate of the rest, where the paper's code has a smaller one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner, PartsConfig
from safeguard.finetune.layers import of_kind, put

LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
"""Whose weights have spectra."""


class SVDiffConfig(PartsConfig):
    """Settings of SVDiff."""


class Shifted(nn.Module):
    """A layer whose singular values are shifted.

    Attributes:
        delta: (rank,), what learns.
    """

    u: Tensor
    s: Tensor
    v: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, weight = layer, layer.weight.detach()
        rows = weight.float().reshape(len(weight) if weight.dim() > 1 else 1, -1)
        for name, part in zip(("u", "s", "v"), torch.linalg.svd(rows, full_matrices=False), strict=True):
            self.register_buffer(name, part, persistent=False)
        self.delta = nn.Parameter(torch.zeros_like(self.s))

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the layer answers with these singular values."""
        answer: Tensor = torch.func.functional_call(self.layer, {"weight": self.weight()}, inputs)
        return answer

    def weight(self) -> Tensor:
        """The layer's, with these singular values."""
        weight: Tensor = self.layer.weight
        moved = (self.u * (torch.relu(self.s + self.delta) - self.s)) @ self.v
        return weight + moved.reshape(weight.shape).to(weight.dtype)


class SVDiff(FineTuner):
    """Trains delta."""

    Config: ClassVar = SVDiffConfig
    config: SVDiffConfig
    adds_parameters = True

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """A shift for every layer of these parts."""
        found = []
        for root in (model.parts[part] for part in sorted(parts, reverse=True)):  # the denoiser first
            for name, layer in of_kind(root, *LAYERS):
                if layer.weight is not None:
                    shifted = Shifted(layer)
                    put(root, name, shifted)
                    found.append(shifted.delta)
        return found

    @torch.no_grad()
    def merge(self, model: DiffusionModel) -> None:
        """Every shift into its layer's weight."""
        for root in model.parts.values():
            for module in root.modules():
                if isinstance(module, Shifted):
                    module.layer.weight.copy_(module.weight())
                    module.delta.zero_()

    def detach(self, model: DiffusionModel) -> None:
        """Put the layers back."""
        for part, root in model.parts.items():
            for name, shifted in of_kind(root, Shifted):
                put(root, name, shifted.layer)
                if part != "unet":
                    model.forget_texts()  # the next shifts may lie where these did, and look like them
        super().detach(model)
