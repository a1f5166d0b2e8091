"""ResAlign's settings on a tiny model: schedules, presets, low rank, harmful losses, hypergradients, the record."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from safeguard.errors import UsageFault
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import ResilienceMethod
from safeguard.policy.study import cells, load_study
from safeguard.resilience.base import Facts
from safeguard.resilience.resalign import PRESETS, ResAlign, ResAlignConfig
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.contexts import apart, tiny_context

SHORT = {"learning_rates": [1e-3], "steps": [2], "optimizers": ["sgd"]}


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return tiny_context()


def objective(context: HardeningContext, **settings: Any) -> ResAlign:
    defaults = {"distribution": SHORT, "simulations": 1, "alpha": 0.0, "parameters": "cross-attention"}
    paper = {"harmful_loss": None, "hypergradient": "moreau", "evaluations": 1}
    config = ResAlignConfig.model_validate(defaults | paper | settings)
    return ResAlign(config, context, GradientAscent(GradientAscentConfig(batch_size=2), context))


def compute_gradients(context: HardeningContext, step: int = 0, **settings: Any) -> tuple[list[torch.Tensor], Facts]:
    """Gradients and facts of one outer step; the weights stay as they were."""
    built = objective(context, **settings)
    before = [value.detach().clone() for value in context.model.unet.parameters()]
    facts = built.compute_gradients(step)
    assert all(torch.equal(a, b) for a, b in zip(before, context.model.unet.parameters(), strict=True))
    found = [value.grad.clone() for value in built.trained().values()]  # type: ignore[union-attr]
    for value in built.trained().values():
        value.grad = None
    return found, facts


def distribution(**settings: Any) -> dict[str, Any]:
    return SHORT | settings


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_beta_rises_as_declared(context: HardeningContext, schedule: str) -> None:
    built = objective(context, steps=10, beta=0.8, beta_schedule=schedule, beta_warm_in=0.4)
    found = [round(built.beta(step), 4) for step in range(5)]
    rising = {"constant": [0.8] * 3, "linear": [0.2, 0.4, 0.6], "cosine": [0.1172, 0.4, 0.6828]}[schedule]
    assert found == [*rising, 0.8, 0.8]


def test_alpha_ends_where_it_should(context: HardeningContext) -> None:
    built = objective(context, steps=160, alpha=1.6, alpha_final=2.0)
    assert built.alpha(0) == built.alpha(79) == 1.6
    assert built.alpha(120) == pytest.approx(1.8)
    assert built.alpha(80) == pytest.approx(1.6 + 0.4 * 0.0067, abs=1e-4)
    assert built.alpha(159) == pytest.approx(2.0, abs=4e-3)
    assert objective(context, alpha=1.6).alpha(159) == 1.6


def test_the_published_preset_passes_the_policy_check_and_gives_way() -> None:
    plain = {"name": "resalign", "preset": "published"}
    assert method_problems(ResilienceMethod.model_validate(plain)) == []
    for wrong in ("best", ["published"], {}):
        assert method_problems(ResilienceMethod.model_validate(plain | {"preset": wrong})) != []
    config = ResAlignConfig.model_validate_json(json.dumps({"preset": "published"}), strict=True)
    assert (config.gamma, config.solver, config.iterations, config.lora_rank) == (1.0, "fixed_point", 4, 4)
    assert config.distribution.learning_rates == [1e-4, 1e-5, 1e-6]
    assert ResAlignConfig(preset="published", gamma="matched", steps=7).gamma == "matched"
    assert set(PRESETS["published"]) <= set(ResAlignConfig.model_fields)


def test_what_is_given_within_the_distribution_leaves_the_rest_of_the_preset() -> None:
    published = ResAlignConfig(preset="published").distribution
    config = ResAlignConfig.model_validate({"preset": "published", "distribution": {"steps": [7]}})
    assert config.distribution == published.model_copy(update={"steps": [7]})


def test_the_defaults_are_the_setting_that_was_measured_but_for_the_learning_rates() -> None:
    study = next(cell for cell in cells(load_study("resilience")) if cell.name == "esd-f/resalign-single")
    measured = ResAlignConfig.model_validate(study.policy.harden.resilience.settings)
    distribution = {"prompts": [None, 1], "training": {"learning_rate": 2e-4}}
    assert ResAlignConfig.model_validate({"learning_rate": 4e-4, "distribution": distribution}) == measured


@pytest.mark.parametrize(
    "harmful",
    [{"name": "ga"}, {"name": "esd", "trajectory_steps": 2, "pool": 2}, {"name": "ca", "images": 2, "batch_size": 2}],
    ids=lambda harmful: harmful["name"],
)
def test_the_harmful_loss_is_chosen_by_name(context: HardeningContext, harmful: dict[str, Any]) -> None:
    found, facts = compute_gradients(context, harmful_loss=harmful, hypergradient="first_order", beta=1.0)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    assert facts["erasure loss after fine-tuning"] != 0 and facts["hypergradient norm"] > 0


def test_a_mistake_in_a_field_of_several_types_is_one_line() -> None:
    def lines(**settings: Any) -> list[str]:
        method = ResilienceMethod.model_validate({"name": "resalign", **settings})
        return [problem.line() for problem in method_problems(method)]

    assert lines(gamma="match") == ["gamma: should be a valid number or 'matched', not 'match'"]
    assert lines(gamma=-1.0) == ["gamma: should be greater than 0, not -1.0"]
    assert len(lines(harmful_loss=3)) == 1
    assert len(lines(distribution={"prompts": ["one"]})) == 1


def test_a_closed_form_is_no_harmful_loss(context: HardeningContext) -> None:
    with pytest.raises(UsageFault, match="uce is a closed form"):
        objective(context, harmful_loss={"name": "uce"})


def test_second_order_wants_fine_tunes_with_second_derivatives(context: HardeningContext) -> None:
    either = distribution(methods=[{"name": "lora"}, {"name": "dora"}])
    for settings in ({"hypergradient": "moreau"}, {"hypergradient": "first_order", "spectrum_every": 2}):
        with pytest.raises(UsageFault, match="a fine-tune by dora has no second derivatives"):
            objective(context, distribution=either, **settings)
    assert objective(context, distribution=either, hypergradient="first_order").products() is None


def test_low_rank_updates_get_the_gradient_of_their_weights(context: HardeningContext) -> None:
    plain, _ = compute_gradients(context, hypergradient="first_order")
    built = objective(context, hypergradient="first_order", lora_rank=2)
    factored, _ = compute_gradients(context, hypergradient="first_order", lora_rank=2)
    weights = objective(context).parameters()
    kept = {name: grad for (name, value), grad in zip(weights.items(), plain, strict=True) if value.dim() > 1}
    assert list(built.parameters()) == list(kept)
    for index, (name, grad) in enumerate(kept.items()):
        a = built.trained()[f"{name}.lora_A"]
        assert torch.allclose(factored[2 * index], grad @ a.mT, atol=1e-6)
        assert not factored[2 * index + 1].any(), "B is zero"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fine_tune_that_hardly_moves_has_no_second_order(context: HardeningContext, method: str) -> None:
    still = distribution(learning_rates=[1e-9], methods=[{"name": method}])
    first, unrolled, envelope = (
        compute_gradients(context, distribution=still, hypergradient=kind, beta=1.0)
        for kind in ("first_order", "unrolled", "moreau")
    )
    assert apart(unrolled[0], first[0]) < 1e-3 and apart(envelope[0], first[0]) < 1e-2
    for _, facts in (unrolled, envelope):
        assert facts["cosine of hypergradient and first order"] > 0.999


@pytest.mark.parametrize("kind", ["moreau", "unrolled"])
def test_the_record_says_what_happened(context: HardeningContext, kind: str) -> None:
    settings = {"hypergradient": kind, "spectrum_every": 2, "simulations": 2}
    facts = compute_gradients(context, step=0, **settings)[1]
    assert facts["simulations skipped"] == 0
    assert {f"guard: {name}" for name in ("diverging", "negative curvature", "not finite", "trust region")} <= set(
        facts
    )
    assert facts["smallest eigenvalue of the inner Hessian"] < facts["largest eigenvalue of the inner Hessian"]
    assert ("solver residual" in facts) == ("gamma" in facts) == (kind == "moreau")
    assert "largest eigenvalue of the inner Hessian" not in compute_gradients(context, step=1, **settings)[1]


def test_simulations_that_are_not_finite_are_skipped_and_counted(context: HardeningContext) -> None:
    broken = distribution(learning_rates=[1e30], training={"max_grad_norm": 1e30})
    found, facts = compute_gradients(context, distribution=broken, hypergradient="first_order", beta=0.5)
    assert facts["simulations skipped"] == 1.0 and facts["hypergradient norm"] == 0.0
    direct, _ = compute_gradients(context, distribution=SHORT, hypergradient="first_order", beta=0.0)
    assert apart(found, [0.5 * gradient for gradient in direct]) < 1e-6
