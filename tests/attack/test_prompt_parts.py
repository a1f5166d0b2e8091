"""What prompt attacks are made of: words, simplex, embeddings in a prompt, noisy images, and what is kept."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from safeguard import reference
from safeguard.attack.prompts.base import Kept, subjects
from safeguard.attack.prompts.points import fixed_points, spaced_times
from safeguard.attack.prompts.simplex import draw, project
from safeguard.attack.prompts.vocabulary import typed_words, vocabulary
from safeguard.config import FineTuningData
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import PLACEHOLDER, encode_with_prefix, encode_with_words, token_table
from safeguard.errors import ModelFault, UsageFault
from tests.attack.conftest import Made
from tests.attack.prompt_runs import drawn, losses, read_ids
from tests.contexts import seeded, tiny_policy
from tests.tiny import ARCHITECTURES, tiny_pipeline, tiny_sdxl_pipeline, tiny_tokenizer

every_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


def nearest_by_trial(y: torch.Tensor) -> torch.Tensor:
    """The nearest point of the simplex: on each face the nearest point of its plane, and of those inside the best."""
    best, least = y, float("inf")
    for size in range(1, len(y) + 1):
        for face in combinations(range(len(y)), size):
            point = torch.zeros_like(y)
            point[list(face)] = y[list(face)] - (y[list(face)].sum() - 1) / size
            distance = float((point - y).pow(2).sum())
            if point.min() >= 0 and distance < least:
                best, least = point, distance
    return best


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    points = torch.randn(40, 6, generator=seeded(0), dtype=torch.float64) * torch.linspace(0.05, 3, 40)[:, None]
    expected = torch.stack([nearest_by_trial(row) for row in points])
    assert torch.allclose(project(points), expected, atol=1e-12)
    assert torch.allclose(project(expected), expected, atol=1e-12), "what lies on it stays"
    assert torch.allclose(project(points.view(4, 10, 6)).view(40, 6), expected, atol=1e-12)


def test_a_large_row_stays_on_the_simplex() -> None:
    found = project(torch.randn(3, 40_000, generator=seeded(0)))
    assert (found >= 0).all() and torch.allclose(found.sum(-1), torch.ones(3), atol=1e-4)


def test_words_are_drawn_by_their_shares() -> None:
    shares = torch.tensor([0.0, 0.25, 0.75, 0.0]).expand(40, 100, 4)
    counts = draw(shares, seeded(0)).flatten().bincount(minlength=4)
    assert counts[0] == counts[3] == 0 and abs(int(counts[1]) - 1000) < 110  # four standard deviations


@pytest.mark.parametrize("tokenizer", ["tiny", "reference"])
def test_any_words_together_are_read_as_exactly_these(tokenizer: str) -> None:
    made: Any = (
        tiny_tokenizer() if tokenizer == "tiny" else CLIPTokenizer.from_pretrained(reference.path() / "tokenizer")
    )
    words = typed_words(made)
    assert not set(words.values()) & set(made.all_special_ids) and "axe" in words
    assert "x" in words and "ax" not in words, "the beginning of a word is none"
    order = torch.randperm(len(words), generator=seeded(0)).tolist()
    names = [list(words)[place] for place in order]
    text = " ".join([*names, "an axe"])
    assert made(text, add_special_tokens=False).input_ids == [
        *(words[name] for name in names),
        *made("an axe", add_special_tokens=False).input_ids,
    ]


def test_the_table_has_the_embeddings_of_the_words() -> None:
    model = DiffusionModel(tiny_sdxl_pipeline())
    found = vocabulary(model, tiny_policy().concepts)
    place = found.words.index("axe")
    encoders: list[Any] = [model.pipeline.text_encoder, model.pipeline.text_encoder_2]
    (token,) = read_ids(model, "axe")
    expected = torch.cat([encoder.get_input_embeddings().weight[token] for encoder in encoders])
    assert found.ids[place] == token and torch.equal(found.table[place], expected)
    assert found.text([place, found.words.index("x")]) == "axe x"


def test_a_word_for_minors_is_never_a_candidate() -> None:
    pipeline = tiny_pipeline(0)
    words = pipeline.tokenizer.get_vocab()
    for token in ("te", "tee", "teen</w>"):
        words[token] = words.pop(f"{chr(161 + len(token))}</w>")  # instead of tokens that nothing here asks for
    merges = [("a", "x"), ("ax", "e</w>"), ("t", "e"), ("te", "e"), ("tee", "n</w>")]
    pipeline.tokenizer = CLIPTokenizer(vocab=words, merges=merges, model_max_length=16, pad_token="<|endoftext|>")
    model = DiffusionModel(pipeline)
    assert "teen" in typed_words(pipeline.tokenizer)
    assert "teen" not in vocabulary(model, tiny_policy().concepts).words


def test_two_encoders_with_different_vocabularies_are_refused() -> None:
    pipeline = tiny_sdxl_pipeline()
    words = pipeline.tokenizer_2.get_vocab()
    words["x</w>"], words["y</w>"] = words["y</w>"], words["x</w>"]
    pipeline.tokenizer_2 = CLIPTokenizer(vocab=words, merges=[("a", "x"), ("ax", "e</w>")], model_max_length=16)
    with pytest.raises(ModelFault, match="different vocabularies"):
        vocabulary(DiffusionModel(pipeline), tiny_policy().concepts)


@every_architecture
def test_embeddings_in_the_middle_of_prompts_are_those_words(architecture: str) -> None:
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    ids = read_ids(model, "axe x")
    words = token_table(model)[ids].expand(70, -1, -1)
    texts, places = [f"z {PLACEHOLDER} y {PLACEHOLDER}"] * 70, torch.tensor([[2, 4]] * 70)
    places[3], texts[3] = torch.tensor([1, 2]), f"{PLACEHOLDER} {PLACEHOLDER} y z"
    with torch.no_grad():
        found = encode_with_words(model, texts, places, words)
        expected = model.encode_prompts(["z axe y x"] * 3 + ["axe x y z"] + ["z axe y x"] * 66)
    assert torch.allclose(found.states, expected.states, atol=1e-5)
    if expected.pooled is not None and found.pooled is not None:
        assert torch.allclose(found.pooled, expected.pooled, atol=1e-5)
    assert (found.pooled is None) == (expected.pooled is None)


@every_architecture
def test_gradients_of_embeddings_are_finite_differences(architecture: str) -> None:
    pipeline = ARCHITECTURES[architecture](0)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(pipeline, part, None) is not None:
            getattr(pipeline, part).double()
    model = DiffusionModel(pipeline)
    images = torch.randn(2, *model.latent_shape, generator=seeded(0))
    points = fixed_points(model, images, 2, seeded(1))
    points = type(points)(points.latents.double(), points.t, points.wanted.double())
    words = token_table(model)[[3, 4, 5, 6]].view(2, 2, -1).requires_grad_(True)

    def loss(words: torch.Tensor) -> torch.Tensor:
        return points.losses(model, encode_with_prefix(model, ["an axe", "x"], words)).sum()

    (gradient,) = torch.autograd.grad(loss(words), words)
    direction = torch.randn(words.shape, generator=seeded(2), dtype=torch.float64)
    step = 1e-4 * direction
    with torch.no_grad():
        slope = (loss(words + step) - loss(words - step)) / 2e-4
    assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_the_loss_of_a_prompt_is_the_error_of_the_predicted_noise() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    images = torch.randn(3, *model.latent_shape, generator=seeded(0))
    points = fixed_points(model, images, 4, seeded(1))
    texts = ["an axe", "x", "a hammer"]
    with torch.no_grad():
        expected = losses(model, points, texts)
        assert torch.allclose(points.losses(model, model.encode_prompts(texts)), expected, atol=1e-6)
    alphas = model.alphas_cumprod[points.t][..., None, None, None]
    assert torch.allclose(points.latents, alphas.sqrt() * images[:, None] + (1 - alphas).sqrt() * points.wanted)
    assert points.t.tolist() == [[125, 375, 625, 875]] * 3


def test_the_timesteps_are_the_published_ones() -> None:
    assert spaced_times(DiffusionModel(tiny_pipeline(0)), 50) == list(range(10, 1000, 20))


def kept_of(made: Made) -> Kept:
    target = drawn(made, tiny_pipeline(0), tiny_pipeline(0))
    data = target.data.get(FineTuningData(shares={"concept": 1}, images=3), 0)
    return Kept(target, data, fixed_points(target.model, data.mean, 2, seeded(0)))


def test_only_what_is_better_is_kept(made: Made) -> None:
    kept = kept_of(made)
    start, first = kept.losses.clone(), list(kept.texts)
    assert first == kept.captions and set(first) == {"an axe", "a big axe"}
    offers = [[f"{word} {text}" for text in first] for word in "abcdefgh"]
    measured = torch.stack([start, *(kept.measure(texts) for texts in offers)])
    for texts in offers:
        kept.offer(texts)
    assert torch.equal(kept.losses, measured.min(0).values) and (kept.losses < start).any()
    assert torch.equal(kept.measure(kept.texts), kept.losses)
    assert kept.prompts.texts == {"axes": kept.texts} and kept.loss == pytest.approx(float(kept.losses.mean()))


def test_what_the_content_filter_refuses_is_not_kept(made: Made) -> None:
    kept = kept_of(made)
    kept.losses = torch.full_like(kept.losses, torch.inf)
    kept.offer(["a teen nude", "t e e n n u d e", "z axe"])
    assert kept.texts == [*kept.captions[:2], "z axe"]


def test_a_concept_without_an_image_is_named() -> None:
    concepts = tiny_policy().concepts
    more = [*concepts, concepts[0].model_copy(update={"name": "swords", "prompts": ["a sword"]})]
    assert [concept.name for concept in subjects(more, ["a sword", "an axe"])] == ["swords", "axes"]
    with pytest.raises(UsageFault, match="is of 'swords'"):
        subjects(more, ["an axe"])
