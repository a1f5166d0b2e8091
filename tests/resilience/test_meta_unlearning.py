"""Meta-unlearning: check values on quadratics, its gradient against slow arithmetic, and what it does to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from safeguard.config import Training
from safeguard.errors import UsageFault
from safeguard.finetune.base import Run
from safeguard.resilience.meta_unlearning import MetaUnlearning, MetaUnlearningConfig, meta_gradient
from safeguard.resilience.none import NoConfig, NoObjective
from safeguard.resilience.second_order.solvers import Vector
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import bounded_ascent, distillation
from safeguard.unlearn.esd import ESD, ESDConfig
from safeguard.unlearn.safegen import SafeGen, SafeGenConfig
from safeguard.unlearn.uce import UCE, UCEConfig
from tests.contexts import apart, drawn_context, learning, mixed_concepts, moved_context, tiny_context
from tests.resilience.second_order.test_solvers import THETA, A, H
from tests.resilience.second_order.test_trajectory import OPTIMIZERS, Scripted

H_BENIGN = torch.diag(torch.tensor([0.2, 0.6, 0.1], dtype=torch.float64))
A_BENIGN = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
ESD_CONFIG = ESDConfig(variant="f", batch_size=2, trajectory_steps=3, pool=2)


# -- quadratics ------------------------------------------------------------------------------------------------------


def fitted(x: Tensor) -> Tensor:
    return 0.5 * (x - A) @ H @ (x - A)


def known(x: Tensor) -> Tensor:
    return 0.5 * (x - A_BENIGN) @ H_BENIGN @ (x - A_BENIGN)


def quadratic(training: Training, start: Tensor = THETA, loss: Callable[[Tensor], Tensor] = fitted) -> Run:
    """A fine-tune of three numbers."""
    x = torch.nn.Parameter(start.clone())
    return Scripted([x], lambda generator: loss(x), training)


def training(**changes: Any) -> Training:
    return Training.model_validate(
        {"steps": 1, "learning_rate": 0.1, "optimizer": "sgd", "max_grad_norm": 1e9} | changes
    )


def found(run: Run, *, exact: bool = True, zeta: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    x = run.parameters[0]
    gradient, facts = meta_gradient(
        run, [x], lambda: fitted(x), lambda: known(x), zeta=zeta, exact=exact, backend="explicit"
    )
    return gradient[0], facts


def test_the_meta_loss_of_the_check_value():
    _, facts = found(quadratic(training()))
    loss = -facts["fine-tuning loss after inner steps"] - facts["benign loss after inner steps"] + facts["benign loss"]
    assert loss == pytest.approx(-0.923968150, abs=1e-9)


def test_the_exact_gradient_of_the_check_value():
    gradient, _ = found(quadratic(training()))
    assert gradient.tolist() == pytest.approx([-0.025119, -0.513144, 0.606556], abs=1e-6)


def test_the_released_gradient_of_the_check_value():
    gradient, facts = found(quadratic(training()), exact=False)
    assert gradient.tolist() == pytest.approx([-0.0529, -0.5468, 0.6494], abs=1e-6)
    assert "cosine of hypergradient and first order" not in facts


def test_the_terms_of_equation_four_are_those_at_the_start():
    _, facts = found(quadratic(training()))
    g, b = H @ (THETA - A), H_BENIGN @ (THETA - A_BENIGN)
    cosine = g @ b / g.norm() / b.norm()
    assert facts["cosine of fine-tuning and benign gradients"] == pytest.approx(cosine.item())
    approximation = -facts["fine-tuning loss"] + 0.1 * (facts["gradient norm term"] + facts["gradient angle term"])
    assert approximation == pytest.approx(-0.920580000, abs=1e-9)


def bent(x: Tensor) -> Tensor:
    """Not a quadratic: its Hessian moves along the way."""
    return fitted(x) + 0.1 * x.pow(4).sum()


def simulated(start: Tensor, how: Training, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """L_meta by running the optimiser."""
    run = quadratic(how, start, loss)
    for _ in range(how.steps):
        run.step()
    return -fitted(run.parameters[0]) - 0.7 * (known(run.parameters[0]) - known(start))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [1e9, 0.5])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_exact_gradient_is_the_slope_of_what_happens(optimizer, clip, steps):
    how = training(optimizer=optimizer, steps=steps, max_grad_norm=clip, learning_rate=0.05)
    gradient, _ = found(quadratic(how, loss=bent), zeta=0.7)
    for axis in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[axis] = 1e-5
        grad = (simulated(THETA + nudge, how, bent) - simulated(THETA - nudge, how, bent)) / 2e-5
        assert gradient[axis].item() == pytest.approx(grad.item(), abs=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_harmful_loss_is_pulled_back_from_where_the_inner_steps_end(steps):
    how = training(steps=steps, learning_rate=0.05)

    def harm(x: Tensor) -> Tensor:
        return (x + 1).pow(4).sum()

    def after(start: Tensor) -> Tensor:
        run = quadratic(how, start, bent)
        for _ in range(steps):
            run.step()
        return harm(run.parameters[0]) - 0.7 * (known(run.parameters[0]) - known(start))

    run = quadratic(how, loss=bent)
    x = run.parameters[0]
    (gradient,), facts = meta_gradient(
        run, [x], lambda: fitted(x), lambda: known(x), harmful_loss=lambda: harm(x), zeta=0.7, backend="explicit"
    )
    for axis in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[axis] = 1e-5
        grad = (after(THETA + nudge) - after(THETA - nudge)) / 2e-5
        assert gradient[axis].item() == pytest.approx(grad.item(), rel=1e-6)
    end = quadratic(how, loss=bent)
    for _ in range(steps):
        end.step()
    assert facts["erasure loss after inner steps"] == pytest.approx(harm(end.parameters[0]).item())


def test_one_step_of_adam_has_no_second_order():
    """Its length is the learning rate whatever the gradient."""
    exact, _ = found(quadratic(training(optimizer="adam")))
    released, _ = found(quadratic(training(optimizer="adam")), exact=False)
    assert torch.allclose(exact, released, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_weight_without_gradient_stays_out_of_it(optimizer):
    """Adam divides by the root of an average that is zero there."""

    def partly(x: Tensor) -> Tensor:
        return fitted(x * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))

    gradient, _ = found(quadratic(training(optimizer=optimizer, steps=3), loss=partly))
    assert torch.isfinite(gradient).all()
    assert gradient.norm() < 10


def test_the_gap_to_first_order_closes_with_the_learning_rate():
    gaps = []
    for rate in (1e-2, 1e-3):
        exact, _ = found(quadratic(training(learning_rate=rate)))
        released, _ = found(quadratic(training(learning_rate=rate)), exact=False)
        gaps.append((exact - released).norm().item())
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.05)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_descending_the_gradient_descends_the_loss(optimizer):
    how = training(optimizer=optimizer, steps=3, learning_rate=0.05)
    gradient, _ = found(quadratic(how), zeta=0.7)
    first, _ = found(quadratic(how), exact=False, zeta=0.7)
    here = simulated(THETA, how, fitted)
    assert simulated(THETA - 1e-3 * gradient, how, fitted) < here
    assert first @ gradient > 0, "curvature below 1 / (rate x steps) leaves first order a direction of descent"


# -- a tiny model ----------------------------------------------------------------------------------------------------


def objective(context: HardeningContext | None = None, **settings: Any) -> MetaUnlearning:
    context = context or tiny_context()
    inner = {"learning_rate": 0.05, "batch_size": 2} | settings.pop("training", {})
    config = MetaUnlearningConfig.model_validate({"bound": None, "training": inner} | settings)
    return MetaUnlearning(config, context, ESD(ESD_CONFIG, context))


def gradients(of: MetaUnlearning | NoObjective, step: int = 0) -> Vector:
    values = list(learning(of.parameters()).values())
    for value in values:
        value.grad = None
    before = [value.detach().clone() for value in of.context.model.named_parameters().values()]
    of.compute_gradients(step)
    after = of.context.model.named_parameters().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "weights must be as they were"
    return [value.grad.clone() for value in values]


def test_a_weight_of_zero_must_leave_something_to_do():
    context = tiny_context()
    with pytest.raises(UsageFault, match="a closed form, whose edit comes first, counts only"):
        MetaUnlearning(MetaUnlearningConfig(gamma2=0.0), context, UCE(UCEConfig(), context))
    with pytest.raises(UsageFault, match="a harmful_loss counts only"):
        objective(context, gamma2=0.0, harmful_loss={"name": "ga"})


def test_with_all_weights_zero_the_step_is_the_unlearners():
    context = tiny_context()
    meta = gradients(objective(context, gamma2=0.0))
    assert apart(meta, gradients(NoObjective(NoConfig(), context, ESD(ESD_CONFIG, context)))) < 1e-6


def test_distillation_is_added_with_its_weight():
    context = moved_context()  # at the base model's weights the distillation is at its minimum
    alone = {"gamma1": 0.0, "gamma2": 1e-12}
    kept = gradients(objective(context, **alone, preserve_weight=2.0, preserve_batch=3))
    assert max(float(value.abs().max()) for value in kept) > 0
    twice = gradients(objective(context, **alone, preserve_weight=4.0, preserve_batch=3))
    assert apart(twice, [2 * value for value in kept]) < 1e-5
    generator = torch.Generator().manual_seed(derive(context.seed, "outer", 0))
    built = objective(context, **alone)
    built.unlearner.loss(generator)  # draws first
    loss = distillation(context, context.preserved, 3, generator)
    expected = torch.autograd.grad(2 * loss, list(built.parameters().values()), materialize_grads=True)
    assert apart(kept, list(expected)) < 1e-5


def unrolled(context: HardeningContext, config: MetaUnlearningConfig) -> Vector:
    """The gradient of Eq. 2 by automatic differentiation through one or two steps of descent, written out."""
    model = context.model
    values = dict(model.unet.named_parameters())
    generator = torch.Generator().manual_seed(derive(context.seed, "outer", 0))

    def draw(data, generator):
        batch = data.batch(2, generator)
        return batch, *model.draw_noise(2, generator)

    def loss(weights, batch, t, noise):
        noisy = model.add_noise(batch.latents, noise, t)
        states = model.encode_prompts(batch.captions).states
        answer = torch.func.functional_call(model.unet, weights, (noisy, t, states))[0]
        return (answer - noise).pow(2).mean()

    ESD(ESD_CONFIG, context).loss(generator)  # what the base unlearner draws
    concept, related, retain = (draw(data, generator) for data in (context.forget, context.related, context.retain))
    inner = torch.Generator().manual_seed(derive(context.seed, "inner", 0))
    moved = dict(values)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for _ in range(config.training.steps):
            grads = torch.autograd.grad(
                loss(moved, *draw(context.forget, inner)), list(moved.values()), create_graph=True
            )
            size = torch.stack([grad.pow(2).sum() for grad in grads]).sum().sqrt()
            step = config.training.learning_rate * (1 / (size + 1e-6)).clamp(max=1.0)
            moved = {name: value - step * grad for (name, value), grad in zip(moved.items(), grads, strict=True)}

        def benign(weights):
            return config.related_share * loss(weights, *related) + (1 - config.related_share) * loss(weights, *retain)

        def ascended(value):
            return -value if config.bound is None else bounded_ascent(value, config.bound)

        meta = ascended(loss(moved, *concept)) + config.zeta * (ascended(benign(moved)) + benign(values))
        return list(torch.autograd.grad(meta, list(values.values())))


@pytest.mark.parametrize(
    "settings",
    [{}, {"training": {"steps": 2}, "zeta": 0.3, "related_share": 0.8}, {"bound": 1.2}, {"hvp": "explicit"}],
    ids=["one-step", "two-steps", "bounded", "explicit"],
)
def test_the_exact_gradient_is_that_of_the_unrolled_loop(settings):
    context = tiny_context()
    of = objective(context, gamma1=0.0, gamma2=1.0, **settings)
    assert apart(gradients(of), unrolled(context, of.config)) < 1e-3


def test_second_order_is_not_negligible_there():
    context = tiny_context()
    exact, released = (gradients(objective(context, gamma1=0.0, gamma2=1.0, variant=v)) for v in ("exact", "released"))
    assert apart(released, exact) > 0.05


def test_finite_differences_give_the_same_gradient():
    context = tiny_context()
    exact, differences = (
        gradients(objective(context, gamma1=0.0, gamma2=1.0, hvp=hvp)) for hvp in ("fused", "finite_difference")
    )
    assert apart(differences, exact) < 1e-2


def test_without_movement_only_the_fine_tuning_loss_is_ascended():
    """tau -> 0: the benign terms cancel, whatever their weight."""
    context = tiny_context()
    settings = {"gamma1": 0.0, "gamma2": 1.0, "training": {"learning_rate": 1e-12}}
    small, large = (gradients(objective(context, zeta=zeta, **settings)) for zeta in (0.0, 5.0))
    assert apart(large, small) < 1e-3


@pytest.mark.parametrize("group", ["cross-attention", "text-encoder"])
def test_the_gradient_of_a_part_is_a_part_of_the_gradient(group):
    """The simulated fine-tune trains the whole model, whatever learns."""
    context = moved_context()
    if group == "text-encoder":
        context.model.exposed_parts |= {"text_encoder"}
    whole = objective(context, gamma1=0.0, gamma2=1.0, parameters="full")
    part = objective(context, gamma1=0.0, gamma2=1.0, parameters=group)
    by_name = dict(zip(whole.parameters(), gradients(whole), strict=True))
    assert apart(gradients(part), [by_name[name] for name in part.parameters()]) < 1e-4


def test_parameters_that_the_unlearner_leaves_alone_are_refused():
    with pytest.raises(UsageFault, match="does not depend on the parameters 'text-encoder'"):
        context = tiny_context()
        config = MetaUnlearningConfig(parameters="text-encoder")
        gradients(MetaUnlearning(config, context, SafeGen(SafeGenConfig(batch_size=2), context)))


def test_a_step_depends_on_seed_and_step_alone():
    one, two = (gradients(objective(training={"optimizer": "momentum", "steps": 2}), 3) for _ in range(2))
    other = gradients(objective(training={"optimizer": "momentum", "steps": 2}), 4)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert apart(other, one) > 1e-3


def test_descending_raises_what_a_fine_tune_ends_at():
    """The point of it: after some steps, the same fine-tune leaves a larger loss, and benign knowledge is kept."""
    context = tiny_context()
    of = objective(context, gamma1=0.0, gamma2=1.0)
    optimizer = torch.optim.Adam(learning(of.parameters()).values(), lr=1e-4)
    first = of.compute_gradients(0)
    for _ in range(5):
        optimizer.step()
        last = of.compute_gradients(0)
    assert last["fine-tuning loss after inner steps"] > first["fine-tuning loss after inner steps"]


def test_it_is_asked_for_something():
    with pytest.raises(ValueError, match="gamma1 and gamma2 are both 0"):
        MetaUnlearningConfig(gamma1=0.0, gamma2=0.0)


def test_it_needs_benign_images():
    context = drawn_context({"name": "esd"}, mixed_concepts(1))
    with pytest.raises(UsageFault, match="needs benign images"):
        MetaUnlearning(MetaUnlearningConfig(), context, ESD(ESD_CONFIG, context))


def test_the_record_names_what_the_report_draws():
    from safeguard.report.series import TRACES

    of = objective()
    learning(of.parameters())
    assert set(TRACES) <= set(of.compute_gradients(0))
