"""P4D: words under which the attacked model predicts what the base predicts for the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from safeguard.attack.p4d import P4DConfig, Search, answered
from safeguard.attack.prompts.points import fixed_points, noisy
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.attack.target import Target
from safeguard.config import FineTuningData
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import encode_with_prefix
from safeguard.errors import UsageFault
from tests.attack.conftest import Made
from tests.attack.prompt_runs import attack, counted, drawn, read_ids, run
from tests.contexts import seeded
from tests.tiny import ARCHITECTURES, tiny_pipeline


def search_of(made: Made, **settings: Any) -> Search:
    target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
    config = P4DConfig.model_validate(P4DConfig.tiny().model_dump() | settings)
    data = target.data.get(FineTuningData(shares={"concept": 1}, images=3), 0)
    pool = noisy(target.model, data.mean, torch.randint(1000, (3, 4), generator=seeded(0)), seeded(1))
    words = vocabulary(target.model, target.concepts, config.tokens)
    return Search(config, target.model, data, pool, words, seeded(5))


def test_what_is_wanted_is_what_the_base_predicts_for_the_caption(made: Made) -> None:
    base, model = DiffusionModel(tiny_pipeline(0)), DiffusionModel(tiny_pipeline(1))
    target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
    data = target.data.get(FineTuningData(shares={"concept": 1}, images=3), 0)
    points = fixed_points(model, data.mean, 2, seeded(0))
    found = answered(base, points, data)
    for row, caption in enumerate(data.captions):
        for place in range(2):
            at = points.latents[row, place][None], points.t[row, place][None]
            with torch.no_grad():
                expected = base.predict_noise(*at, base.encode_prompts([caption]))[0]
            assert torch.allclose(found.wanted[row, place], expected, atol=1e-5)
    assert torch.equal(found.latents, points.latents) and not torch.equal(found.wanted, points.wanted)


def test_on_the_base_itself_nothing_is_better_than_the_prompt(made: Made) -> None:
    found = run(attack("p4d"), drawn(made, tiny_pipeline(0), tiny_pipeline(0)))
    assert found[0].loss == pytest.approx(0, abs=1e-9) and found[-1].prompts is not None
    assert set(found[-1].prompts.texts["axes"]) == {"an axe", "a big axe"}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("placement", ["alone", "front"])
def test_it_only_improves_counts_its_calls_and_gives_the_weights_back(
    architecture: str, placement: str, made: Made
) -> None:
    target = drawn(made, ARCHITECTURES[architecture](0), ARCHITECTURES[architecture](1), "unet", "text_encoder")
    before = {name: value.clone() for name, value in target.model.named_parameters().items()}
    made_attack = attack("p4d", checkpoints=[3, 8], block=2, placement=placement)
    made_attack.draw(target.data, 0)
    with counted(target.model) as rows:
        found = run(made_attack, target)
    assert sum(rows) == made_attack.cost().network_calls == 3 * (8 + 4 + 2 + (1 + 5) * 2)
    values = [attempt.loss or 0.0 for attempt in found]
    assert values[0] >= values[1] >= values[2] > 0
    after = target.model.named_parameters()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    needs = made_attack.needs()
    assert needs.base_model and needs.gradients and needs.images == 3
    assert found[-1].prompts is not None
    words = vocabulary(target.model, target.concepts)
    for text in found[-1].prompts.texts["axes"]:
        if text not in ("an axe", "a big axe"):
            assert read_ids(target.model, text)[:2] == [
                int(words.ids[words.words.index(word)]) for word in text.split()[:2]
            ]


def test_a_step_moves_the_soft_words_by_the_gradient_at_the_nearest(made: Made) -> None:
    search = search_of(made, learning_rate=0.01, weight_decay=0.5, placement="front")
    table = search._words.table
    search.soft += 0.3 * torch.randn(search.soft.shape, generator=seeded(7)) * table.std()
    cosines = torch.nn.functional.cosine_similarity(search.soft[:, :, None], table[None, None], dim=-1)
    assert torch.equal(search.nearest(), cosines.argmax(-1))
    before, state = search.soft.clone(), search._generator.get_state()
    search.step()
    search._generator.set_state(state)
    chosen = torch.randint(4, (3,), generator=search._generator)
    pool, rows = search._pool, torch.arange(3)
    one = replace(
        pool,
        latents=pool.latents[rows, chosen][:, None],
        t=pool.t[rows, chosen][:, None],
        wanted=pool.wanted[rows, chosen][:, None],
    )
    words = table[cosines.argmax(-1)].requires_grad_(True)
    loss = one.losses(search._model, encode_with_prefix(search._model, search._behind, words)).sum()
    (gradient,) = torch.autograd.grad(loss, words)
    expected = before * (1 - 0.01 * 0.5) - 0.01 * gradient / (gradient.abs() + 1e-8)  # AdamW's first step
    assert torch.allclose(search.soft, expected, atol=1e-4)


def test_planted_words_are_better_than_the_prompt(made: Made) -> None:
    """What the base predicts for its caption, the attacked model predicts for other words: these are found."""
    search = search_of(made, tokens=1, learning_rate=0.05, weight_decay=0.0)
    words, model = search._words, search._model
    with torch.no_grad():
        wanted = search._pool.predictions(model, model.encode_prompts(["z"] * 3))
    search._pool = replace(search._pool, wanted=wanted)
    seen = set()
    for _ in range(60):
        search.step()
        seen |= set(search.texts())
    with torch.no_grad():
        every = torch.stack([search._pool.losses(model, model.encode_prompts([text] * 3)) for text in words.words])
    best = {text: float(every[words.words.index(text)].mean()) for text in seen}
    assert min(best.values()) < float(every.mean(1).quantile(0.2)), "among the best fifth of all words"


def test_more_words_than_are_read_are_refused(made: Made) -> None:
    for name in ("p4d", "unlearndiffatk", "coordinate-descent", "ring-a-bell", "mma"):
        target: Target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
        with pytest.raises(UsageFault, match="reads 14 tokens of a prompt, and 15 words"):
            run(attack(name, tokens=15), target)
