"""Too little memory: the same numbers in smaller parts, whatever ran out, and a clear end when nothing is left to part.

The shortage is a hook on the real network that raises what CUDA raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from safeguard.errors import EnvironmentFault
from safeguard.finetune.base import Training, fine_tune
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.finetune.lora import LoRA, LoRAConfig
from safeguard.model.diffusion import DiffusionModel
from safeguard.model.memory import whole_batches, within_memory
from safeguard.registry import unlearners
from safeguard.resilience.hvp import hessian_product
from safeguard.unlearn.base import Workbench
from tests.benches import apart, gradients, learning, moved_bench, seeded

SMALL = {"trajectory_steps": 2, "pool": 2}
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("esd", {"variant": "f", "batch_size": 3, "preserve_weight": 1.0, "preserve_batch": 3} | SMALL),
    ("ga", {"batch_size": 3}),  # bounded: no mean over rows
    ("lcfdsd", {"batch_size": 2}),  # distances to means over the batch
    ("receler", {"batch_size": 3, "rank": 2, "attack_steps": 2} | SMALL),  # hooks on what happens inside
    ("advunlearn", {"batch_size": 3, "warm_up": 1, "attack_steps": 2} | SMALL),  # gradients into the text encoder
]


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


def slopes(bench: Workbench, name: str, settings: dict[str, Any]) -> Callable[[], list[torch.Tensor]]:
    registered = unlearners.get(name)
    method = registered(registered.Config(**settings), bench)
    parameters = learning(method.parameters())
    for _ in range(2):
        method.loss(seeded(0))
        method.after_step()

    def work() -> list[torch.Tensor]:
        generator = seeded(3)
        loss, keep = method.loss(generator), method.preservation(generator)
        return gradients(loss if keep is None else loss + keep, parameters)

    return work


@pytest.mark.parametrize(("name", "settings"), LOSSES, ids=[name for name, _ in LOSSES])
def test_a_loss_in_parts_has_the_same_gradient(name: str, settings: dict[str, Any]) -> None:
    bench = moved_bench()
    work = slopes(bench, name, settings)
    whole = work()
    bench.model.micro_batches.size = 1
    assert apart(work(), whole) < 1e-4


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("rows", "halvings", "size"), [(8, 0, None), (2, 2, 2), (1, 3, 1)])
def test_parts_are_halved_until_they_fit(backward: bool, rows: int, halvings: int, size: int | None) -> None:
    bench = moved_bench()
    work = slopes(bench, "ga", {"batch_size": 8, "preserve_weight": 0.0})
    whole = work()
    with memory_for(bench.model, rows, backward=backward) as seen:
        found = within_memory(bench.model, work)
        assert apart(found, whole) < 1e-4
        assert (bench.model.micro_batches.halved, bench.model.micro_batches.size) == (halvings, size)
        assert bench.teacher.micro_batches is bench.model.micro_batches
        seen.clear()
        within_memory(bench.model, work)
        assert seen and max(seen) <= rows, "they stay small"


def test_one_row_too_much_is_a_fault() -> None:
    bench = moved_bench()
    work = slopes(bench, "ga", {"batch_size": 4})
    with memory_for(bench.model, 0), pytest.raises(EnvironmentFault, match="one image at a time"):
        within_memory(bench.model, work)
    assert bench.model.micro_batches.halved == 2


def test_what_must_be_seen_whole_is_not_parted_for_ever() -> None:
    bench = moved_bench()
    batch = bench.forget.rows(torch.arange(4), seeded(0))
    t, _ = bench.model.draw_noise(4, seeded(0))
    with memory_for(bench.model, 2), whole_batches(), pytest.raises(EnvironmentFault, match="seen whole") as caught:
        within_memory(bench.model, lambda: bench.model.predict(batch.latents, t, batch.conditioning))
    assert "finite_difference" in caught.value.fix


def test_work_within_work_is_halved_for_both() -> None:
    """A small part fits and the large one around it does not: the small one must not be taken for the limit."""
    bench = moved_bench()
    small, large = (slopes(bench, "ga", {"batch_size": size, "preserve_weight": 0.0}) for size in (1, 4))
    bench.model.micro_batches.largest = 0

    def work() -> None:
        large()
        within_memory(bench.model, small)
        if bench.model.micro_batches.size is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    within_memory(bench.model, work)
    assert (bench.model.micro_batches.size, bench.model.micro_batches.halved) == (2, 1)


def test_other_errors_pass_and_are_not_tried_again() -> None:
    bench, calls = moved_bench(), []

    def work() -> None:
        calls.append(1)
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        within_memory(bench.model, work)
    assert len(calls) == 1


@pytest.mark.parametrize("backend", ["fused", "explicit", "finite_difference"])
def test_hessian_products_are_the_same_when_memory_was_short(backend: Any) -> None:
    bench = moved_bench()
    values = list(learning(dict(bench.model.unet.named_parameters())).values())
    batch = bench.forget.rows(torch.arange(3), seeded(0))
    t, noise = bench.model.draw_noise(3, seeded(1))
    v = [torch.randn(value.shape, generator=seeded(2)) for value in values]

    def loss() -> torch.Tensor:
        return bench.model.denoising_loss_at(batch.latents, batch.conditioning, t, noise)

    whole = hessian_product(loss, values, "explicit")(v)
    bench.model.micro_batches.size = 2
    product = hessian_product(loss, values, backend)
    assert apart(product(v), whole) < 1e-2
    assert apart(product(v), whole) < 1e-2, "more than once"


@pytest.mark.parametrize("tuner", [FullFineTuning(FullConfig()), LoRA(LoRAConfig(rank=2))], ids=["full", "lora"])
def test_a_fine_tune_short_of_memory_ends_at_the_same_weights(tuner: Any) -> None:
    ends = []
    for rows in (4, 1):
        bench = moved_bench()
        model, training = bench.model, Training(steps=3, learning_rate=1e-2, batch_size=4, optimizer="sgd")
        data = bench.forget
        with memory_for(model, rows) as seen:
            fine_tune(model, data, tuner, training, seed=5)
        assert model.micro_batches.halved == (2 if rows == 1 else 0)
        assert len(seen) == 3 if rows == 4 else max(seen[2:]) == 1
        ends.append([value.detach().clone() for value in model.named_parameters().values()])
        tuner.detach(model)
    assert apart(ends[1], ends[0]) < 1e-6
