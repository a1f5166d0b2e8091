"""L_harm: what it is the sum of, what it looks at after a simulated fine-tune, and how meta-unlearning descends it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.data.latents import LatentSet
from safeguard.errors import UsageFault
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import ResilienceMethod, UnlearnerMethod
from safeguard.resilience.harmful_loss import HarmfulLoss, JointLoss, harmful
from safeguard.resilience.meta_unlearning import MetaUnlearning, MetaUnlearningConfig
from safeguard.resilience.resalign import ResAlign, ResAlignConfig
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import bounded_ascent
from safeguard.unlearn.common.trajectories import draw_captions
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.contexts import MIXED, apart, learning, moved_context, seeded, tiny_context

GA = UnlearnerMethod.model_validate({"name": "ga", "batch_size": 2})
ANY = UnlearnerMethod.model_validate({"name": "ga", "batch_size": 2, "captions": "any"})
ESD = UnlearnerMethod.model_validate({"name": "esd", "variant": "f", "batch_size": 2, "trajectory_steps": 3, "pool": 2})
SDD = UnlearnerMethod.model_validate({"name": "sdd", "batch_size": 2, "trajectory_steps": 3})


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return moved_context()


def one_prompt(context: HardeningContext) -> LatentSet:
    return context.forget.only(["an axe"])


def test_the_losses_are_added(context: HardeningContext) -> None:
    joint = harmful([GA, ESD], context)
    generator = seeded(3)
    parts = harmful(GA, context).loss(generator) + harmful(ESD, context).loss(generator)
    assert joint.loss(seeded(3)).item() == pytest.approx(parts.item(), rel=1e-6)


def test_one_loss_is_the_unlearner_itself(context: HardeningContext) -> None:
    assert isinstance(harmful([GA], context), GradientAscent) and isinstance(harmful(GA, context), GradientAscent)


def assert_hears_of_a_step(of: JointLoss | MetaUnlearning, context: HardeningContext, prefix: str) -> None:
    state = {name: value.clone() for name, value in of.state().items()}
    assert state and all(name.startswith(prefix) for name in state)
    with torch.no_grad():
        for value in context.model.unet.parameters():
            value.add_(0.1)
    of.after_step()
    assert any(not torch.equal(state[name], value) for name, value in of.state().items())


def test_all_parts_hear_of_a_step_and_keep_their_state() -> None:
    context = tiny_context()
    joint = harmful([GA, SDD], context)
    assert isinstance(joint, JointLoss)
    assert_hears_of_a_step(joint, context, "1.")


@pytest.mark.parametrize(
    ("named", "where"),
    [(UnlearnerMethod(name="uce"), "harmful_loss"), ([GA, UnlearnerMethod(name="uce")], r"harmful_loss\[1\]")],
)
def test_a_closed_form_is_refused_wherever_it_stands(context: HardeningContext, named: HarmfulLoss, where: str) -> None:
    with pytest.raises(UsageFault, match=f"^{where}: uce is a closed form"):
        harmful(named, context)


def test_the_users_files_that_any_of_them_names_are_known(context: HardeningContext) -> None:
    parts = [harmful(GA, context), harmful(ESD, context)]
    parts[1].data_digest = "of a folder"
    assert JointLoss(parts).data_digest == "of a folder"
    of = meta(context, harmful_loss=[GA, ESD])
    assert isinstance(of._harmful_loss, JointLoss)
    of._harmful_loss.data_digest = "of a file"
    of.unlearner.data_digest = "of a base"
    assert of.data_digest == "of a base of a file"


def test_a_policy_may_list_several_and_each_is_checked() -> None:
    def problems(*losses: dict[str, Any]) -> list[str]:
        method = ResilienceMethod.model_validate({"name": "resalign", "harmful_loss": list(losses)})
        return [problem.line() for problem in method_problems(method)]

    assert problems({"name": "ga"}, {"name": "esd"}) == []
    assert problems({"name": "ga"}, {"name": "esd", "etta": 1})[0].startswith("harmful_loss[1].etta: unknown field")
    assert problems() == ["harmful_loss: should have 1 or more entries, not 0"]


def test_under_any_caption_are_the_images_just_taught(context: HardeningContext) -> None:
    loss, model, taught = harmful(ANY, context), context.model, one_prompt(context)

    def expected(data: LatentSet) -> float:
        generator = seeded(5)
        batch = data.batch(2, generator)
        captions = draw_captions(["an axe", "a big axe"], 2, generator)
        error = model.denoising_loss(batch.latents, model.encode_prompts(captions), generator)
        return bounded_ascent(error, GradientAscentConfig().bound).item()

    with context.after(taught):
        inside = loss.loss(seeded(5)).item()
    assert inside == pytest.approx(expected(taught), rel=1e-6)
    assert loss.loss(seeded(5)).item() == pytest.approx(expected(context.forget), rel=1e-6)
    assert inside != pytest.approx(expected(context.forget), rel=1e-3)


def test_any_caption_is_one_of_the_same_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    context = moved_context(concepts=MIXED)
    loss, asked = harmful(GA.model_copy(update={"captions": "any", "batch_size": 12}), context), list[str]()
    encode = context.model.encode_prompts
    monkeypatch.setattr(context.model, "encode_prompts", lambda prompts: asked.extend(prompts) or encode(prompts))
    with context.after(context.forget.only(["axe in ice", "old max"])):
        loss.loss(seeded(1))
    assert set(asked) == {"axe in ice", "axe in mud", "max", "old max"}


def test_harmless_images_are_never_made_unlikely(context: HardeningContext) -> None:
    assert context.retain is not None
    with context.after(context.retain):
        assert context.attacked is None
    with context.after(LatentSet.join([one_prompt(context), context.retain])):
        assert context.attacked is not None and set(context.attacked.captions) == {"an axe"}
    assert context.attacked is None


def meta(context: HardeningContext, **settings: Any) -> MetaUnlearning:
    still = {"gamma1": 0.0, "gamma2": 1.0, "zeta": 0.0, "training": {"batch_size": 2, "learning_rate": 1e-12}}
    config = MetaUnlearningConfig.model_validate(still | settings)
    return MetaUnlearning(config, context, harmful(ESD, context))


def grads(of: MetaUnlearning | ResAlign, step: int = 0) -> list[torch.Tensor]:
    values = learning(of.parameters()).values()
    of.compute_gradients(step)
    found = [value.grad.clone() for value in values if value.grad is not None]
    for value in values:
        value.grad = None
    return found


@pytest.mark.parametrize("variant", ["exact", "released"])
def test_meta_unlearning_descends_it_after_the_inner_steps(context: HardeningContext, variant: str) -> None:
    of = meta(context, harmful_loss=[GA, ESD], variant=variant)
    values = list(learning(of.parameters()).values())
    loss = harmful([GA, ESD], context).loss(seeded(derive(context.seed, "outer", 0, "harm")))
    expected = torch.autograd.grad(loss, values, materialize_grads=True)
    assert apart(grads(of), list(expected)) < 1e-3
    assert apart(grads(meta(context, variant=variant)), list(expected)) > 0.1


def test_the_inner_steps_may_see_one_prompt(context: HardeningContext) -> None:
    moving = {"training": {"batch_size": 2, "learning_rate": 0.05}, "variant": "released"}
    all_of_them, one, again = (grads(meta(context, prompts=prompts, **moving)) for prompts in ([None], [1], [1]))
    assert apart(one, again) == 0
    assert apart(one, all_of_them) > 1e-3


@pytest.fixture
def seen(context: HardeningContext, monkeypatch: pytest.MonkeyPatch) -> list[set[str] | None]:
    """The prompts of the images that gradient ascent was shown, call by call, and None where there was no fine-tune."""
    found: list[set[str] | None] = []

    def loss(self: GradientAscent, generator: torch.Generator) -> torch.Tensor:
        found.append(None if context.attacked is None else set(context.attacked.captions))
        return context.model.unet.conv_in.weight.sum()

    monkeypatch.setattr(GradientAscent, "loss", loss)
    return found


def test_meta_unlearning_shows_it_what_the_inner_steps_taught(
    context: HardeningContext, seen: list[set[str] | None]
) -> None:
    of = meta(context, harmful_loss=ANY, prompts=[1], variant="released")
    for step in range(6):
        grads(of, step)
    assert len(seen) == 6 and all(len(shown or ()) == 1 for shown in seen)
    assert len({prompt for shown in seen for prompt in shown or ()}) == 2, "another prompt in other steps"


def test_meta_unlearnings_harmful_loss_hears_of_a_step() -> None:
    context = tiny_context()
    assert_hears_of_a_step(meta(context, harmful_loss=[GA, SDD]), context, "harmful_loss.1.")


def test_meta_unlearning_draws_anew_at_every_step(context: HardeningContext) -> None:
    of = meta(context, harmful_loss=GA, variant="released")
    assert apart(grads(of, 1), grads(of, 0)) > 1e-3


def test_resalign_shows_it_what_the_simulation_taught(context: HardeningContext, seen: list[set[str] | None]) -> None:
    simulated = {"prompts": [1], "steps": [2], "optimizers": ["sgd"]}
    config = ResAlignConfig.model_validate(
        {"harmful_loss": ANY, "distribution": simulated, "simulations": 1, "evaluations": 2, "alpha": 0.0}
    )
    grads(ResAlign(config, context, harmful(ESD, context)))
    assert seen[0] is None, "the present weights come from no fine-tune"
    assert len(seen) == 3 and seen[1] == seen[2] and len(seen[1] or set()) == 1
