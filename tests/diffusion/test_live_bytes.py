"""What double backward keeps for Stable Diffusion 1.4 at 512 pixels, counted on the meta device."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from safeguard.diffusion.live_bytes import LiveBytes
from safeguard.resilience.second_order.hvp import Backend, hessian_product

GIB = 2**30


def test_a_storage_counts_while_it_lives():
    given = torch.zeros(100)
    with LiveBytes() as counted:
        view = given.view(10, 10).t()
        double = view * 2
        assert counted.live == 400, "views and what was there before cost nothing"
        del double
        assert counted.live == 0
        torch.zeros(1000).add_(1)
    assert (counted.live, counted.peak) == (0, 4000)


@pytest.mark.parametrize(
    ("backend", "kept", "peak"),
    [("fused", 7.16, 13.57), ("explicit", 15.35, 29.17)],
)
def test_double_backward_keeps_no_more_than_it_did(backend: Backend, kept: float, peak: float):
    """GiB for one image and all parameters in float32, without weights and direction (3.2 each).

    On a GPU, whose kernels work through attention in blocks, the peak is lower still.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        values = list(unet.parameters())
        latents, t, states = torch.empty(1, 4, 64, 64), torch.zeros(1), torch.empty(1, 77, 768)

    def loss() -> Tensor:
        return unet(latents, t, states, return_dict=False)[0].pow(2).mean()

    with LiveBytes() as counted:
        product = hessian_product(loss, values, backend)
        assert counted.live / GIB == pytest.approx(kept, rel=0.03)
        product(values)
    assert counted.peak / GIB == pytest.approx(peak, rel=0.03)
    assert counted.live / GIB == pytest.approx(kept, rel=0.03), "a product leaves nothing behind"
