"""What one outer step of ResAlign costs, beside what a straightforward implementation would pay.

\b
    python benchmarks/outer_step.py                               counted on the denoiser of Stable Diffusion 1.4
    python benchmarks/outer_step.py --measure reference           and timed here, on the reference model
    python benchmarks/outer_step.py --measure sd14 --device cuda  and timed on a GPU, random weights of that shape

The step has three simulations of sixteen steps of all weights by SGD, one image each, the erasure loss at the present
weights and after every simulation, and a retain term of four images: ResAlign's published numbers, but for those of its
simulations that train LoRA, which is cheaper. FLOPs and bytes are counted on the meta device, exactly and with no GPU:
a multiply-add is two FLOPs; a storage counts from the operator that makes it until it is freed; allocator slack and
kernels' workspaces do not count. Routes:

\b
* straightforward: the paper's fixed point with its five products, and attention by explicit softmax;
* moreau: conjugate gradients of at most as many, and fused attention;
* first order: no products.

The floor is the count at a tensor throughput, by default what an H200 reaches in bfloat16.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safeguard.config import Precision
from safeguard.data.latents import LatentSet
from safeguard.harden.engine import build
from safeguard.model.diffusion import DiffusionModel
from safeguard.model.opening import open_pipeline, resolve
from safeguard.policy.loading import load_policy
from safeguard.policy.schema import Policy, UnlearnerMethod
from safeguard.progress import SilentProgress
from safeguard.resilience.hvp import Backend, explicit_attention, fused_attention, hessian_product
from safeguard.resilience.memory import LiveBytes
from safeguard.resilience.resalign import ResAlign, ResAlignConfig
from safeguard.resources import find_resource
from safeguard.unlearn.base import Workbench

ATTENTION: dict[Backend, Callable[[], AbstractContextManager[None]]] = {
    "explicit": explicit_attention,
    "fused": fused_attention,
}
GIB = 2**30
TERA = 1e12
SIMULATIONS, STEPS, RETAIN, PRODUCTS = 3, 16, 4, 5


@dataclass(frozen=True)
class Route:
    """A way to the hypergradient: how attention is differentiated, and the settings of ResAlign that name the rest.

    Attributes:
        backend: attention of all passes: explicit, or torch's fused kernels (on the meta device, which has none, ours).
    """

    title: str
    backend: Backend
    settings: dict[str, Any]

    @property
    def products(self) -> int:
        """Hessian-vector products per simulation, at most."""
        return 0 if self.settings["hypergradient"] == "first_order" else PRODUCTS


ROUTES = (
    Route("straightforward", "explicit", {"hypergradient": "moreau", "solver": "fixed_point", "hvp": "explicit"}),
    Route("moreau", "fused", {"hypergradient": "moreau", "solver": "cg"}),
    Route("first order", "fused", {"hypergradient": "first_order"}),
)


def denoiser(device: str) -> Any:
    """That of Stable Diffusion 1.4, with random weights."""
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


# -- counted ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """FLOPs, and most bytes at a time beside the weights."""

    flops: float
    peak: float


def count(work: Callable[[], object]) -> Cost:
    """Run on the meta device and count."""
    with LiveBytes() as memory, FlopCounterMode(display=False) as flops:
        work()
    return Cost(flops.get_total_flops(), memory.peak)


def counted(unet: Any, *, size: int, tokens: int, width: int) -> dict[str, Cost]:
    """Every route's outer step.

    Args:
        unet: a denoiser on the meta device.
        size: height and width of its latents.
        tokens: of a prompt, whose states are ``width`` wide.
    """

    def loss(images: int = 1) -> Tensor:
        with torch.device("meta"):
            latents, t, states = torch.empty(images, 4, size, size), torch.zeros(1), torch.empty(images, tokens, width)
        predicted: Tensor = unet(latents, t.expand(images), states, return_dict=False)[0]
        return predicted.pow(2).mean()

    weights = list(unet.parameters())

    def gradient(images: int = 1) -> Cost:
        return count(lambda: torch.autograd.grad(loss(images), weights))

    def products(route: Route) -> Cost:
        def work() -> None:
            product = hessian_product(loss, weights, route.backend)
            for _ in range(route.products):
                product([torch.empty_like(value) for value in weights])

        return count(work) if route.products else Cost(0, 0)

    found = {}
    for route in ROUTES:
        with ATTENTION[route.backend]():
            step, solve, retain = gradient(), products(route), gradient(RETAIN)
            with torch.no_grad():
                teacher = count(lambda: loss(RETAIN))
        parts = step, solve, retain, teacher
        flops = SIMULATIONS * ((STEPS + 1) * step.flops + solve.flops) + step.flops + retain.flops + teacher.flops
        found[route.title] = Cost(flops, max(cost.peak for cost in parts))
    return found


# -- timed -----------------------------------------------------------------------------------------------------------


def stable_diffusion(device: str) -> Any:
    """A pipeline of Stable Diffusion 1.4's shape with random weights; the words are the reference model's."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    small = open_pipeline(resolve("reference", offline=True), device="cpu")
    config = CLIPTextConfig(**{**small.text_encoder.config.to_dict(), "hidden_size": 768, "num_attention_heads": 12})
    with torch.device(device):
        encoder, vae = CLIPTextModel(config), AutoencoderKL()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=small.tokenizer,
        unet=denoiser(device),
        scheduler=small.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def bench_of(model: DiffusionModel, policy: Policy) -> Workbench:
    """A workbench whose images are noise: what a step costs does not depend on them."""
    prompts = policy.concepts[0].prompt_list[:8]

    def images(name: str) -> LatentSet:
        mean = torch.randn(len(prompts), *model.latent_shape, generator=torch.Generator().manual_seed(len(name)))
        mean = mean.to(model.device)
        return LatentSet(mean, torch.zeros_like(mean), model.encode_prompts(prompts), prompts, name)

    teacher = model.frozen_copy()
    return Workbench(policy, model, teacher, list(policy.concepts), images, policy.seed, SilentProgress())


