"""Low-rank updates: neutral at the start, the chain rule, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from safeguard.errors import UsageFault
from safeguard.resilience.low_rank import LowRank
from tests.contexts import apart, seeded


def weights() -> dict[str, torch.nn.Parameter]:
    generator = seeded(0)
    shapes = {"linear": (5, 4), "bias": (5,), "conv": (3, 4, 2, 2)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def test_they_change_nothing_at_first() -> None:
    model = weights()
    low_rank = LowRank(model, rank=2, seed=1)
    low_rank.write()
    assert list(low_rank.parameters) == ["linear.lora_B", "linear.lora_A", "conv.lora_B", "conv.lora_A"]
    assert all(torch.equal(value, start) for value, start in zip(model.values(), weights().values(), strict=True))


def test_the_model_holds_the_sum() -> None:
    model, start = weights(), weights()
    low_rank = LowRank(model, rank=2, seed=1)
    for _ in range(2):  # written again, not added again
        with torch.no_grad():
            for value in low_rank.parameters.values():
                value.fill_(0.5)
        low_rank.write()
    for name in ("linear", "conv"):
        assert torch.allclose(model[name], start[name] + 0.5, atol=1e-6)
    assert torch.equal(model["bias"], start["bias"])


def test_gradients_follow_the_chain_rule() -> None:
    model = weights()
    low_rank = LowRank(model, rank=2, seed=1)
    with torch.no_grad():
        for value in low_rank.parameters.values():
            value.copy_(torch.randn(value.shape, generator=seeded(2)))
    low_rank.write()
    kept = list(low_rank.weights.values())
    assert [value is model[name] for value, name in zip(kept, ("linear", "conv"), strict=True)] == [True, True]
    grads = torch.autograd.grad(sum(value.pow(3).sum() for value in kept), kept)  # type: ignore[arg-type]
    start, leaves = weights(), [value.detach().requires_grad_(True) for value in low_rank.parameters.values()]
    total = (start["linear"].detach() + leaves[0] @ leaves[1]).pow(3).sum()
    total = total + (start["conv"].detach() + (leaves[2] @ leaves[3]).view(3, 4, 2, 2)).pow(3).sum()
    assert apart(low_rank.pull_back(grads), list(torch.autograd.grad(total, leaves))) < 1e-5


def test_vectors_alone_are_refused() -> None:
    with pytest.raises(UsageFault, match="need matrices"):
        LowRank({"bias": weights()["bias"]}, rank=2, seed=1)
