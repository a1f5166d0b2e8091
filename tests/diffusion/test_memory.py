"""Too little memory: the same numbers in smaller parts, whatever ran out, and a clear end when nothing is left to part.

The shortage is a hook on the real network that raises what CUDA raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from safeguard.config import Training
from safeguard.diffusion.micro_batches import whole_batches
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import EnvironmentFault
from safeguard.finetune.base import fine_tune
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.finetune.lora import LoRA, LoRAConfig
from safeguard.resilience.second_order.hvp import hessian_product
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.contexts import apart, gradients, learning, moved_context, seeded


@contextmanager
def memory_for(model: DiffusionModel, rows: int, *, backward: bool = False) -> Iterator[list[int]]:
    """A device on which no more than ``rows`` rows fit through the denoiser; yields the batches that went in."""
    seen: list[int] = []

    def check(count: int) -> None:
        seen.append(count)
        if count > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    if backward:
        handle = model.unet.register_full_backward_pre_hook(lambda module, output: check(len(output[0])))
    else:
        handle = model.unet.register_forward_pre_hook(lambda module, inputs: check(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


def grads(context: HardeningContext, size: int) -> Callable[[], list[torch.Tensor]]:
    """Work on the context's model: the gradient of gradient ascent on ``size`` images."""
    method = GradientAscent(GradientAscentConfig(batch_size=size), context)
    parameters = learning(method.parameters())
    return lambda: gradients(method.loss(seeded(3)), parameters)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("rows", "halvings", "size"), [(8, 0, None), (2, 2, 2), (1, 3, 1)])
def test_parts_are_halved_until_they_fit(backward: bool, rows: int, halvings: int, size: int | None) -> None:
    context = moved_context()
    work = grads(context, 8)
    whole = work()
    with memory_for(context.model, rows, backward=backward) as seen:
        found = context.model.execution.within_memory(work)
        assert apart(found, whole) < 1e-4
        assert (context.model.execution.micro_batches.halved, context.model.execution.micro_batches.size) == (
            halvings,
            size,
        )
        assert context.teacher.execution.micro_batches is context.model.execution.micro_batches
        seen.clear()
        context.model.execution.within_memory(work)
        assert seen and max(seen) <= rows, "they stay small"


def test_one_row_too_much_is_a_fault() -> None:
    context = moved_context()
    work = grads(context, 4)
    with memory_for(context.model, 0), pytest.raises(EnvironmentFault, match="one image at a time"):
        context.model.execution.within_memory(work)
    assert context.model.execution.micro_batches.halved == 3, "twice by rows, then by blocks"


def test_what_must_be_seen_whole_is_not_parted_for_ever() -> None:
    context = moved_context()
    batch = context.forget.rows(torch.arange(4), seeded(0))
    t, _ = context.model.draw_noise(4, seeded(0))
    with memory_for(context.model, 2), whole_batches(), pytest.raises(EnvironmentFault, match="seen whole") as caught:
        context.model.execution.within_memory(lambda: context.model.predict(batch.latents, t, batch.conditioning))
    assert "finite_difference" in caught.value.fix


def test_work_within_work_is_halved_for_both() -> None:
    """A small part fits and the large one around it does not: the small one must not be taken for the limit."""
    context = moved_context()
    small, large = (grads(context, size) for size in (1, 4))
    context.model.execution.micro_batches.largest = 0

    def work() -> None:
        large()
        context.model.execution.within_memory(small)
        if context.model.execution.micro_batches.size is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    context.model.execution.within_memory(work)
    assert (context.model.execution.micro_batches.size, context.model.execution.micro_batches.halved) == (2, 1)


def test_other_errors_pass_and_are_not_tried_again() -> None:
    context, calls = moved_context(), []

    def work() -> None:
        calls.append(1)
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        context.model.execution.within_memory(work)
    assert len(calls) == 1


@pytest.mark.parametrize("backend", ["fused", "explicit", "finite_difference"])
def test_hessian_products_are_the_same_when_memory_was_short(backend: Any) -> None:
    context = moved_context()
    values = list(learning(dict(context.model.unet.named_parameters())).values())
    batch = context.forget.rows(torch.arange(3), seeded(0))
    t, noise = context.model.draw_noise(3, seeded(1))
    v = [torch.randn(value.shape, generator=seeded(2)) for value in values]

    def loss() -> torch.Tensor:
        return context.model.denoising_loss_at(batch.latents, batch.conditioning, t, noise)

    whole = hessian_product(loss, values, "explicit")(v)
    context.model.execution.micro_batches.size = 2
    product = hessian_product(loss, values, backend)
    assert apart(product(v), whole) < 1e-2
    assert apart(product(v), whole) < 1e-2, "more than once"


@pytest.mark.parametrize("tuner", [FullFineTuning(FullConfig()), LoRA(LoRAConfig(rank=2))], ids=["full", "lora"])
def test_a_fine_tune_short_of_memory_ends_at_the_same_weights(tuner: Any) -> None:
    ends = []
    for rows in (4, 1):
        context = moved_context()
        model, training = context.model, Training(steps=3, learning_rate=1e-2, batch_size=4, optimizer="sgd")
        data = context.forget
        with memory_for(model, rows) as seen:
            for _ in fine_tune(model, data, tuner, training, seed=5):
                end = [value.detach().clone() for value in model.named_parameters().values()]
        assert model.execution.micro_batches.halved == (2 if rows == 1 else 0)
        assert len(seen) == 3 if rows == 4 else max(seen[2:]) == 1
        ends.append(end)
    assert apart(ends[1], ends[0]) < 1e-6
