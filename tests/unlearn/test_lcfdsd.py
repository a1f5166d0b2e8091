"""LCFDSD: every mode against a slow one over several steps, running means, and where gradients come from and lead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safeguard.errors import UsageFault
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import bounded_ascent
from safeguard.unlearn.lcfdsd import LCFDSD, LCFDSDConfig, contrast
from tests.contexts import MIXED, abar, answer, apart, gradients, learning, moved_context, seeded


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return moved_context(concepts=MIXED)


def lcfdsd(context: HardeningContext, **settings: object) -> LCFDSD:
    return LCFDSD(LCFDSDConfig.model_validate({"batch_size": 2} | settings), context)


class Slow:
    """The loss image by image; it remembers everything that it has seen."""

    def __init__(self, method: LCFDSD) -> None:
        self.method = method
        self.seen: dict[str, list[torch.Tensor]] = {"clean": [], "harmful": []}

    def loss(self, seed: int) -> torch.Tensor:
        method, config, context = self.method, self.method.config, self.method.context
        generator = seeded(seed)
        data = {"clean": method.clean, "harmful": context.forget}
        batches, captions = [], []
        for part in data.values():
            rows = torch.randint(len(part), (2,), generator=generator)
            batches.append(part.rows(rows, generator).latents)
            captions += [part.captions[row] for row in rows]
        t, noise = context.model.draw_noise(4, generator)
        kinds = ["clean", "clean", "harmful", "harmful"]
        images, errors = [], []
        for z, eps, time, caption, kind in zip(torch.cat(batches), noise, t.tolist(), captions, kinds, strict=True):
            sign = 1 if kind == "clean" else -1
            added = eps + sign if config.mode == "ng" else eps
            x = abar(time) ** 0.5 * z + (1 - abar(time)) ** 0.5 * added
            predicted = answer(context.model, x, time, caption)
            errors.append((predicted - eps).pow(2).mean())
            image = (x - (1 - abar(time)) ** 0.5 * predicted) / abar(time) ** 0.5
            if config.mode == "lt":
                image = -image - 100 if kind == "clean" else image + 100
            images.append(image)
            self.seen[kind].append(image)
        means = {kind: torch.stack(values).mean(0) for kind, values in self.seen.items()}
        total = torch.zeros(())
        for image, error, kind in zip(images, errors, kinds, strict=True):
            other = "harmful" if kind == "clean" else "clean"
            near = (image - means[kind]).pow(2).sum().sqrt()
            far = (image - means[other]).pow(2).sum().sqrt()
            apart = near - config.other_weight * max(far - config.margin, 0 * far)
            if config.variant == "released":
                apart = apart.detach()
            if kind == "clean":
                total = total + error + (0 if config.mode == "high" else method.weight * apart)
            else:
                total = total + method.weight * apart - (0.5 * error if config.mode == "high" else 0)
        self.seen = {kind: [value.detach() for value in values] for kind, values in self.seen.items()}
        return total / 4


@pytest.mark.parametrize("mode", ["ng", "lt", "high"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_losses_and_gradients_agree_with_slow_ones_over_several_steps(
    context: HardeningContext, mode: str, variant: str
) -> None:
    method = lcfdsd(context, mode=mode, variant=variant, parameters="cross-attention-kv", contrast_weight=0.05)
    parameters = learning(method.parameters())
    slow = Slow(method)
    for seed in range(3):
        found, expected = method.loss(seeded(seed)), slow.loss(seed)
        assert found.item() == pytest.approx(expected.item(), rel=1e-3)
        assert apart(gradients(found, parameters), gradients(expected, parameters)) < 1e-2
        method.after_step()
    assert method.state()["count"].item() == 6


def test_the_released_contrast_has_no_gradient(context: HardeningContext) -> None:
    found = {}
    for variant in ("paper", "released"):
        for weight in (1e-3, 1.0):
            method = lcfdsd(context, variant=variant, contrast_weight=weight, parameters="cross-attention-kv")
            parameters = learning(method.parameters())
            found[variant, weight] = gradients(method.loss(seeded(0)), parameters)
    same = zip(found["released", 1e-3], found["released", 1.0], strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert apart(found["paper", 1e-3], found["paper", 1.0]) > 0.1


def test_a_step_enters_the_means_once_and_by_its_first_images(context: HardeningContext) -> None:
    """A resilience objective asks for the loss again, at simulated weights, before the step is taken."""
    once, often = lcfdsd(context), lcfdsd(context)
    once.loss(seeded(0))
    for seed in range(3):
        often.loss(seeded(seed))
    for method in (once, often):
        method.after_step()
        method.after_step()
    assert all(torch.equal(once.state()[name], often.state()[name]) for name in ("clean", "harmful", "count"))
    assert once.state()["count"].item() == 2


def test_contrast_is_a_difference_of_distances() -> None:
    image, own, other = torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 5.0)
    assert contrast(image, own, other, 1.0, 0.0).tolist() == [6.0 - 10.0]
    assert contrast(image, own, other, 0.5, 4.0).tolist() == [6.0 - 3.0]
    assert contrast(image, own, other, 1.0, 20.0).tolist() == [6.0], "beyond the margin there is nothing to win"


def test_latent_transformation_moves_both_kinds_the_same_way() -> None:
    """As the docstring warns: the far distances of -x - 100 and x + 100 both grow with x."""
    x = torch.zeros(2, 1, 2, 2, requires_grad=True)
    clean, harmful = -x[:1] - 100, x[1:] + 100
    mean_clean, mean_harmful = clean.detach()[0], harmful.detach()[0]
    loss = contrast(clean, mean_clean, mean_harmful, 1, 0) + contrast(harmful, mean_harmful, mean_clean, 1, 0)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert (gradient < 0).all()


def test_the_ascent_of_high_safety_can_be_bounded(context: HardeningContext) -> None:
    free, bound = (lcfdsd(context, mode="high", bound=bound).loss(seeded(0)) for bound in (None, 1e-3))
    assert bound.item() > free.item()
    assert bounded_ascent(torch.tensor(1.0), 1e-3).item() == pytest.approx(0.0, abs=1e-6)


def test_nothing_is_drawn_before_it_is_needed(context: HardeningContext) -> None:
    """A phase that is already in the cache costs no image."""
    idle = replace(context, images=lambda name: pytest.fail(f"images of {name} were drawn"))
    method = lcfdsd(idle)
    method.prepare()
    assert set(method.state()) == {"clean", "harmful", "count"}


def test_without_clean_images_it_says_what_is_missing() -> None:
    lonely = moved_context(concepts=[MIXED[1]], retain=[])
    with pytest.raises(UsageFault, match="needs clean images"):
        lcfdsd(lonely)
