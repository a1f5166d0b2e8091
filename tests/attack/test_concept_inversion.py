"""Concept inversion: a word learnt for the concept, judged inside its templates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.concept_inversion import ConceptInversionConfig, Words
from safeguard.attack.prompts.places import placed
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.attack.target import Target
from safeguard.config import FineTuningData
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from tests.attack.conftest import Made
from tests.attack.prompt_runs import attack, counted, drawn, run
from tests.tiny import ARCHITECTURES, tiny_pipeline


def target_of(made: Made) -> Target:
    return drawn(made, tiny_pipeline(0), tiny_pipeline(0))


def words_of(target: Target, **settings: Any) -> Words:
    config = ConceptInversionConfig.model_validate(ConceptInversionConfig.tiny().model_dump() | settings)
    return Words(config, target, target.data.get(FineTuningData(shares={"concept": 1}, images=3), 0), 5)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_word_that_is_not_trained_is_the_word_it_starts_as(architecture: str, made: Made) -> None:
    target = drawn(made, ARCHITECTURES[architecture](0), tiny_pipeline(0))
    found = words_of(target, initial="axe", tokens=2).prompts()
    assert found.texts == {"axes": ["a *", "x * y"]} and found.states is not None
    expected = target.model.encode_prompts(["a axe axe", "x axe axe y"])
    assert torch.allclose(found.states["axes"].states, expected.states, atol=1e-5)
    if expected.pooled is not None:
        pooled = found.states["axes"].pooled
        assert pooled is not None and torch.allclose(pooled, expected.pooled, atol=1e-5)


def test_it_learns_the_images_and_changes_no_weight(made: Made) -> None:
    target = target_of(made)
    before = {name: value.clone() for name, value in target.model.named_parameters().items()}
    made_attack = attack("concept-inversion", checkpoints=[5, 60], learning_rate=0.05, points=8)
    with counted(target.model) as rows:
        made_attack.draw(target.data, 0)
        del rows[:]
        found = run(made_attack, target)
    cost = made_attack.cost()
    assert sum(rows) == cost.network_calls == 60 * 2 + 3 * 3 * 8 and cost.steps == 60
    first, _, last = found
    assert first.prompts is None and (last.loss or 0) < 0.999 * (first.loss or 0)
    assert last.prompts is not None and last.prompts.states is not None
    assert not any(part.requires_grad for part in (last.prompts.states["axes"].states,))
    after = target.model.named_parameters()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_step_is_that_of_adamw_on_the_denoising_loss(made: Made) -> None:
    target = target_of(made)
    words = words_of(target, batch_size=1, templates=["x {} y"], learning_rate=0.1)
    before = words.values.detach().clone()
    state = words._generator.get_state()
    words.step()
    words._generator.set_state(state)
    batch = words._data.batch(1, words._generator)
    torch.randint(1, (1,), generator=words._generator)
    value = before.clone().requires_grad_(True)
    states = placed(target.model, ["x {} y"], 1).encode(target.model, [0], value)
    (gradient,) = torch.autograd.grad(target.model.denoising_loss(batch.latents, states, words._generator), value)
    expected = before - 0.1 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(words.values, expected, atol=1e-4) and gradient.abs().max() > 0


def test_every_concept_has_a_word_of_its_own(made: Made) -> None:
    target = target_of(made)
    other = target.policy.concepts[0].model_copy(update={"name": "big", "prompts": ["a big axe"], "anchor": ""})
    first = target.policy.concepts[0].keeping(["an axe"])
    target.policy = target.policy.model_copy(update={"concepts": [first, other]})
    words = words_of(target, batch_size=8)
    assert words.values.shape[0] == 2
    before = words.values.detach().clone()
    words._of = dict.fromkeys(words._of, 1)  # as if every image were of the second
    words.step()
    assert torch.equal(words.values[0], before[0]) and not torch.equal(words.values[1], before[1])
    prompts = words.prompts()
    assert prompts.states is not None and set(prompts.states) == {"axes", "big"}


def test_what_cannot_be_a_template_is_refused(made: Made) -> None:
    for odd in ("no place", "{} and {}"):
        with pytest.raises(ValidationError, match="once"):
            ConceptInversionConfig(templates=[odd])
    model = DiffusionModel(tiny_pipeline(0))
    with pytest.raises(UsageFault, match="inside a word"):
        placed(model, ["x{}"], 1)
    with pytest.raises(UsageFault, match="behind the 14 tokens"):
        placed(model, ["a b c d e f g h i j k l m n {}"], 1)
    assert placed(model, ["a b c d e f g h i j k l m {} n"], 1).places.tolist() == [[14]]
    with pytest.raises(UsageFault, match="'hammer' is not one token"):
        words_of(target_of(made), initial="hammer")


def test_the_seed_chooses_the_word_it_starts_as(made: Made) -> None:
    target = target_of(made)
    table = vocabulary(target.model, target.concepts).table
    assert (table == words_of(target).values[0, 0]).all(1).any()
