"""What methods of the ``peft`` library share: a method says how its adapter is configured, the library does the rest.

Adapters stand beside the queries, keys, values and outputs of every attention of the denoiser and of a text encoder
that learns, and beside erasers where there are any.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner

_NAME = "safeguard"
_TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0", "eraser.down", "eraser.up"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "text_encoder_2": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
"""Part -> its layers that are adapted."""


class PeftFineTuner(FineTuner):
    """Trains an adapter beside frozen weights."""

    adds_parameters = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._adapters: list[Any] = []

    def adapter(self, targets: list[str]) -> Any:
        """The ``peft.PeftConfig`` of the method for layers of these names; at its start it changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its adapter is")

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """Add the adapters; returns their parameters."""
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            for part in sorted(parts, reverse=True):  # the denoiser first
                settings = self.adapter(_TARGETS[part])
                wrap = PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type]
                self._adapters.append(wrap(model.parts[part], settings, adapter_name=_NAME))
        return [parameter for parameter in model.named_parameters().values() if parameter.requires_grad]

    def merge(self, model: DiffusionModel) -> None:
        """Every adapter into the layer it stands beside."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for part in model.parts.values():
            for layer in part.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()

    def detach(self, model: DiffusionModel) -> None:
        """Remove the adapters and their wrapped layers."""
        if len(self._adapters) > 1:  # of text encoders: the next ones may lie where these did, and look like them
            model.forget_texts()
        while self._adapters:
            self._adapters.pop().unload()
        super().detach(model)
