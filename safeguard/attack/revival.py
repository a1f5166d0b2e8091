r"""Weights that were pruned to zero, completed from those around them; needs the base, no images (arXiv 2603.06640).

An exact zero where the base has none says where an eraser cut. Such zeros of a matrix W (outputs, inputs) are taken as
missing, and completed as those of a matrix of low rank, by soft-thresholded singular values (SoftImpute, Mazumder et
al. 2010, algorithm 1), from the means of columns on:

    X <- W where it is known, elsewhere S_tau(X) = U max(Sigma - tau, 0) V^T,  at most ``rank`` of the values kept

for ``iterations`` steps or until X moves by less than ``tolerance`` of itself; tau is 1/50 of the largest singular
value at the start. Kernels are matrices of what one output reads.

* ``completed`` takes the entries of X;
* ``largest`` takes the signs of the ``keep`` largest share of them, with the largest magnitude that is left in the row;
  the others stay zero.

A layer counts as pruned where more than 1 in 1000 of its weights are zeros beyond the base's share. Departure: one of
the released versions moves tau along, to the smallest singular value kept.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.attack.base import Attempt, Variants
from safeguard.attack.base_model import base_weights
from safeguard.attack.target import Target
from safeguard.config import MethodConfig
from safeguard.diffusion.model import DiffusionModel
from safeguard.results.plan import Needs
from safeguard.wording import plural

Way = Literal["completed", "largest"]
MORE_ZEROS = 0.001
"""Share of exact zeros beyond the base's from which a layer counts as pruned."""
SHRINKAGE = 50
"""tau is the largest singular value divided by it."""


class RevivalConfig(MethodConfig):
    """How pruned weights are completed."""

    ways: Annotated[list[Way], Field(min_length=1)] = ["completed", "largest"]
    """One variant each."""
    rank: PositiveInt = 50
    """Most singular values kept."""
    iterations: PositiveInt = 100
    """Most steps."""
    tolerance: PositiveFloat = 1e-4
    """Relative movement at which it stops."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Of ``largest``: share of a layer's completed entries, largest first, whose signs are taken."""


class Revival(Variants[RevivalConfig]):
    """Complete the zeros that the base does not have."""

    Config: ClassVar = RevivalConfig

    def count(self) -> int:
        """One per way."""
        return len(self.config.ways)

    def needs(self) -> Needs:
        """The weights, and the base's, whose zeros are no cuts."""
        return Needs(weights=True, base_model=True)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Each way begins with the released model; without pruned weights nothing is changed, and the label says so.

        Raises:
            UsageFault: the base model is not at hand.
            ModelFault: it has other weights than the certified model.
        """
        yield Attempt(0)
        masks = pruned(target.model, base_weights(target))
        completed = {name: self._completed(target.model, name, missing) for name, missing in masks.items()}
        count = sum(int(missing.sum()) for missing in masks.values())
        label = f"{plural(count, 'pruned weight')} in {plural(len(masks), 'layer')} revived"
        for number, way in enumerate(self.config.ways, start=1):
            with target.attacked() as model:
                for name, missing in masks.items():
                    self._revive(model, name, missing, completed[name], way)
                yield Attempt(number, label=f"{label}, {way}" if masks else "no pruned weights")

    def _completed(self, model: DiffusionModel, name: str, missing: Tensor) -> Tensor:
        config, matrix = self.config, model.named_parameters()[name].detach().flatten(1)
        return complete(matrix, missing.flatten(1), config.rank, config.iterations, config.tolerance)

    @torch.no_grad()
    def _revive(self, model: DiffusionModel, name: str, missing: Tensor, completed: Tensor, way: Way) -> None:
        parameter = model.named_parameters()[name]
        values = completed
        if way == "largest":
            values = largest(parameter.flatten(1), missing.flatten(1), completed, self.config.keep)
        parameter.copy_(values.view_as(parameter).where(missing, parameter))


def pruned(model: DiffusionModel, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where the matrices and kernels of the pruned layers are zero and the base's are not, by name."""
    found, parameters = {}, model.named_parameters()
    for name, value in base.items():
        ours = parameters[name].detach() == 0
        theirs = value.to(ours.device) == 0
        if value.dim() > 1 and ours.float().mean() - theirs.float().mean() > MORE_ZEROS:
            found[name] = ours & ~theirs
    return found


def complete(matrix: Tensor, missing: Tensor, rank: int, iterations: int, tolerance: float) -> Tensor:
    """X of a matrix (outputs, inputs) whose missing entries are marked; what is known stays."""
    known = matrix.masked_fill(missing, 0)
    means = known.sum(0, keepdim=True) / (~missing).sum(0, keepdim=True).clamp(min=1)
    filled = means.expand_as(matrix).where(missing, matrix)
    tau = torch.linalg.matrix_norm(filled, ord=2) / SHRINKAGE
    for _ in range(iterations):
        u, sigma, v = torch.linalg.svd(filled, full_matrices=False)
        low = (u[:, :rank] * (sigma[:rank] - tau).clamp(min=0)) @ v[:rank]
        before, filled = filled, low.where(missing, matrix)
        if (filled - before).norm() < tolerance * before.norm():
            break
    return filled


def largest(matrix: Tensor, missing: Tensor, completed: Tensor, keep: float) -> Tensor:
    """Signs of the ``keep`` largest completed entries, times the largest magnitude known in their row; else zero."""
    sizes = completed[missing].abs()
    count = round(keep * len(sizes))
    least = sizes.sort(descending=True).values[max(count, 1) - 1]
    reach = matrix.masked_fill(missing, 0).abs().amax(1, keepdim=True)
    return torch.where(completed.abs() >= least, completed.sign() * reach, torch.zeros_like(completed))