def timed(
    which: str, device: str, steps: int, precision: Precision, graphs: bool, routes: Sequence[Route]
) -> Iterator[tuple[Route, float, float]]:
    """Seconds per outer step after one to warm up, and GiB at most on a GPU."""
    pipeline = (
        stable_diffusion(device)
        if which == "sd14"
        else open_pipeline(resolve("reference", offline=True), device=device)
    )
    policy = load_policy(find_resource("policy", "policies", "quickstart"))
    for route in routes:
        model = DiffusionModel(pipeline)
        model.precision, model.replays = precision, graphs
        bench = bench_of(model, policy)
        unlearner = build(UnlearnerMethod(name="ga", batch_size=1), bench)
        config = ResAlignConfig.model_validate(
            {
                "harmful_loss": None,
                "simulations": SIMULATIONS,
                "retain_batch": RETAIN,
                "distribution": {"data": {"concept": 1}, "steps": [STEPS], "optimizers": ["sgd"]},
                "iterations": PRODUCTS,
                "hessian_batch": 1,
                **route.settings,
            }
        )
        objective = ResAlign(config, bench, unlearner)
        bench.model.freeze()
        with explicit_attention() if route.backend == "explicit" else nullcontext():
            objective.accumulate(0)
            _wait(device)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            for step in range(1, steps + 1):
                objective.accumulate(step)
            _wait(device)
        seconds = (time.perf_counter() - started) / steps
        yield route, seconds, torch.cuda.max_memory_allocated() / GIB if device == "cuda" else 0.0
        del bench, objective, unlearner, model
        gc.collect()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@click.command(help=__doc__)
@click.option("--measure", type=click.Choice(["reference", "sd14"]), help="Also time steps of this model.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Outer steps timed per route.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--graphs", is_flag=True, help="Record the denoiser's work and replay it (harden --cuda-graphs).")
@click.option(
    "--route", "names", type=click.Choice([r.title for r in ROUTES]), multiple=True, help="Time these routes only."
)
@click.option("--tflops", type=float, default=790.0, show_default=True, help="Throughput of the floor, in TFLOP/s.")
def main(
    measure: str | None,
    device: str,
    steps: int,
    precision: Precision,
    graphs: bool,
    names: tuple[str, ...],
    tflops: float,
) -> None:
    """Print both tables."""
    costs = counted(denoiser("meta"), size=64, tokens=77, width=768)
    click.echo("One outer step on the denoiser of Stable Diffusion 1.4 at 512 pixels, counted\n")
    click.echo(f"{'route':<18}{'TFLOP':>8}{'floor, s':>10}{'peak, GiB beside the weights':>31}")
    for title, cost in costs.items():
        floor = cost.flops / TERA / tflops
        click.echo(f"{title:<18}{cost.flops / TERA:>8.0f}{floor:>10.2f}{cost.peak / GIB:>31.1f}")
    if measure:
        chosen = [route for route in ROUTES if not names or route.title in names]
        where = f"{device}, {precision}, {torch.get_num_threads()} threads" + (", replayed" if graphs else "")
        click.echo(f"\nOne outer step on {measure}, {where}, mean of {steps}\n")
        over = measure == "sd14" and device == "cuda"
        click.echo(
            f"{'route':<18}{'seconds':>8}"
            + (f"{'over the floor':>17}" if over else "")
            + (f"{'peak, GiB':>12}" if device == "cuda" else "")
        )
        for route, seconds, peak in timed(measure, device, steps, precision, graphs, chosen):
            floor = costs[route.title].flops / TERA / tflops
            click.echo(
                f"{route.title:<18}{seconds:>8.2f}"
                + (f"{seconds / floor:>15.1f} x" if over else "")
                + (f"{peak:>12.1f}" if device == "cuda" else "")
            )


if __name__ == "__main__":
    main()
