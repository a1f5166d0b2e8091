"""A word is learnt, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import Run, fine_tune
from safeguard.finetune.textual_inversion import TextualInversion
from safeguard.finetune.word import WordConfig
from tests.contexts import seeded
from tests.tiny import ARCHITECTURES, tiny_pipeline

TRAINING = Training(steps=4, learning_rate=0.05, batch_size=2)


def encoded(model: DiffusionModel, prompt: str) -> Tensor:
    with torch.no_grad():
        return model.encode_prompts([prompt]).states


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_all_other_rows_and_weights_stay_bit_for_bit(architecture: str) -> None:
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    data = generate(model, ["a cat", "a dog"], 4, seed=0, steps=2)
    before = {name: value.detach().clone() for name, value in model.named_parameters().items()}
    others, word = encoded(model, "a cat"), encoded(model, "a photo of sks")
    run = Run(model, data, tuner := TextualInversion(WordConfig()), TRAINING, seed=0)
    assert torch.equal(encoded(model, "a photo of sks"), word), "it starts where it was"
    for _ in range(4):
        run.step()
    now = model.named_parameters()
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert {name.rpartition(".")[2] for name in set(now) - set(before)} == {"rows"}
    assert torch.equal(encoded(model, "a cat"), others) and not torch.equal(encoded(model, "a photo of sks"), word)
    for part in set(model.parts) - {"unet"}:
        embedding = model.parts[part].get_input_embeddings()
        tokenizer = getattr(model.pipeline, part.replace("text_encoder", "tokenizer"))
        learnt = tokenizer("sks", add_special_tokens=False).input_ids
        ids = torch.arange(embedding.num_embeddings)
        changed = (embedding(ids) != before[f"{part}.{name_of(before, part)}"]).any(-1)
        assert set(ids[changed].tolist()) == set(learnt)
        assert torch.equal(embedding(torch.tensor(learnt)), embedding.rows)
    tuner.detach(model)
    assert torch.equal(encoded(model, "a photo of sks"), word)


def name_of(names: dict[str, Tensor], part: str) -> str:
    found = [name for name in names if name.startswith(f"{part}.") and name.endswith("token_embedding.weight")]
    return found[0].removeprefix(f"{part}.")


def test_captions_and_prompts_have_the_word() -> None:
    config = WordConfig(word="sks ktn", templates=["a photo of {word}", "{caption} in {word}"])
    tuner, captions = TextualInversion(config), [f"image {i}" for i in range(20)]
    found = tuner.captions(captions, seeded(0))
    possible = [{"a photo of sks ktn", f"{caption} in sks ktn"} for caption in captions]
    assert all(caption in either for caption, either in zip(found, possible, strict=True))
    assert len({caption == "a photo of sks ktn" for caption in found}) == 2
    assert found == tuner.captions(captions, seeded(0)) != tuner.captions(captions, seeded(1))
    assert tuner.prompts(["x", "y", "z"]) == ["a photo of sks ktn", "y in sks ktn", "a photo of sks ktn"]


@pytest.mark.parametrize("template", ["a photo", "a photo of {words}", "{word} {}", "{word"])
def test_a_template_that_cannot_be_filled_is_refused(template: str) -> None:
    with pytest.raises(ValidationError):
        WordConfig(templates=[template])


def test_a_word_without_tokens_is_refused() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data = generate(model, ["a cat"], 1, seed=0, steps=2)
    with pytest.raises(UsageFault, match="no token"):
        list(fine_tune(model, data, TextualInversion(WordConfig(word=" ")), TRAINING, seed=0))
