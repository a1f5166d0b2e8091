"""Components put back from the base: each of those that differ, all of them, and nothing where nothing differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.attack.components import PARTS, Components, ComponentsConfig
from safeguard.attack.target import Target
from safeguard.diffusion import erasers
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import ModelFault, UsageFault
from safeguard.io.opening import open_component, open_directory
from tests.attack.conftest import Made
from tests.tiny import save_tiny, tiny_pipeline, tiny_text_encoder, tiny_tokenizer


def attack(*parts: str) -> Components:
    return Components(ComponentsConfig.model_validate({"parts": list(parts or PARTS)}), "probe")


def states(model: DiffusionModel) -> torch.Tensor:
    return model.encode_prompts(["an axe"]).states


def shifted() -> Any:
    """Another text encoder than that of ``tiny_pipeline(0)``, around the same denoiser."""
    pipeline = tiny_pipeline(0)
    with torch.no_grad():
        for value in pipeline.text_encoder.parameters():
            value.add_(0.1)
    return pipeline


def test_a_text_encoder_is_put_back_and_taken_away_again(made: Made, base: Any) -> None:
    target = made.target(shifted(), base, "unet", "text_encoder")
    expected, released = states(DiffusionModel(base)), states(target.model)
    assert not torch.equal(released, expected)
    seen = [(each.effort, each.label, states(target.model)) for each in attack().run(target, 0)]
    assert [effort for effort, _, _ in seen] == attack().efforts() == [0, 1, 2, 3, 4, 5]
    labels = dict(zip(("released", *PARTS), [label for _, label, _ in seen], strict=True))
    found = dict(zip(("released", *PARTS), [state for *_, state in seen], strict=True))
    assert torch.equal(found["released"], released) and labels["released"] == ""
    for part in ("text-encoders", "all"):
        assert torch.equal(found[part], expected) and labels[part] == "text_encoder put back from the base"
    assert labels["token-embeddings"] == "token embeddings of text_encoder put back from the base"
    assert not torch.equal(found["token-embeddings"], expected)
    assert not torch.equal(found["token-embeddings"], released)
    for part in ("others", "erasers"):
        assert torch.equal(found[part], released) and labels[part] == "nothing differs that could be put back"
    assert torch.equal(states(target.model), released)
    assert set(made.read) == {"text_encoder"}, "the denoiser is never put back"


def test_nothing_is_put_back_where_only_the_denoiser_differs(made: Made, base: Any) -> None:
    target = made.target(tiny_pipeline(1), base, "unet")
    released = states(target.model)
    for attempt in attack().run(target, 0):
        assert torch.equal(states(target.model), released)
        assert attempt.label == ("nothing differs that could be put back" if attempt.effort else "")
    assert made.read == []


@torch.no_grad()
def test_stored_erasers_are_dropped_and_are_back_afterwards(made: Made, base: Any) -> None:
    pipeline = tiny_pipeline(0)
    erasers.attach(pipeline.unet, rank=2, activation="gelu", seed=0)
    for eraser in erasers.erasers(pipeline.unet).values():
        torch.nn.init.ones_(eraser.up.weight)
    target, plain = made.target(pipeline, base, "unet"), DiffusionModel(base)

    def answer(model: DiffusionModel) -> torch.Tensor:
        batch = torch.zeros(1, *model.latent_shape), torch.tensor([500]), model.encode_prompts(["an axe"])
        return model.predict(*batch)

    before = answer(target.model)
    assert not torch.equal(before, answer(plain))
    labels = []
    for attempt in attack("erasers").run(target, 0):
        labels.append(attempt.label)
        assert torch.equal(answer(target.model), answer(plain) if attempt.effort else before)
    assert labels == ["", "stored erasers dropped"]
    assert torch.equal(answer(target.model), before)


def test_what_the_policy_let_differ_is_put_back_as_well(made: Made, base: Any) -> None:
    other = tiny_pipeline(1)
    other.unet, other.text_encoder = base.unet, base.text_encoder
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, beta_end=0.03)
    words = other.tokenizer.get_vocab()
    words["ax"], words["axe</w>"] = words["axe</w>"], words["ax"]
    other.tokenizer = type(other.tokenizer)(
        vocab=words, merges=[("a", "x"), ("ax", "e</w>")], model_max_length=16, pad_token="<|endoftext|>"
    )
    target, plain = made.target(other, base, "vae", "scheduler", "tokenizer"), DiffusionModel(base)
    latents = torch.ones(1, *plain.latent_shape)

    def seen(model: DiffusionModel) -> list[torch.Tensor]:
        return [states(model), torch.from_numpy(model.decode(latents)), model.alphas_cumprod]

    before = seen(target.model)
    assert not any(torch.equal(a, b) for a, b in zip(before, seen(plain), strict=True))
    released, back = (seen(target.model) for _ in attack("others").run(target, 0))
    assert all(torch.equal(a, b) for a, b in zip(back, seen(plain), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(released, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen(target.model), before, strict=True))
    assert sorted(made.read) == ["scheduler", "tokenizer", "vae"]


def test_a_part_of_another_shape_is_refused(made: Made, base: Any) -> None:
    larger = tiny_pipeline(0)
    larger.text_encoder = tiny_text_encoder(tiny_tokenizer(), num_hidden_layers=3)
    with pytest.raises(ModelFault, match="has no counterpart in the base model"):
        list(attack("text-encoders").run(made.target(larger, base, "text_encoder"), 0))


def test_without_the_base_it_says_so(made: Made, base: Any) -> None:
    given = made.target(base, base)
    target = Target("hardened", given.model, "digest", given.policy, given.data, given.score, 0)
    with pytest.raises(UsageFault, match="not at hand"):
        next(attack().run(target, 0))


def test_all_variants_are_needed_to_stand_for_components() -> None:
    assert attack().covers() == ["components"] and attack("all").covers() == []
    assert attack().needs().base_model


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae", "tokenizer", "scheduler"])
def test_one_component_is_opened_as_the_whole_model_has_it(name: str, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "m")
    alone, whole = open_component(directory, name), getattr(open_directory(directory).pipeline, name)
    assert type(alone) is type(whole)
    if isinstance(alone, torch.nn.Module):
        others = dict(whole.state_dict())
        assert all(torch.equal(value, others.pop(key)) for key, value in alone.state_dict().items()) and not others
