"""What one outer step of ResAlign costs, beside what a straightforward implementation would pay.

\b
    python benchmarks/outer_step.py                               counted on the denoiser of Stable Diffusion 1.4
    python benchmarks/outer_step.py --measure reference           and timed here, on the reference model
    python benchmarks/outer_step.py --measure sd14 --device cuda  and timed on a GPU, random weights of that shape

Settings (``--setting``):

\b
* default: ResAlign's defaults: one simulation of sixteen steps of all weights by AdamW, four images each, three harmful
  losses of eight images at the present weights and at four points of the simulation, a retain term of 24 images;
* published: three simulations of sixteen steps of all weights by SGD, one image each, the harmful loss of one image at
  the present weights and after every simulation, a retain term of four images: the paper's numbers, but for those of
  its simulations that train LoRA, which is cheaper.

FLOPs and bytes are counted on the meta device, exactly and with no GPU:
a multiply-add is two FLOPs; a storage counts from the operator that makes it until it is freed; allocator slack and
kernels' workspaces do not count. Routes:

\b
* straightforward: the paper's fixed point with its five products at each of the setting's points, and attention by
  explicit softmax;
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
from functools import partial
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safeguard.config import Precision
from safeguard.data.latents import LatentSet
from safeguard.diffusion.live_bytes import LiveBytes
from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.engine import build
from safeguard.io.hub import resolve
from safeguard.io.opening import open_pipeline
from safeguard.policy.loading import load_policy
from safeguard.policy.schema import Policy, UnlearnerMethod
from safeguard.progress import SilentProgress
from safeguard.resilience.resalign import ResAlign, ResAlignConfig
from safeguard.resilience.second_order.hvp import Backend, explicit_attention, fused_attention, hessian_product
from safeguard.resources import find_resource
from safeguard.unlearn.base import HardeningContext

ATTENTION: dict[Backend, Callable[[], AbstractContextManager[None]]] = {
    "explicit": explicit_attention,
    "fused": fused_attention,
}
GIB = 2**30
PROFILED = 25
"""Lines of a profile."""
TERA = 1e12
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {
        "steps": 160,
        "harmful_loss": {"name": "ga", "batch_size": 1},
        "retain_batch": 4,
        "simulations": 3,
        "evaluations": 1,
        "distribution": {"training": {"steps": 16, "optimizer": "sgd", "batch_size": 1}},
        "hessian_batch": 1,
    },
}
"""Of ResAlign, beside a route's."""


@dataclass(frozen=True)
class Route:
    """A way to the hypergradient: how attention is differentiated, and the settings of ResAlign that name the rest.

    Attributes:
        backend: attention of all passes: explicit, or torch's fused kernels (on the meta device, which has none, ours).
    """

    title: str
    backend: Backend
    settings: dict[str, Any]

    def config(self, setting: str) -> ResAlignConfig:
        """All settings of ResAlign, on this route."""
        return ResAlignConfig.model_validate(SETTINGS[setting] | self.settings)


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


def counted(unet: Any, setting: str, *, size: int, tokens: int, width: int) -> dict[str, Cost]:
    """Every route's outer step.

    Args:
        unet: a denoiser on the meta device.
        size: height and width of its latents.
        tokens: of a prompt, whose states are ``width`` wide.
    """
    weights = list(unet.parameters())

    def loss(images: int) -> Tensor:
        with torch.device("meta"):
            latents, t, states = torch.empty(images, 4, size, size), torch.zeros(1), torch.empty(images, tokens, width)
        predicted: Tensor = unet(latents, t.expand(images), states, return_dict=False)[0]
        return predicted.pow(2).mean()

    def gradient(images: int) -> object:
        return torch.autograd.grad(loss(images), weights)

    def products(config: ResAlignConfig, backend: Backend) -> Cost:
        """Those of one solve, at most."""

        def work() -> None:
            product = hessian_product(lambda: loss(config.hessian_batch), weights, backend)
            for _ in range(config.iterations):
                product([torch.empty_like(value) for value in weights])

        return Cost(0, 0) if config.hypergradient == "first_order" else count(work)

    found = {}
    for route in ROUTES:
        config = route.config(setting)
        simulated, evaluations = config.distribution.training, config.evaluations
        sizes = simulated.batch_size, harmful_images(config), config.retain_batch
        with ATTENTION[route.backend]():
            costs = {images: count(partial(gradient, images)) for images in dict.fromkeys(sizes)}
            step, harm, retain = (costs[images] for images in sizes)
            solve = products(config, route.backend)
            with torch.no_grad():
                teacher = count(partial(loss, config.retain_batch))
        simulation = simulated.steps * step.flops + evaluations * (harm.flops + solve.flops)
        flops = config.simulations * simulation + harm.flops + retain.flops + teacher.flops
        found[route.title] = Cost(flops, max(cost.peak for cost in (*costs.values(), solve, teacher)))
    return found


