"""Merging with a fine-tune of the base, against the formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.merge import Merge, MergeConfig
from safeguard.attack.target import Target
from safeguard.data.fine_tuning import DataSets
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import fine_tune
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.policy.schema import AttackMethod
from safeguard.registry import attacks
from safeguard.seeds import derive
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline


def attack(**settings: Any) -> Merge:
    tiny = MergeConfig.tiny().model_dump(exclude_unset=True)
    return Merge(MergeConfig.model_validate(tiny | settings), "probe")


def weights(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.unet.named_parameters()}


def drawn(target: Target, base: Any) -> DataSets:
    target.data.base = DiffusionModel(base)
    attack().draw(target.data, 0)
    target.data.base = None
    return target.data


def fine_tuned(target: Target) -> dict[str, torch.Tensor]:
    """theta_B, by the same fine-tune of the base itself."""
    plain, training = DiffusionModel(tiny_pipeline(0)), attack().config.training
    data, seed = target.data.get(attack().config.data, 0), derive(target.exam, "probe", 0)
    for _ in fine_tune(plain, data, FullFineTuning(FullConfig()), training, seed=seed):
        pass
    return weights(plain)


def test_sums_and_differences_are_what_the_formulas_say(made: Made, base: Any) -> None:
    target = made.target(tiny_pipeline(1), base, "unet", "text_encoder")
    drawn(target, base)
    start, zero, other = weights(target.model), weights(DiffusionModel(tiny_pipeline(0))), fine_tuned(target)
    wanted = [lambda h, o, b, w=w: (1 - w) * h + w * b for w in (0.3, 0.5)]
    wanted += [lambda h, o, b, w=w: h + w * (b - o) for w in (0.3, 0.5, 1.0)]
    labels, losses = [], []
    for attempt in attack().run(target, 0):
        found = weights(target.model)
        labels.append(attempt.label)
        losses.append(attempt.loss)
        for name, value in found.items():
            h, o, b = start[name], zero[name], other[name]
            expected = wanted[attempt.effort - 1](h, o, b) if attempt.effort else h
            assert torch.allclose(value, expected, atol=1e-6), (attempt.label, name)
    assert labels == [
        "",
        *(f"weighted sum with a fine-tune of the base, w = {w}" for w in (0.3, 0.5)),
        *(f"add difference with a fine-tune of the base, w = {w}" for w in ("0.3", "0.5", "1")),
    ]
    assert None not in losses and len(set(losses)) == len(losses)
    assert all(torch.equal(value, start[name]) for name, value in weights(target.model).items())


def test_merged_into_the_base_all_of_the_difference_is_the_fine_tuned_base(made: Made, base: Any) -> None:
    target = made.target(tiny_pipeline(0), base)
    drawn(target, base)
    expected = fine_tuned(target)
    last = list(zip(attack().run(target, 0), iter(lambda: weights(target.model), None), strict=False))[-1][1]
    assert all(torch.allclose(last[name], value, atol=1e-6) for name, value in expected.items())
    assert not all(torch.equal(value, dict(base.unet.named_parameters())[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"sums": [0.6]}, "less than or equal to 0.5"),
        ({"differences": [1.5]}, "less than or equal to 1"),
        ({"sums": [], "differences": []}, "at least one weight"),
        ({"data": "concept"}, "benign fine-tune"),
    ],
)
def test_what_would_be_another_model_or_another_attack_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        attack(**settings)


def test_the_whole_difference_must_be_added_to_stand_for_merging() -> None:
    assert attack().covers() == attack(sums=[0.3]).covers() == ["merging"]
    assert attack(sums=[0.5], differences=[0.5]).covers() == []
    assert attack(method={"name": "textual-inversion"}).covers() == [], "nobody asks for the word"
    needs = attacks.make(AttackMethod(name="merge"), "probe").needs()
    assert needs.weights and needs.base_model and not needs.gradients and needs.steps == 0
