"""ESD and gradient ascent on a tiny model: their targets, their parameter sets, and that descent erases."""

from __future__ import annotations

import pytest
import torch

from safeguard.unlearn.common import bounded_ascent
from safeguard.unlearn.esd import ESD, ESDConfig
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.benches import tiny_bench


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def independent_esd_loss(method: ESD, seed: int) -> torch.Tensor:
    """The same loss written out with the network alone."""
    bench = method.bench
    latents, t, captions = method._latents(generator(seed))
    state = {text: bench.teacher.encode_prompts([text]).states for text in {*captions, "a thing", ""}}
    losses = []
    for row, caption in enumerate(captions):
        x, time = latents[row : row + 1], t[row : row + 1]
        with torch.no_grad():
            anchor = bench.teacher.unet(x, time, state["a thing"]).sample
            concept = bench.teacher.unet(x, time, state[caption]).sample
            empty = bench.teacher.unet(x, time, state[""]).sample
        predicted = bench.model.unet(x, time, state[caption]).sample
        losses.append((predicted - (anchor - method.config.eta * (concept - empty))).pow(2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("source", ["frozen", "edited"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_esd_loss_agrees_with_an_independent_one(source: str, eta: float) -> None:
    config = ESDConfig(eta=eta, batch_size=3, trajectory_steps=4, pool=4, latents_from=source)  # type: ignore[arg-type]
    method = ESD(config, tiny_bench())
    with torch.no_grad():
        next(iter(method.bench.model.unet.parameters())).add_(0.1)
    assert method.loss(generator(5)).item() == pytest.approx(independent_esd_loss(method, 5).item(), rel=1e-4)


def test_esd_timesteps_are_the_levels_of_their_latents() -> None:
    method = ESD(ESDConfig(batch_size=2, trajectory_steps=5, pool=3), tiny_bench())
    method.loss(generator())
    pool = method._pool
    assert pool is not None
    assert pool.times.tolist() == [801, 601, 401, 201, 1]
    assert pool.latents.shape[:2] == (5, 3)
    assert pool.latents[0].std() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(("variant", "part"), [("x", "attn2"), ("x-strict", "attn2"), ("self", "attn1")])
def test_esd_variants_choose_their_parameters(variant: str, part: str) -> None:
    names = ESD(ESDConfig(variant=variant), tiny_bench()).parameters()  # type: ignore[arg-type]
    assert names and all(part in name for name in names)
    assert not any("attn2" in name for name in ESD(ESDConfig(variant="u"), tiny_bench()).parameters())


@pytest.mark.parametrize("method", ["esd", "ga"])
def test_descent_lowers_the_erasure_loss(method: str) -> None:
    bench = tiny_bench()
    unlearner: ESD | GradientAscent
    if method == "esd":
        unlearner = ESD(ESDConfig(variant="f", batch_size=4, trajectory_steps=4, pool=4, preserve_weight=1.0), bench)
    else:
        unlearner = GradientAscent(GradientAscentConfig(batch_size=4, bound=5.0), bench)
    values = list(unlearner.parameters().values())
    for value in values:
        value.requires_grad_(True)
    with torch.no_grad():  # a random network hardly tells prompts apart, so start away from the target
        for value in values:
            value.mul_(1.2)
    optimizer = torch.optim.Adam(values, lr=1e-3)
    first = unlearner.loss(generator(1)).item()
    for step in range(30):
        keep = unlearner.preservation(generator(step))
        assert keep is not None
        optimizer.zero_grad()
        (unlearner.loss(generator(step)) + keep).backward()
        optimizer.step()
    assert unlearner.loss(generator(1)).item() < first


def test_preservation_is_zero_at_the_base_model() -> None:
    keep = ESD(ESDConfig(preserve_weight=2.0), tiny_bench()).preservation(generator())
    assert keep is not None and keep.item() == pytest.approx(0.0, abs=1e-10)
    assert ESD(ESDConfig(), tiny_bench()).preservation(generator()) is None


def test_ascent_has_slope_minus_one_below_its_bound_and_none_above() -> None:
    x = torch.tensor([0.1, 2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bounded_ascent(x, 0.5).sum(), x)
    assert slope[0].item() == pytest.approx(-1.0, abs=1e-3)
    assert slope[1].item() == pytest.approx(0.0, abs=1e-3)
