"""L_harm: what it is the sum of, what it looks at after a simulated fine-tune, and how meta-unlearning descends it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.data.latents import LatentSet
from safeguard.errors import UsageFault
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import ResilienceMethod, UnlearnerMethod
from safeguard.resilience.harm import HarmfulLoss, JointLoss, harmful
from safeguard.resilience.meta_unlearning import MetaUnlearning, MetaUnlearningConfig
from safeguard.resilience.resalign import ResAlign, ResAlignConfig
from safeguard.seeds import derive
from safeguard.unlearn.base import Workbench
from safeguard.unlearn.common import bounded_ascent
from safeguard.unlearn.common.trajectories import draw_captions
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.benches import MIXED, apart, learning, moved_bench, seeded, tiny_bench

GA = UnlearnerMethod.model_validate({"name": "ga", "batch_size": 2})
ANY = UnlearnerMethod.model_validate({"name": "ga", "batch_size": 2, "captions": "any"})
ESD = UnlearnerMethod.model_validate({"name": "esd", "variant": "f", "batch_size": 2, "trajectory_steps": 3, "pool": 2})
SDD = UnlearnerMethod.model_validate({"name": "sdd", "batch_size": 2, "trajectory_steps": 3})


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return moved_bench()


def one_prompt(bench: Workbench) -> LatentSet:
    return bench.forget.only(["an axe"])


def test_the_losses_are_added(bench: Workbench) -> None:
    joint = harmful([GA, ESD], bench)
    generator = seeded(3)
    parts = harmful(GA, bench).loss(generator) + harmful(ESD, bench).loss(generator)
    assert joint.loss(seeded(3)).item() == pytest.approx(parts.item(), rel=1e-6)


def test_one_loss_is_the_unlearner_itself(bench: Workbench) -> None:
    assert isinstance(harmful([GA], bench), GradientAscent) and isinstance(harmful(GA, bench), GradientAscent)


def assert_hears_of_a_step(of: JointLoss | MetaUnlearning, bench: Workbench, prefix: str) -> None:
    state = {name: value.clone() for name, value in of.state().items()}
    assert state and all(name.startswith(prefix) for name in state)
    with torch.no_grad():
        for value in bench.model.unet.parameters():
            value.add_(0.1)
    of.after_step()
    assert any(not torch.equal(state[name], value) for name, value in of.state().items())


def test_all_parts_hear_of_a_step_and_keep_their_state() -> None:
    bench = tiny_bench()
    joint = harmful([GA, SDD], bench)
    assert isinstance(joint, JointLoss)
    assert_hears_of_a_step(joint, bench, "1.")


@pytest.mark.parametrize(
    ("named", "where"),
    [(UnlearnerMethod(name="uce"), "harmful_loss"), ([GA, UnlearnerMethod(name="uce")], r"harmful_loss\[1\]")],
)
def test_a_closed_form_is_refused_wherever_it_stands(bench: Workbench, named: HarmfulLoss, where: str) -> None:
    with pytest.raises(UsageFault, match=f"^{where}: uce is a closed form"):
        harmful(named, bench)


def test_the_users_files_that_any_of_them_names_are_known(bench: Workbench) -> None:
    parts = [harmful(GA, bench), harmful(ESD, bench)]
    parts[1].data_digest = "of a folder"
    assert JointLoss(parts).data_digest == "of a folder"
    of = meta(bench, harmful_loss=[GA, ESD])
    assert isinstance(of._harm, JointLoss)
    of._harm.data_digest = "of a file"
    of.unlearner.data_digest = "of a base"
    assert of.data_digest == "of a base of a file"


def test_a_policy_may_list_several_and_each_is_checked() -> None:
    def problems(*losses: dict[str, Any]) -> list[str]:
        method = ResilienceMethod.model_validate({"name": "resalign", "harmful_loss": list(losses)})
        return [problem.line() for problem in method_problems(method)]

    assert problems({"name": "ga"}, {"name": "esd"}) == []
    assert problems({"name": "ga"}, {"name": "esd", "etta": 1})[0].startswith("harmful_loss[1].etta: unknown field")
    assert problems() == ["harmful_loss: should have 1 or more entries, not 0"]


def test_under_any_caption_are_the_images_just_taught(bench: Workbench) -> None:
    loss, model, taught = harmful(ANY, bench), bench.model, one_prompt(bench)

    def expected(data: LatentSet) -> float:
        generator = seeded(5)
        batch = data.batch(2, generator)
        captions = draw_captions(["an axe", "a big axe"], 2, generator)
        error = model.denoising_loss(batch.latents, model.encode_prompts(captions), generator)
        return bounded_ascent(error, GradientAscentConfig().bound).item()

    with bench.after(taught):
        inside = loss.loss(seeded(5)).item()
    assert inside == pytest.approx(expected(taught), rel=1e-6)
    assert loss.loss(seeded(5)).item() == pytest.approx(expected(bench.forget), rel=1e-6)
    assert inside != pytest.approx(expected(bench.forget), rel=1e-3)


def test_any_caption_is_one_of_the_same_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = moved_bench(concepts=MIXED)
    loss, asked = harmful(GA.model_copy(update={"captions": "any", "batch_size": 12}), bench), list[str]()
    encode = bench.model.encode_prompts
    monkeypatch.setattr(bench.model, "encode_prompts", lambda prompts: asked.extend(prompts) or encode(prompts))
    with bench.after(bench.forget.only(["axe in ice", "old max"])):
        loss.loss(seeded(1))
    assert set(asked) == {"axe in ice", "axe in mud", "max", "old max"}


def test_harmless_images_are_never_made_unlikely(bench: Workbench) -> None:
    assert bench.retain is not None
    with bench.after(bench.retain):
        assert bench.attacked is None
    with bench.after(LatentSet.join([one_prompt(bench), bench.retain])):
        assert bench.attacked is not None and set(bench.attacked.captions) == {"an axe"}
    assert bench.attacked is None


def meta(bench: Workbench, **settings: Any) -> MetaUnlearning:
    still = {"gamma1": 0.0, "gamma2": 1.0, "zeta": 0.0, "batch_size": 2, "inner_learning_rate": 1e-12}
    config = MetaUnlearningConfig.model_validate(still | settings)
    return MetaUnlearning(config, bench, harmful(ESD, bench))


def slopes(of: MetaUnlearning | ResAlign, step: int = 0) -> list[torch.Tensor]:
    values = learning(of.parameters()).values()
    of.accumulate(step)
    found = [value.grad.clone() for value in values if value.grad is not None]
    for value in values:
        value.grad = None
    return found


@pytest.mark.parametrize("variant", ["exact", "released"])
def test_meta_unlearning_descends_it_after_the_inner_steps(bench: Workbench, variant: str) -> None:
    of = meta(bench, harmful_loss=[GA, ESD], variant=variant)
    values = list(learning(of.parameters()).values())
    loss = harmful([GA, ESD], bench).loss(seeded(derive(bench.seed, "outer", 0, "harm")))
    expected = torch.autograd.grad(loss, values, materialize_grads=True)
    assert apart(slopes(of), list(expected)) < 1e-3
    assert apart(slopes(meta(bench, variant=variant)), list(expected)) > 0.1


def test_the_inner_steps_may_see_one_prompt(bench: Workbench) -> None:
    moving = {"inner_learning_rate": 0.05, "variant": "released"}
    all_of_them, one, again = (slopes(meta(bench, prompts=prompts, **moving)) for prompts in ([None], [1], [1]))
    assert apart(one, again) == 0
    assert apart(one, all_of_them) > 1e-3


@pytest.fixture
def seen(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> list[set[str] | None]:
    """The prompts of the images that gradient ascent was shown, call by call, and None where there was no fine-tune."""
    found: list[set[str] | None] = []

    def loss(self: GradientAscent, generator: torch.Generator) -> torch.Tensor:
        found.append(None if bench.attacked is None else set(bench.attacked.captions))
        return bench.model.unet.conv_in.weight.sum()

    monkeypatch.setattr(GradientAscent, "loss", loss)
    return found


def test_meta_unlearning_shows_it_what_the_inner_steps_taught(bench: Workbench, seen: list[set[str] | None]) -> None:
    of = meta(bench, harmful_loss=ANY, prompts=[1], variant="released")
    for step in range(6):
        slopes(of, step)
    assert len(seen) == 6 and all(len(shown or ()) == 1 for shown in seen)
    assert len({prompt for shown in seen for prompt in shown or ()}) == 2, "another prompt in other steps"


def test_meta_unlearnings_harmful_loss_hears_of_a_step() -> None:
    bench = tiny_bench()
    assert_hears_of_a_step(meta(bench, harmful_loss=[GA, SDD]), bench, "harmful_loss.1.")


def test_meta_unlearning_draws_anew_at_every_step(bench: Workbench) -> None:
    of = meta(bench, harmful_loss=GA, variant="released")
    assert apart(slopes(of, 1), slopes(of, 0)) > 1e-3


def test_resalign_shows_it_what_the_simulation_taught(bench: Workbench, seen: list[set[str] | None]) -> None:
    simulated = {"data": {"concept": 1.0}, "prompts": [1], "steps": [2], "optimizers": ["sgd"]}
    config = ResAlignConfig.model_validate(
        {"harmful_loss": ANY, "distribution": simulated, "simulations": 1, "points": 2, "alpha": 0.0}
    )
    slopes(ResAlign(config, bench, harmful(ESD, bench)))
    assert seen[0] is None, "the present weights come from no fine-tune"
    assert len(seen) == 3 and seen[1] == seen[2] and len(seen[1] or set()) == 1
