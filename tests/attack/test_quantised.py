"""Weights in few bits, against the formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.quantised import (
    BLOCK,
    GROUP,
    TYPES,
    Quantised,
    QuantisedConfig,
    blocks,
    integers,
    normal_floats,
    normal_levels,
    quantise,
)
from tests.attack.conftest import Made
from tests.tiny import tiny_unet

NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip
"""QLoRA, appendix E."""


def test_integers_by_hand() -> None:
    weight = torch.tensor([[0.7, -0.26, 0.04], [0.0, 0.0, 0.0], [-7.0, 3.4, 3.6]])
    expected = torch.tensor([[0.7, -0.3, 0.0], [0.0, 0.0, 0.0], [-7.0, 3.0, 4.0]])
    assert torch.allclose(integers(weight, 4), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_channel_has_few_numbers_near_its_own(bits: int) -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    found = integers(weight, bits)
    step = weight.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
    assert found.shape == weight.shape
    assert ((found - weight).flatten(1).abs().amax(1) <= step / 2 + 1e-6).all()
    assert all(len(channel.unique()) <= 2**bits - 1 for channel in found)


def test_the_levels_are_the_published_ones() -> None:
    assert normal_levels() == pytest.approx(NF4, abs=1e-6)


def test_normal_floats_take_the_nearest_level_of_their_group() -> None:
    weight = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    found = normal_floats(weight).flatten()
    levels = torch.tensor(normal_levels())
    for start in range(0, weight.numel(), GROUP):
        group = weight.flatten()[start : start + GROUP]
        scale = group.abs().max()
        expected = torch.stack([levels[(levels - value / scale).abs().argmin()] * scale for value in group])
        assert torch.allclose(found[start : start + GROUP], expected)


def test_blocks_by_hand() -> None:
    weight = torch.zeros(2, BLOCK)
    weight[0, :5] = torch.tensor([-8.0, 7.0, 8.0, 3.4, 0.4])
    weight[1, :4] = torch.tensor([4.0, -4.0, 1.3, -0.2])
    expected = torch.zeros(2, BLOCK)
    expected[0, :5] = torch.tensor([-8.0, 7.0, 7.0, 3.0, 0.0])  # the extreme is kept, the other side ends a step below
    expected[1, :4] = torch.tensor([4.0, -3.5, 1.5, -0.0])
    assert torch.equal(blocks(weight), expected)


def test_a_block_has_sixteen_numbers_and_keeps_its_extreme() -> None:
    weight = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    found = blocks(weight).flatten()
    for start in range(0, weight.numel(), BLOCK):
        group, rounded = weight.flatten()[start : start + BLOCK], found[start : start + BLOCK]
        extreme = group[group.abs().argmax()]
        step = float(extreme.abs()) / 8
        assert len(rounded.unique()) <= 16
        assert rounded[group.abs().argmax()] == pytest.approx(float(extreme), rel=1e-3)
        assert float((rounded - group).abs().max()) <= step * 1.01, "half a step, one where the other side ends"


def test_what_is_zero_stays_zero() -> None:
    assert not blocks(torch.zeros(2, 3)).any()
    assert not normal_floats(torch.zeros(2, 3)).any() and not integers(torch.zeros(2, 3), 4).any()


@pytest.mark.parametrize("kind", TYPES)
def test_matrices_and_kernels_are_rounded_and_nothing_else(kind: Any) -> None:
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.named_parameters()}
    quantise(unet, kind)
    moved = {name for name, value in unet.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in before.items() if value.dim() > 1}


def test_linear_layers_alone_leave_kernels_as_they_are() -> None:
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.named_parameters()}
    quantise(unet, "nf4", "linear")
    moved = {name for name, value in unet.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {f"{name}.weight" for name, each in unet.named_modules() if isinstance(each, torch.nn.Linear)}
    assert any(value.dim() == 4 for value in before.values())


def test_each_type_begins_with_the_released_weights(made: Made, base: Any) -> None:
    target = made.target(base, base)
    names = [name for name, value in target.model.unet.named_parameters() if value.dim() > 1]
    before = {name: value.clone() for name, value in target.model.unet.named_parameters()}
    errors, labels = [], []
    for attempt in Quantised(QuantisedConfig(), "probe").run(target, 0):
        values = dict(target.model.unet.named_parameters())
        errors.append(sum(float((values[name] - before[name]).pow(2).sum()) for name in names))
        labels.append(attempt.label)
    none, eight, *four = errors
    assert none == 0 < eight < min(four), "every type begins anew: four bits are no rounding of eight"
    assert labels[1:] == [f"weights of the denoiser in {kind}" for kind in TYPES]
    assert all(torch.equal(value, before[name]) for name, value in target.model.unet.named_parameters())


def test_eight_and_four_bit_stand_for_quantising() -> None:
    def covered(*types: str, **settings: str) -> list[str]:
        return Quantised(QuantisedConfig.model_validate({"types": list(types)} | settings), "probe").covers()

    assert covered(*TYPES) == covered("int8", "nf4") == covered("int8", "q4_0") == ["quantised"]
    with pytest.raises(ValidationError, match="name it once"):
        covered("int8", "int8", "nf4")
    assert covered("int8") == covered("int4", "nf4") == covered(*TYPES, layers="linear") == []
