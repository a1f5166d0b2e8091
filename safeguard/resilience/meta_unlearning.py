"""Meta-unlearning (arXiv 2410.12777, Algorithm 1).

    gradient = gamma1 grad L_unlearn(theta) + gamma2 grad_theta L_meta(theta)
    L_meta   = -L_FT(theta_FT) - zeta [ L_benign(theta_FT) - L_benign(theta) ]                                 (Eq. 2)
    theta_FT = theta after M steps of fine-tuning on the concept's images

L_FT is the denoising loss of the concept's images and L_benign that of related and retained ones. A malicious fine-tune
shall fail to learn the concept and break benign knowledge on the way. Around a closed form nothing holds the rest where
it is; ``preserve_weight`` adds distillation. For one step of descent with rate tau,

    L_meta = -L_FT(theta) + tau |grad L_FT|^2 + tau zeta <grad L_FT, grad L_benign> + O(tau^2)                 (Eq. 4)

whose *gradient norm term*, the square, and *gradient angle term*, the inner product, the record follows (the paper's
Fig. 6). L_unlearn is the base unlearner's loss with its preservation term; for a closed form the edit comes first and
the meta loss is descended alone. ``harmful_loss`` puts other erasure losses in the place of -L_FT(theta_FT), and
``prompts`` lets some fine-tunes see the images of a few prompts only; neither is in the paper.

``variant: exact`` differentiates through every inner step, clipping and the optimiser's state included.
``variant: released`` is what the released code does: gradients at theta_FT are used as if theta_FT were theta plus a
constant, which keeps half of the gradient of the norm term, and one half of that of the inner product. That code takes
three AdamW steps with batches of ten; its weights of concept, related and retained images are, by evident intent, 0.1,
0.1 and 0.01 (``gamma2`` 0.1, ``zeta`` 1.1, ``related_share`` 0.91), but its scripts pass one option three times, and
0.01, 1 and 1 is what runs. It sums losses over batches where here they are means: its weights are to be multiplied by
images / batch size. Its gamma1 weighs L_benign(theta), not L_unlearn.

Adam's first step has the size of the learning rate whatever the gradient, so with one step of Adam the exact gradient
is the released one. The ascended losses are bounded (as in gradient ascent) so that the meta term cannot run away;
``bound`` is far above the losses of a working model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from safeguard.config import FineTuningData, MethodConfig, Optimizer, Training
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import Weights
from safeguard.diffusion.parameters import exposed
from safeguard.errors import UsageFault
from safeguard.finetune.base import Run
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.resilience.base import Facts, Objective
from safeguard.resilience.harmful_loss import HarmfulLoss, JointLoss, harmful
from safeguard.resilience.second_order.hvp import Backend
from safeguard.resilience.second_order.solvers import Vector, combine, cosine, dot, gradients, norm, within_trust
from safeguard.resilience.second_order.trajectory import Trajectory, check_optimizer
from safeguard.resilience.simulation import Images, Prompts, pick
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import bounded_ascent, preservation

Loss = Callable[[], Tensor]
"""A loss at the present weights: the same images, timesteps and noise at every call."""


class InnerTraining(Training):
    """The inner steps."""

    steps: PositiveInt = 1
    """Their number (M)."""
    learning_rate: PositiveFloat = 1e-5
    """Their learning rate (tau), by default that of the paper's fine-tunes; descent by so little hardly moves."""
    optimizer: Optimizer = "sgd"
    """Their optimiser, new at every outer step."""
    batch_size: PositiveInt = 4
    """Images per loss."""


class MetaUnlearningConfig(MethodConfig):
    """Settings of meta-unlearning."""

    steps: PositiveInt = 1000
    """Outer steps."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate of the outer loop."""
    parameters: str = "full"
    """Parameter group theta (``safeguard.diffusion.parameters.GROUPS``)."""
    warm_start: bool = False
    """Run the unlearner alone first (always so for closed forms)."""
    variant: Literal["exact", "released"] = "exact"
    """Gradient of the meta loss: through the inner steps, or first order as in the released code."""
    gamma1: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the unlearning loss."""
    gamma2: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the meta loss (the paper: 0.05 to 0.1)."""
    zeta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of benign knowledge inside the meta loss."""
    related_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of related subjects in the benign loss, the rest being retained ones; where there are both."""
    training: InnerTraining = InnerTraining()
    """The simulated fine-tune, whose ``batch_size`` is that of every loss."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distillation on related and retained images; 0 is the paper."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""
    bound: PositiveFloat | None = 1.0
    """Denoising loss beyond which an ascended loss no longer counts; none: it always does, as in the paper."""
    harmful_loss: HarmfulLoss | None = None
    """What is descended after the inner steps in place of -L_FT: the loss of one unlearner, or of several, added
    (:mod:`safeguard.resilience.harmful_loss`); none: -L_FT, as in the paper."""
    data: FineTuningData = FineTuningData(shares={"concept": 1.0})
    """What the inner steps see."""
    prompts: Prompts = [None]
    """How many different prompts, if ``data`` do not say, drawn anew at every outer step: 1 is the single-prompt
    attack; none: all of the concept's."""
    hvp: Backend = "fused"
    """How Hessian-vector products are computed (:mod:`safeguard.resilience.second_order.hvp`)."""
    trust: Annotated[float, Field(ge=1)] = 3.0
    """The exact gradient after fine-tuning is cut to this multiple of the length of the released one."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> MetaUnlearningConfig:
        if self.gamma1 == self.gamma2 == 0:
            raise ValueError("gamma1 and gamma2 are both 0, so that nothing would be unlearned; give one a weight")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Four outer steps."""
        return cls(steps=4, learning_rate=1e-3, training=InnerTraining(batch_size=2))


