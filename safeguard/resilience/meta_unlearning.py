"""Meta-unlearning (arXiv 2410.12777, Algorithm 1), first order.

    gradient = gamma1 grad L_unlearn(theta) + gamma2 grad L_meta
    L_meta   = -L_DM(theta_FT; forget) - zeta [ L_DM(theta_FT; retain) - L_DM(theta; retain) ]                 (Eq. 2)
    theta_FT = theta after M inner steps on L_DM(.; forget)

A malicious fine-tune shall fail to learn the concept and break benign knowledge on the way. L_unlearn is the base
unlearner's loss with its preservation term; for a closed form the edit comes first and gamma1 has nothing to weigh.
"Retain" are related and retained images. First order means that gradients at theta_FT are used as if theta_FT did not
depend on theta, which is what the released code does: of the gradient of Eq. 4 it keeps half the gradient-norm term
and one of the two halves of the inner product. Losses are means over their batch; the released code sums over batches,
so its gammas scale with images / batch size. The ascended losses are bounded (as in gradient ascent) so that the meta
term cannot run away; ``bound`` is far above the losses of a working model.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from safeguard.config import MethodConfig
from safeguard.errors import UsageFault
from safeguard.finetune.base import Training, fine_tune
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.model.diffusion import Weights
from safeguard.model.parameters import exposed
from safeguard.resilience.base import Facts
from safeguard.resilience.hypergradient import Vector, combine, dot, gradients, norm
from safeguard.seeds import derive
from safeguard.unlearn.base import Unlearner, Workbench
from safeguard.unlearn.common import bounded_ascent


class MetaUnlearningConfig(MethodConfig):
    """Settings of meta-unlearning."""

    steps: PositiveInt = 1000
    """Outer steps."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate of the outer loop."""
    parameters: str = "full"
    """Parameter group theta (``safeguard.model.parameters.GROUPS``)."""
    warm_start: bool = False
    """Run the unlearner alone first (always so for closed forms)."""
    gamma1: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the unlearning loss."""
    gamma2: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the meta loss (the paper: 0.05 to 0.1)."""
    zeta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retained knowledge inside the meta loss."""
    inner_steps: PositiveInt = 1
    """Simulated fine-tuning steps (M)."""
    inner_learning_rate: PositiveFloat = 1e-5
    """Their learning rate (tau)."""
    inner_optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """Their optimiser."""
    batch_size: PositiveInt = 4
    """Images per loss."""
    bound: PositiveFloat = 1.0
    """Denoising loss beyond which an ascended loss no longer counts."""


class MetaUnlearning:
    """Algorithm 1 with first-order gradients."""

    Config: ClassVar = MetaUnlearningConfig

    def __init__(self, config: MetaUnlearningConfig, bench: Workbench, unlearner: Unlearner) -> None:
        if bench.preserved is None:
            raise UsageFault(
                "meta-unlearning needs benign images", fix="declare related subjects of a concept, or retained subjects"
            )
        self.config = config
        self.bench = bench
        self.unlearner = unlearner
        self.retain = bench.preserved
        self.steps = config.steps
        self.learning_rate = config.learning_rate

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameter group theta, with other parts that the unlearner changes."""
        return exposed(self.bench.model, self.config.parameters)

    def accumulate(self, step: int) -> Facts:
        """Unlearning, retain and meta gradients of one outer step."""
        config, bench = self.config, self.bench
        values = list(self.parameters().values())
        generator = torch.Generator().manual_seed(derive(bench.seed, "outer", step))
        total, facts = self._unlearning(values, generator)
        batch = self.retain.batch(config.batch_size, generator)
        t, noise = bench.model.draw_noise(config.batch_size, generator)
        encode = bench.model.encode_prompts
        before = bench.model.denoising_loss_at(batch.latents, encode(batch.captions), t, noise)
        total = combine(total, config.gamma2 * config.zeta, gradients(before, values))
        with Weights(bench.model.named_parameters()):
            self._inner(step)
            for value in values:
                value.requires_grad_(True)
            forget = bench.forget.batch(config.batch_size, generator)
            relearnt = bench.model.denoising_loss(forget.latents, encode(forget.captions), generator)
            after = bench.model.denoising_loss_at(batch.latents, encode(batch.captions), t, noise)
            g_forget = gradients(bounded_ascent(relearnt, config.bound), values)
            g_retain = gradients(bounded_ascent(after, config.bound), values)
        meta = combine(g_forget, config.zeta, g_retain)
        total = combine(total, config.gamma2, meta)
        for value, gradient in zip(values, total, strict=True):
            value.grad = gradient
        size = norm(g_forget) * norm(g_retain)
        return facts | {
            "fine-tuning loss after inner steps": relearnt.item(),
            "retain loss before": before.item(),
            "retain loss after inner steps": after.item(),
            "meta gradient norm": norm(meta),
            "fine-tuning gradient norm": norm(g_forget),
            "cosine of forget and retain gradients": dot(g_forget, g_retain) / size if size else 0.0,
        }

    def _unlearning(self, values: list[torch.nn.Parameter], generator: torch.Generator) -> tuple[Vector, Facts]:
        if self.unlearner.closed_form:
            return [torch.zeros_like(value) for value in values], {}
        loss = self.unlearner.loss(generator)
        facts = {"erasure loss": loss.item()}
        keep = self.unlearner.preservation(generator)
        if keep is not None:
            facts["preservation loss"] = keep.item()
            loss = loss + keep
        return gradients(self.config.gamma1 * loss, values), facts

    def _inner(self, step: int) -> None:
        config, bench = self.config, self.bench
        training = Training(
            steps=config.inner_steps,
            learning_rate=config.inner_learning_rate,
            batch_size=config.batch_size,
            optimizer=config.inner_optimizer,
        )
        tuner = FullFineTuning(FullConfig())
        fine_tune(bench.model, bench.forget, tuner, training, seed=derive(bench.seed, "inner", step))
        tuner.detach(bench.model)