def harmful_images(config: ResAlignConfig) -> int:
    """Images per evaluation of the harmful loss, all of its parts together."""
    named = config.harmful_loss
    assert named is not None
    return sum(int(part.settings["batch_size"]) for part in (named if isinstance(named, list) else [named]))


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


def bench_of(model: DiffusionModel, policy: Policy) -> HardeningContext:
    """A hardening context whose images are noise: what a step costs does not depend on them."""
    prompts = policy.concepts[0].prompt_list[:8]

    def images(name: str) -> LatentSet:
        mean = torch.randn(len(prompts), *model.latent_shape, generator=torch.Generator().manual_seed(len(name)))
        mean = mean.to(model.device)
        return LatentSet(mean, torch.zeros_like(mean), model.encode_prompts(prompts), prompts, name)

    teacher = model.frozen_copy()
    return HardeningContext(policy, model, teacher, list(policy.concepts), images, policy.seed, SilentProgress())


@dataclass(frozen=True)
class Timing:
    """What an outer step took.

    Attributes:
        seconds: per step, after one to warm up.
        peak: bytes at most on a GPU; 0 elsewhere.
        profile: the operators that took longest in one more step; empty: not asked for.
    """

    seconds: float
    peak: float
    profile: str = ""


def timed(
    which: str,
    setting: str,
    device: str,
    steps: int,
    precision: Precision,
    graphs: bool,
    routes: Sequence[Route],
    profiled: bool = False,
) -> Iterator[tuple[Route, Timing]]:
    """Every route's outer step on a model."""
    pipeline = (
        stable_diffusion(device)
        if which == "sd14"
        else open_pipeline(resolve("reference", offline=True), device=device)
    )
    policy = load_policy(find_resource("policy", "policies", "quickstart"))
    for route in routes:
        model = DiffusionModel(pipeline)
        model.execution.precision, model.execution.replays = precision, graphs
        context = bench_of(model, policy)
        objective = ResAlign(route.config(setting), context, build(UnlearnerMethod(name="ga"), context))
        context.model.freeze()
        with explicit_attention() if route.backend == "explicit" else nullcontext():
            objective.compute_gradients(0)
            _wait(device)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            for step in range(1, steps + 1):
                objective.compute_gradients(step)
            _wait(device)
            seconds = (time.perf_counter() - started) / steps
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0.0
            table = profile_of(partial(objective.compute_gradients, 0), device) if profiled else ""
        yield route, Timing(seconds, peak, table)
        del context, objective, model
        gc.collect()


def profile_of(work: Callable[[], object], device: str) -> str:
    """Where the time goes: the operators, or on a GPU the kernels, that take longest by themselves."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        work()
        _wait(device)
    order = f"self_{device}_time_total"
    return str(profile.key_averages().table(sort_by=order, row_limit=PROFILED, max_name_column_width=60))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@click.command(help=__doc__)
@click.option("--setting", type=click.Choice([*SETTINGS]), default="default", show_default=True, help="Whose numbers.")
@click.option("--measure", type=click.Choice(["reference", "sd14"]), help="Also time steps of this model.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Outer steps timed per route.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--graphs", is_flag=True, help="Record the denoiser's work and replay it (harden --cuda-graphs).")
@click.option(
    "--route", "names", type=click.Choice([r.title for r in ROUTES]), multiple=True, help="Time these routes only."
)
@click.option("--profile", "profiled", is_flag=True, help="Say what took longest in one more step.")
@click.option("--tflops", type=float, default=790.0, show_default=True, help="Throughput of the floor, in TFLOP/s.")
def main(
    setting: str,
    measure: str | None,
    device: str,
    steps: int,
    precision: Precision,
    graphs: bool,
    names: tuple[str, ...],
    profiled: bool,
    tflops: float,
) -> None:
    """Print both tables."""
    costs = counted(denoiser("meta"), setting, size=64, tokens=77, width=768)
    click.echo(
        f"One outer step of the {setting} setting on the denoiser of Stable Diffusion 1.4, 512 pixels, counted\n"
    )
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
            f"{'route':<18}{'seconds':>8}{'all steps, min':>16}"
            + (f"{'over the floor':>17}" if over else "")
            + (f"{'peak, GiB':>12}" if device == "cuda" else "")
        )
        for route, found in timed(measure, setting, device, steps, precision, graphs, chosen, profiled):
            floor = costs[route.title].flops / TERA / tflops
            whole = found.seconds * route.config(setting).steps / 60
            click.echo(
                f"{route.title:<18}{found.seconds:>8.2f}{whole:>16.1f}"
                + (f"{found.seconds / floor:>15.1f} x" if over else "")
                + (f"{found.peak / GIB:>12.1f}" if device == "cuda" else "")
            )
            if found.profile:
                click.echo(found.profile)


if __name__ == "__main__":
    main()