class MetaUnlearning(Objective):
    """Algorithm 1 around a base unlearner."""

    Config: ClassVar = MetaUnlearningConfig
    first_order: ClassVar = "variant: released"

    def __init__(self, config: MetaUnlearningConfig, context: HardeningContext, unlearner: Unlearner) -> None:
        if context.preserved is None:
            raise UsageFault(
                "meta-unlearning needs benign images", fix="declare related subjects of a concept, or retained subjects"
            )
        if config.gamma2 == 0 and (unlearner.closed_form or config.harmful_loss is not None):
            why = "a harmful_loss" if config.harmful_loss is not None else "a closed form, whose edit comes first,"
            raise UsageFault(f"gamma2 is 0, and {why} counts only with what it weighs", fix="give gamma2 a weight")
        if config.variant == "exact":
            check_optimizer(config.training.optimizer)
        self.config = config
        self.context = context
        self.unlearner = unlearner
        self._images = Images(context)
        self._images.check(config.data)
        self._harmful_loss = JointLoss([]) if config.harmful_loss is None else harmful(config.harmful_loss, context)
        self.steps = config.steps
        self.learning_rate = config.learning_rate

    def products(self) -> Backend | None:
        """Those of the way back through the inner steps."""
        return self.config.hvp if self.config.variant == "exact" else None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameter group theta, with other parts that the unlearner changes."""
        return exposed(self.context.model, self.config.parameters)

    @property
    def data_digest(self) -> str:
        """That of both losses."""
        return f"{super().data_digest} {self._harmful_loss.data_digest}".strip()

    def after_step(self) -> None:
        """Both unlearners hear of it."""
        super().after_step()
        self._harmful_loss.after_step()

    def state(self) -> dict[str, Tensor]:
        """That of the harmful loss."""
        return {f"harmful_loss.{name}": value for name, value in self._harmful_loss.state().items()}

    def compute_gradients(self, step: int) -> Facts:
        """Unlearning and meta gradients of one outer step."""
        config, context = self.config, self.context
        values = list(self.parameters().values())
        generator = self._generator(step)
        total, facts = self._unlearning(values, generator)
        distilled = preservation(context, config.preserve_weight, config.preserve_batch, generator)
        if distilled is not None:
            facts["distillation loss"] = distilled.item()
            total = combine(total, 1.0, gradients(distilled, values))
        concept, benign = self._loss(context.forget, generator), self._benign(generator)
        data = self._relearnt(step)
        tuner = FullFineTuning(FullConfig())
        start = Weights(context.model.named_parameters())

        def harmful_loss() -> Tensor:
            with context.after(data):
                return self._harmful_loss.loss(self._generator(step, "harm"))

        try:
            run = Run(context.model, data, tuner, config.training, seed=derive(context.seed, "inner", step))
            meta, more = meta_gradient(
                run,
                values,
                concept,
                benign,
                harmful_loss=None if config.harmful_loss is None else harmful_loss,
                zeta=config.zeta,
                exact=config.variant == "exact",
                bound=config.bound,
                backend=config.hvp,
                trust=config.trust,
            )
        finally:
            start.restore()
            tuner.detach(context.model)
            for value in values:
                value.requires_grad_(True)
        for value, gradient in zip(values, combine(total, config.gamma2, meta), strict=True):
            value.grad = gradient
        return facts | more

    def _generator(self, *purpose: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.context.seed, "outer", *purpose))

    def _relearnt(self, step: int) -> LatentSet:
        """Images for the inner steps."""
        data, generator = self.config.data, self._generator(step, "prompts")
        prompts = pick(self.config.prompts, generator)
        if data.prompts is None:
            data = data.model_copy(update={"prompts": prompts})
        return self._images.get(data, derive(self.context.seed, "inner data", step), generator)

    def _unlearning(self, values: list[torch.nn.Parameter], generator: torch.Generator) -> tuple[Vector, Facts]:
        if self.unlearner.closed_form:
            return [torch.zeros_like(value) for value in values], {}
        loss = self.unlearner.loss(generator)
        facts = {"erasure loss": loss.item()}
        keep = self.unlearner.preservation(generator)
        if keep is not None:
            facts["preservation loss"] = keep.item()
            loss = loss + keep
        if not loss.requires_grad:
            raise UsageFault(
                f"the unlearner's loss does not depend on the parameters {self.config.parameters!r}",
                fix="let meta-unlearning change what the unlearner changes, for example parameters: full",
            )
        return gradients(self.config.gamma1 * loss, values), facts

    def _loss(self, data: LatentSet, generator: torch.Generator) -> Loss:
        """The denoising loss of a batch."""
        model, size = self.context.model, self.config.training.batch_size
        batch, (t, noise) = data.batch(size, generator), model.draw_noise(size, generator)
        return lambda: model.denoising_loss_at(batch.latents, model.encode_prompts(batch.captions), t, noise)

    def _benign(self, generator: torch.Generator) -> Loss:
        """The weighted mean of the losses of related and retained images."""
        share = self.config.related_share
        sets = [(share, self.context.related), (1 - share, self.context.retain)]
        drawn = [(weight, self._loss(data, generator)) for weight, data in sets if data is not None]
        if len(drawn) == 1:
            return drawn[0][1]
        return lambda: torch.stack([weight * loss() for weight, loss in drawn]).sum()


def meta_gradient(
    run: Run,
    values: Sequence[torch.nn.Parameter],
    concept: Loss,
    benign: Loss,
    *,
    harmful_loss: Loss | None = None,
    zeta: float,
    exact: bool = True,
    bound: float | None = None,
    backend: Backend = "fused",
    trust: float = math.inf,
) -> tuple[Vector, Facts]:
    """The gradient of L_meta with respect to ``values``. Leaves the weights somewhere along the fine-tune.

    Args:
        run: the fine-tune, about to begin; L_FT is its loss at every inner step.
        values: theta, all or some of what the fine-tune trains.
        concept: L_FT where it is looked at.
        benign: L_benign.
        harmful_loss: what is descended after the fine-tune; None: -L_FT.
        zeta: weight of the benign loss.
        exact: differentiate through the fine-tune, or take theta_FT - theta for a constant.
        bound: of the ascended losses; None: they are ascended without end.
        backend: of the Hessian-vector products.
        trust: longest exact gradient of what follows the fine-tune, as a multiple of that of first order.

    Returns:
        The gradient, one tensor per value, and for the record: the losses before and after, the terms of Eq. 4 at
        theta, and how the exact gradient compares with that of first order.
    """
    fitted, known = concept(), benign()
    g_concept, g_benign = gradients(fitted, values), gradients(known, values)
    trajectory = _followed(run, exact)
    relearnt, left = concept(), benign()
    erasing = _ascended(relearnt, bound) if harmful_loss is None else harmful_loss()
    grad = combine(gradients(erasing, run.parameters), zeta, gradients(_ascended(left, bound), run.parameters))
    meta, compared = _chosen(run, grad, values), Facts()
    if trajectory is not None:
        meta, compared = _exact(trajectory, grad, values, backend, trust)
    facts = {
        "fine-tuning loss": fitted.item(),
        "fine-tuning loss after inner steps": relearnt.item(),
        "benign loss": known.item(),
        "benign loss after inner steps": left.item(),
        **_terms(g_concept, g_benign),
        "meta gradient norm": norm(meta),
    }
    erased = {} if harmful_loss is None else {"erasure loss after inner steps": erasing.item()}
    return combine(meta, zeta, g_benign), facts | erased | compared


def _followed(run: Run, exact: bool) -> Trajectory | None:
    """Take all steps of the fine-tune; what is needed to go back, where the gradient shall be exact."""
    trajectory = Trajectory(run) if exact else None
    for _ in range(run.training.steps):
        if trajectory is not None:
            trajectory.record()
        run.step()
    return trajectory


def _terms(g_concept: Vector, g_benign: Vector) -> Facts:
    """Those of Eq. 4, from the gradients of L_FT and L_benign at theta."""
    return {
        "gradient norm term": dot(g_concept, g_concept),
        "gradient angle term": dot(g_concept, g_benign),
        "cosine of fine-tuning and benign gradients": cosine(g_concept, g_benign),
    }


def _ascended(loss: Tensor, bound: float | None) -> Tensor:
    """What is descended to raise ``loss``."""
    return -loss if bound is None else bounded_ascent(loss, bound)


def _chosen(run: Run, whole: Vector, values: Sequence[torch.nn.Parameter]) -> Vector:
    """Those of the vectors, one per trained parameter, that belong to ``values``."""
    places = {id(parameter): place for place, parameter in enumerate(run.parameters)}
    return [whole[places[id(value)]] for value in values]


def _exact(
    trajectory: Trajectory, grad: Vector, values: Sequence[torch.nn.Parameter], backend: Backend, trust: float
) -> tuple[Vector, Facts]:
    """The gradient at the end of a fine-tune as one with respect to its start, and how it compares with first order."""
    run = trajectory.run
    first = _chosen(run, grad, values)
    through = _chosen(run, trajectory.pull_back({run.training.steps: grad}, [], backend)[0], values)
    through, guard = within_trust(through, first, trust)
    return through, {
        "cosine of hypergradient and first order": cosine(through, first),
        "guard: trust region": float(bool(guard)),
    }
