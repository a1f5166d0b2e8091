"""Pruned weights revived: what is found, what is recovered, and what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from safeguard.attack.revival import Revival, RevivalConfig, complete, largest
from safeguard.attack.target import Target
from safeguard.diffusion.model import DiffusionModel
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"
KERNEL = "unet.conv_in.weight"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def low_rank(rank: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (40, 60) of low rank, and a tenth of its places."""
    factors = torch.randn(40, rank, generator=generator(0)), torch.randn(rank, 60, generator=generator(1))
    return factors[0] @ factors[1], torch.rand(40, 60, generator=generator(2)) < 0.1


def cut(pipeline: Any, share: float, *names: str) -> dict[str, torch.Tensor]:
    """Prune so many of the weights of some layers; returns where."""
    places = {}
    for name in names:
        weight = dict(pipeline.unet.named_parameters())[name.removeprefix("unet.")]
        places[name] = torch.rand(weight.shape, generator=generator()) < share
        with torch.no_grad():
            weight.masked_fill_(places[name], 0)
    return places


def seen(target: Target, **settings: Any) -> list[tuple[str, dict[str, torch.Tensor]]]:
    attack = Revival(RevivalConfig.model_validate(settings), "probe")
    return [
        (each.label, {name: value.detach().clone() for name, value in target.model.named_parameters().items()})
        for each in attack.run(target, 0)
    ]


@pytest.mark.parametrize("rank", [1, 3])
def test_a_matrix_of_low_rank_is_recovered_from_what_is_left(rank: int) -> None:
    whole, missing = low_rank(rank)
    found = complete(whole.masked_fill(missing, 0), missing, 50, 100, 1e-4)
    assert torch.equal(found[~missing], whole[~missing])
    assert (found - whole)[missing].norm() < 0.3 * whole[missing].norm(), "zeros are off by all of it"


def test_the_completion_is_where_soft_thresholding_leaves_it() -> None:
    whole, missing = low_rank()
    pruned = whole.masked_fill(missing, 0)
    found = complete(pruned, missing, 50, 1000, 1e-7).double().numpy()
    start = pruned.double().numpy()
    for column in range(start.shape[1]):
        kept = ~missing[:, column].numpy()
        start[~kept, column] = start[kept, column].mean()
    tau = np.linalg.svd(start, compute_uv=False)[0] / 50
    u, sigma, v = np.linalg.svd(found, full_matrices=False)
    low = u @ np.diag(np.maximum(sigma - tau, 0)) @ v
    places = missing.numpy()
    assert np.abs(low - found)[places].max() < 1e-4 * np.abs(found).max()


def test_no_more_singular_values_are_kept_than_the_rank() -> None:
    whole, missing = low_rank(rank=5)
    (one,) = (complete(whole, torch.ones_like(missing), 1, 1, 1e-4),)
    assert not one.any(), "nothing is known, and nothing comes of it"
    found = complete(whole, missing, 1, 1, 1e-9)
    u, sigma, v = torch.linalg.svd(
        (whole.masked_fill(missing, 0).sum(0) / (~missing).sum(0)).expand_as(whole).where(missing, whole)
    )
    expected = u[:, :1] * (sigma[0] - sigma[0] / 50) @ v[:1]
    assert torch.allclose(found[missing], expected[missing], atol=1e-4)


def test_signs_of_the_largest_entries_reach_as_far_as_their_row() -> None:
    matrix = torch.tensor([[0.0, 2.0, -3.0], [0.0, 0.0, 1.0], [0.0, 5.0, 0.0]])
    missing = matrix == 0
    completed = torch.tensor([[-0.5, 2.0, -3.0], [0.4, 0.1, 1.0], [0.3, 5.0, -0.2]])
    found = largest(matrix, missing, completed, 0.6)
    assert found[missing].tolist() == [-3.0, 1.0, 0.0, 5.0, 0.0], "three of five, by their magnitude"


def test_only_what_was_pruned_is_revived_and_zero_again_afterwards(made: Made, base: Any) -> None:
    pipeline = tiny_pipeline(0)
    places = cut(pipeline, 0.05, LAYER, KERNEL)
    target = made.target(pipeline, base, "unet")
    (_, released), *variants = seen(target)
    count = sum(int(each.sum()) for each in places.values())
    assert [label for label, _ in variants] == [
        f"{count:,} pruned weights in 2 layers revived, {way}" for way in ("completed", "largest")
    ]
    for label, found in variants:
        for name, value in found.items():
            where = places.get(name, torch.zeros_like(value, dtype=torch.bool))
            assert torch.equal(value[~where], released[name][~where]), (label, name)
    (_, completed), (_, signs) = variants
    for name, where in places.items():
        assert (completed[name][where] != 0).all()
        assert (signs[name][where] != 0).float().mean() == pytest.approx(0.6, abs=0.05)
    assert all(torch.equal(v, released[name]) for name, v in target.model.named_parameters().items())


@pytest.mark.parametrize("case", ["nothing pruned", "the base has the same zeros", "fewer than 1 in 1000"])
def test_without_pruned_weights_nothing_is_changed_and_it_says_so(case: str, made: Made, base: Any) -> None:
    pipeline = tiny_pipeline(0)
    if case == "the base has the same zeros":
        cut(pipeline, 0.05, LAYER)
        cut(base, 0.05, LAYER)
    elif case == "fewer than 1 in 1000":
        with torch.no_grad():
            dict(pipeline.unet.named_parameters())[LAYER.removeprefix("unet.")][0, :8] = 0  # of 64 x 256
    target = made.target(pipeline, base, "unet")
    (_, released), *variants = seen(target)
    for label, found in variants:
        assert label == "no pruned weights"
        assert all(torch.equal(value, released[name]) for name, value in found.items())


def test_it_recovers_a_pruned_layer_of_low_rank_better_than_leaving_it(made: Made, base: Any) -> None:
    pipeline = tiny_pipeline(0)
    for each in (pipeline, base):
        with torch.no_grad():
            weight = dict(each.unet.named_parameters())[LAYER.removeprefix("unet.")]
            weight.copy_(torch.randn(64, 2, generator=generator(3)) @ torch.randn(2, 256, generator=generator(4)))
    cut(pipeline, 0.05, LAYER)
    whole = DiffusionModel(base).named_parameters()[LAYER]
    (_, pruned), (_, completed), _ = seen(made.target(pipeline, base, "unet"))
    assert (completed[LAYER] - whole).norm() < 0.3 * (pruned[LAYER] - whole).norm()
