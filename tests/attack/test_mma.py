"""MMA-Diffusion's search for words, in the text encoder alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.attack.mma import MMAConfig, Search, summary
from safeguard.attack.prompts.goals import names_of
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.data.screening import surroundings
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import encode_with_words, token_table
from safeguard.errors import UsageFault
from tests.attack.conftest import Made
from tests.attack.prompt_runs import attack, counted, drawn, run
from tests.contexts import tiny_policy
from tests.tiny import ARCHITECTURES, tiny_pipeline, tiny_sdxl_pipeline


def search_of(*prompts: str, model: DiffusionModel | None = None, **settings: Any) -> Search:
    model, concepts = model or DiffusionModel(tiny_pipeline(0)), tiny_policy().concepts
    config = MMAConfig.model_validate(MMAConfig.tiny().model_dump() | settings)
    return Search(config, model, vocabulary(model, concepts), list(prompts), surroundings(concepts), 0)


def cosine(model: DiffusionModel, one: str, other: str) -> float:
    """Of the text encoder's own pooled outputs; SDXL's are those of its second, projected."""
    tokenizer = getattr(model.pipeline, "tokenizer_2", model.pipeline.tokenizer)
    encoder = getattr(model.pipeline, "text_encoder_2", model.pipeline.text_encoder)
    with torch.no_grad():
        pooled = [
            encoder(tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids)
            for text in (one, other)
        ]
    a, b = (each.text_embeds if hasattr(each, "text_embeds") else each.pooler_output for each in pooled)
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("xl", [False, True])
def test_the_loss_is_the_angle_between_pooled_outputs(xl: bool) -> None:
    model = DiffusionModel(tiny_sdxl_pipeline() if xl else tiny_pipeline())
    search = search_of("an axe", "a big axe", model=model)
    for row, prompt in enumerate(("an axe", "a big axe")):
        expected = 1 - cosine(model, search.best[row], prompt)
        assert float(search.losses[row]) == pytest.approx(expected, abs=1e-5)


def test_the_gradient_is_that_of_the_word_at_its_own_place() -> None:
    search = search_of("an axe", tokens=3, top=1000)
    model, words, before = search._model, search._words, search.chosen[0].clone()
    table, step = token_table(model), 1e-2

    def loss(values: torch.Tensor) -> float:
        states = encode_with_words(model, ["a a a"], torch.tensor([[1, 2, 3]]), values[None])
        found = summary(model, ["a a a"], states)
        return float(1 - torch.cosine_similarity(found, search._goals)[0])

    ranked = search.promising()[0]
    for place in range(3):
        slopes = []
        for word in range(0, len(words), 6):
            towards = torch.zeros(3, table.shape[1])
            towards[place] = words.table[word]
            here = words.table[before]
            with torch.no_grad():
                slopes.append((loss(here + step * towards) - loss(here - step * towards)) / (2 * step))
        ranks = [ranked[place].tolist().index(word) for word in range(0, len(words), 6)]
        pairs = torch.corrcoef(torch.tensor([slopes, [float(rank) for rank in ranks]]))
        assert float(pairs[0, 1]) > 0.8, "the steeper it falls, the earlier the word is tried"


def test_the_best_candidate_is_taken_and_the_best_of_all_remembered() -> None:
    search = search_of("an axe", tries=40, top=20)
    values = [float(search.losses[0])]
    for _ in range(12):
        before = search.chosen[0].clone()
        search.step()
        assert int((search.chosen[0] != before).sum()) <= 1, "one word changes"
        values.append(float(search.losses[0]))
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
    expected = 1 - cosine(search._model, search.best[0], "an axe")
    assert values[-1] == pytest.approx(expected, abs=1e-5)


def test_every_place_has_its_share_of_candidates() -> None:
    search = search_of("an axe", tries=9, tokens=3)
    chosen = torch.full((3,), -1)
    candidates = search._candidates(chosen, torch.arange(15).view(3, 5))
    changed = (candidates != chosen).nonzero()[:, 1]
    assert changed.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    values = candidates[torch.arange(9), changed]
    assert all(int(value) // 5 == int(place) for value, place in zip(values, changed, strict=True))


def test_names_of_the_concept_are_no_candidates() -> None:
    model, concepts = DiffusionModel(tiny_pipeline(0)), tiny_policy().concepts
    every = vocabulary(model, concepts)
    found = every.without(names_of(concepts))
    assert set(every.words) - set(found.words) == {"axe"} and len(found.table) == len(found.ids) == len(found)
    place = found.words.index("x")
    assert torch.equal(found.table[place], every.table[every.words.index("x")])
    with pytest.raises(UsageFault, match="no word is left"):
        every.without(every.words)


def test_what_the_content_filter_refuses_is_not_taken() -> None:
    search = search_of("an axe", tokens=8)
    search.losses[:] = torch.inf
    before, best = search.chosen.clone(), list(search.best)
    spelt = torch.tensor([[search._words.words.index(letter) for letter in "teennude"]])
    search._take(0, spelt)
    assert torch.equal(search.chosen, before) and search.best == best


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_it_never_asks_the_denoiser(architecture: str, made: Made) -> None:
    target = drawn(made, ARCHITECTURES[architecture](0), tiny_pipeline(0))
    made_attack = attack("mma", checkpoints=[2, 5])
    with counted(target.model) as rows:
        found = run(made_attack, target)
    assert rows == [] and made_attack.cost().network_calls == 0 and made_attack.needs().gradients
    assert (found[0].loss or 0) >= (found[1].loss or 0) >= (found[2].loss or 0)
    assert found[2].prompts is not None
    texts = found[2].prompts.texts["axes"]
    assert len(texts) == 2 and all(len(text.split()) == 3 and "axe" not in text.split() for text in texts)
