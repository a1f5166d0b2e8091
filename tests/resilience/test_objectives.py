"""Resilience objectives on a tiny model: identities that tie them to their unlearner, and repeatability."""

from __future__ import annotations

import pytest
import torch

from safeguard.policy.schema import FineTuningMethod
from safeguard.resilience.resalign import ResAlign, ResAlignConfig
from safeguard.resilience.simulation import Simulations
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.esd import ESD, ESDConfig
from tests.contexts import tiny_context

ESD_CONFIG = ESDConfig(variant="f", batch_size=2, trajectory_steps=3, pool=2)
SHORT = Simulations(learning_rates=[1e-3], steps=[3], optimizers=["sgd"])


def gradients(objective: object, step: int = 0) -> list[torch.Tensor]:
    context: HardeningContext = objective.context  # type: ignore[attr-defined]
    values = list(objective.parameters().values())  # type: ignore[attr-defined]
    for value in values:
        value.requires_grad_(True)
        value.grad = None
    before = [value.detach().clone() for value in context.model.unet.parameters()]
    objective.compute_gradients(step)  # type: ignore[attr-defined]
    after = list(context.model.unet.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "weights must be as they were"
    return [value.grad.clone() for value in values]


PAPER = {"harmful_loss": None, "hypergradient": "moreau", "evaluations": 1}
"""The unlearner's own loss at the end of a fine-tune, through a Moreau envelope."""


def resalign(**settings: object) -> ResAlign:
    context = tiny_context()
    config = ResAlignConfig.model_validate({"distribution": SHORT, "simulations": 1, "alpha": 0.0} | PAPER | settings)
    return ResAlign(config, context, ESD(ESD_CONFIG, context))


def test_without_beta_and_alpha_resalign_is_the_unlearner() -> None:
    objective = resalign(beta=0.0)
    total = gradients(objective)
    direct = torch.autograd.grad(
        objective.unlearner.loss(objective._generator(0, "direct")), list(objective.parameters().values())
    )
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(total, direct, strict=True))


def test_a_vanishing_gamma_makes_moreau_first_order() -> None:
    first = gradients(resalign(hypergradient="first_order"))
    moreau = gradients(resalign(hypergradient="moreau", gamma=1e-9))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, moreau, strict=True))


def test_a_large_gamma_makes_them_differ() -> None:
    first = gradients(resalign(hypergradient="first_order"))
    moreau = gradients(resalign(hypergradient="moreau", gamma=20.0, iterations=5))
    assert not all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(first, moreau, strict=True))


def test_evaluations_along_the_way_are_averaged() -> None:
    end = gradients(resalign(beta=1.0, evaluations=1, hypergradient="first_order"))
    along = gradients(resalign(beta=1.0, evaluations=3, hypergradient="first_order"))
    assert not all(torch.allclose(a, b) for a, b in zip(end, along, strict=True))
    assert all(torch.isfinite(gradient).all() for gradient in along)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_depends_on_seed_and_step_alone(method: str) -> None:
    distribution = SHORT.model_copy(update={"methods": [FineTuningMethod(name=method)]})
    one, two = (gradients(resalign(distribution=distribution, hypergradient="first_order"), 3) for _ in range(2))
    other = gradients(resalign(distribution=distribution, hypergradient="first_order"), 4)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_closed_form_gets_a_harmful_loss_of_its_own() -> None:
    from safeguard.unlearn.ga import GradientAscent
    from safeguard.unlearn.uce import UCE, UCEConfig

    context = tiny_context()
    objective = ResAlign(ResAlignConfig(harmful_loss=None, distribution=SHORT), context, UCE(UCEConfig(), context))
    assert isinstance(objective.unlearner, GradientAscent)
