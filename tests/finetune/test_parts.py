"""Which parts and weights a method trains, by its settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.finetune.base import FineTuner, fine_tune
from safeguard.finetune.prior_preservation import PriorPreservation
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from tests.tiny import ARCHITECTURES


def make(name: str, **settings: Any) -> FineTuner:
    return finetuners.make(FineTuningMethod.model_validate({"name": name, **settings}))


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
@pytest.mark.parametrize("name", ["full", "lora", "dora", "loha", "lokr", "oft", "svdiff"])
def test_text_encoders_learn_where_the_settings_say_so(name: str, architecture: str) -> None:
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    data, tuner = generate(model, ["a cat", "a dog"], 4, seed=0, steps=2), make(name, text_encoder=True)
    wrapped = PriorPreservation(tuner, data, 1.0)
    before, start = model.encode_prompts(["a cat"]).states, Weights(model.named_parameters())
    names = list(model.named_parameters())
    training = Training(steps=3, learning_rate=0.02, batch_size=2)
    for method in (tuner, wrapped):
        for step, _ in fine_tune(model, data, method, training, seed=0):
            taking = {name.partition(".")[0] for name, value in model.named_parameters().items() if value.requires_grad}
            assert taking == set(model.parts)
            with torch.no_grad():
                seen = model.encode_prompts(["a cat"]).states
                assert torch.allclose(seen, model.encode_anew(["a cat"]).states, atol=1e-5)
            assert torch.equal(seen, before) == (step == 0)
        start.restore()
        assert list(model.named_parameters()) == names
        assert torch.equal(model.encode_prompts(["a cat"]).states, before)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_keys_and_values_of_cross_attention_by_name(text_encoder: bool) -> None:
    model = DiffusionModel(ARCHITECTURES["sd1"](0))
    make("full", parameters="cross-attention-kv", text_encoder=text_encoder).attach(model, 0)
    taking = {name for name, value in model.named_parameters().items() if value.requires_grad}
    of_text = {name for name in model.named_parameters() if name.startswith("text_encoder.")}
    kept = {name for name in taking if name.startswith("unet.")}
    assert kept and all(".attn2.to_k." in name or ".attn2.to_v." in name for name in kept)
    assert len(kept) == 2 * sum(name.endswith("attn2.to_q.weight") for name in model.named_parameters())
    assert taking - kept == (of_text if text_encoder else set())
