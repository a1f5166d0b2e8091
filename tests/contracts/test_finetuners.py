"""What holds for every registered fine-tuning method, those that nobody listed here among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from safeguard.config import Training
from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion import erasers
from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.errors import EnvironmentFault
from safeguard.finetune import base
from safeguard.finetune.base import FineTuner, Run, fine_tune, make_optimizer
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.resilience.second_order.hvp import hessian_product
from tests.contexts import apart, seeded
from tests.contracts.runs import tiny
from tests.tiny import ARCHITECTURES, tiny_pipeline

HERE = [name for name in finetuners.names() if not finetuners.get(name).needs_cuda]
"""Those that work on a CPU."""
CUDA = [name for name in finetuners.names() if name not in HERE]


@pytest.fixture(params=HERE)
def tuner(request: pytest.FixtureRequest) -> FineTuner:
    """Each method with its tiny settings, and what it needs beside the images that it learns."""
    tuner = finetuners.make(FineTuningMethod.model_validate(tiny(finetuners, request.param)))
    if tuner.beside is not None:
        tuner.preserve(generate(DiffusionModel(tiny_pipeline(0)), ["a bird"], 2, seed=1, steps=2))
    return tuner


@pytest.fixture(params=["denoiser", "text encoders", "erasers"])
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    """A model whose denoiser was hardened, one whose text encoders were besides, one with erasers."""
    model = DiffusionModel(ARCHITECTURES["sdxl" if request.param == "text encoders" else "sd1"](0))
    if request.param == "text encoders":
        model.exposed_parts |= {"text_encoder", "text_encoder_2"}
    if request.param == "erasers":
        erasers.attach(model.unet, rank=2, activation="gelu", seed=0)
        for eraser in erasers.erasers(model.unet).values():
            torch.nn.init.normal_(eraser.up.weight, generator=seeded(1))  # as an unlearner leaves it
    return model


def cats(model: DiffusionModel) -> LatentSet:
    return generate(model, ["a cat", "a dog"], 4, seed=0, steps=2)


def predict(model: DiffusionModel) -> Tensor:
    latents = torch.randn(2, *model.latent_shape, generator=seeded(0))
    with torch.no_grad():
        return model.predict(latents, torch.tensor([10, 500]), model.encode_anew(["a cat", "a dog"]))


def modules(model: DiffusionModel) -> Iterator[tuple[str, int, str]]:
    """Name, identity and kind of every module of every part."""
    for part, root in model.parts.items():
        for name, module in root.named_modules():
            yield f"{part}.{name}", id(module), type(module).__name__


def test_attaching_changes_nothing_and_detaching_leaves_no_trace(tuner: FineTuner, model: DiffusionModel) -> None:
    answer, built = predict(model), list(modules(model))
    hidden = {part: set(vars(root)) for part, root in model.parts.items()}
    before = {part: {k: v.clone() for k, v in root.state_dict().items()} for part, root in model.parts.items()}
    tuner.detach(model)  # what was never attached leaves none either
    for seed in (1, 1, 2):
        parameters = tuner.attach(model, seed)
        assert parameters and all(value.requires_grad for value in parameters)
        trained = {id(value) for value in parameters}
        assert {id(value) for value in model.named_parameters().values() if value.requires_grad} == trained
        of_part = {part: [v for v in root.parameters() if id(v) in trained] for part, root in model.parts.items()}
        assert all(bool(of_part[part]) == (part in tuner.parts(model)) for part in model.parts)
        assert torch.equal(predict(model), answer)
        tuner.detach(model)
        assert list(modules(model)) == built and {p: set(vars(r)) for p, r in model.parts.items()} == hidden
        assert not any(value.requires_grad for value in model.named_parameters().values())
        for part, root in model.parts.items():
            assert list(root.state_dict()) == list(before[part])
            assert all(torch.equal(value, before[part][name]) for name, value in root.state_dict().items())


def test_the_seed_determines_the_start_and_nothing_else_is_drawn(tuner: FineTuner) -> None:
    model, state, starts = DiffusionModel(tiny_pipeline(0)), torch.random.get_rng_state(), []
    for seed in (1, 1, 2):
        starts.append([value.detach().clone() for value in tuner.attach(model, seed)])
        tuner.detach(model)
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    adds = type(tuner).detach is not FineTuner.detach  # and may draw what it adds, or have it start at zero
    assert adds or all(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_learns_and_repeats_by_seed(tuner: FineTuner) -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data, start = cats(model), Weights(model.named_parameters())
    training = Training(steps=30, learning_rate=3e-3, batch_size=4)

    def known() -> float:
        batch, generator = data.rows(torch.arange(4), seeded(1)), seeded(2)
        with torch.no_grad():
            named = replace(batch, captions=tuner.captions(batch.captions, generator))
            return tuner.loss(model, named, generator).item()

    runs = []
    for seed in (7, 7, 8):
        runs.append([(step, loss, known()) for step, loss in fine_tune(model, data, tuner, training, seed=seed)])
        start.restore()
    assert runs[0] == runs[1] != runs[2]
    steps, losses, measured = zip(*runs[0], strict=True)
    assert steps == tuple(range(31)) and losses[0] is None and all(loss > 0 for loss in losses[1:])
    assert measured[30] < measured[0]


def test_a_fine_tune_that_is_broken_off_is_taken_away(tuner: FineTuner) -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data, built = cats(model), list(modules(model))
    for step, _ in fine_tune(model, data, tuner, Training(steps=9), seed=0):
        if step == 1:
            break
    assert list(modules(model)) == built
    with pytest.raises(KeyboardInterrupt):
        for _ in fine_tune(model, data, tuner, Training(steps=9), seed=0):
            raise KeyboardInterrupt
    assert list(modules(model)) == built


def test_its_second_derivative_is_that_of_its_loss_or_it_says_so(tuner: FineTuner) -> None:
    """Double backward against central differences of gradients, in float64, a few steps from the start."""
    model = DiffusionModel(tiny_pipeline(0))
    data = cats(model)
    run = Run(model, data, tuner, Training(steps=3, learning_rate=0.05, optimizer="adam"), seed=0)
    for _ in range(3):
        run.step()
    for part in model.parts.values():
        part.double()
    batch, (t, noise) = data.rows(torch.arange(2), seeded(1)), model.draw_noise(2, seeded(2))
    captions = tuner.captions(batch.captions, seeded(3))

    def loss() -> Tensor:
        states = model.encode_anew(captions).states
        output = model.unet(batch.latents.double(), t, states, return_dict=False)[0]
        return (output - noise.double()).pow(2).mean()

    values = [value for value in model.named_parameters().values() if value.requires_grad]
    v = [torch.randn(value.shape, dtype=value.dtype, generator=seeded(i)) for i, value in enumerate(values)]
    found = hessian_product(loss, values, "explicit")(v)
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for value, along in zip(values, v, strict=True):
                value.add_(step * along)
        ends.append(torch.autograd.grad(loss(), values))
        with torch.no_grad():
            for value, along in zip(values, v, strict=True):
                value.sub_(step * along)
    slow = [(a - b) / 2e-5 for a, b in zip(*ends, strict=True)]
    tuner.detach(model)
    assert (apart(found, slow) < 1e-4) == tuner.twice_differentiable


@pytest.mark.parametrize("fused", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_text_is_encoded_anew_after_every_step(
    tuner: FineTuner, optimizer: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images drawn after a step are those of the text encoder after it."""
    monkeypatch.setattr(base, "make_optimizer", partial(make_optimizer, fused=fused))
    model = DiffusionModel(tiny_pipeline(0))
    model.exposed_parts |= {"text_encoder"}
    training = Training.model_validate({"steps": 3, "learning_rate": 0.05, "optimizer": optimizer, "batch_size": 2})
    seen: list[Tensor] = []
    for _ in fine_tune(model, cats(model), tuner, training, seed=0):
        with torch.no_grad():
            asked = tuner.prompts(["a cat"])
            seen.append(model.encode_prompts(asked).states)
            assert torch.allclose(seen[-1], model.encode_anew(asked).states, atol=1e-5)
    if optimizer == "adamw":
        assert not torch.allclose(seen[0], seen[-1], atol=1e-5), "the text encoder learnt"


@pytest.mark.parametrize("name", CUDA)
def test_what_needs_a_gpu_says_so_and_leaves_no_trace(name: str, model: DiffusionModel) -> None:
    tuner = finetuners.make(FineTuningMethod.model_validate(tiny(finetuners, name)))
    built, data = list(modules(model)), cats(model)
    with pytest.raises(EnvironmentFault, match="CUDA"):
        list(fine_tune(model, data, tuner, Training(steps=1), seed=0))
    assert list(modules(model)) == built
    assert not any(value.requires_grad for value in model.named_parameters().values())
