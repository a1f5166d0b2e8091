"""The least squares that UCE, RECE and MACE solve for every key and value projection of cross-attention.

For a projection W (d_out, d_in), columns x_i with wanted values v_i, and columns p_j to preserve:

    W' = argmin  sum_i |W' x_i - v_i|^2 + mu sum_j |W' p_j - W p_j|^2 + lam |W' - W|_F^2
       = W + [ sum_i (v_i - W x_i) x_i^T ] A^-1,      A = sum_i x_i x_i^T + mu sum_j p_j p_j^T + lam I

A belongs to the text states alone: it is factored once for all projections of a model, and sums over any number of
concepts are (d_in, d_in) matrices. Everything is float64; weights are rounded to their own type at the end. In the form
above a concept that is asked to stay as it is changes no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safeguard.diffusion.parameters import select
from safeguard.errors import UsageFault
from safeguard.unlearn.base import HardeningContext


def projections(context: HardeningContext) -> dict[str, torch.nn.Parameter]:
    """Keys and values of all cross-attentions of the model, by name: what closed forms edit."""
    return select(context.model, "cross-attention-kv")


def originals(context: HardeningContext) -> dict[str, torch.nn.Parameter]:
    """The same projections of the base model."""
    return select(context.teacher, "cross-attention-kv")


def moment(left: Tensor, right: Tensor | None = None) -> Tensor:
    """sum_i l_i r_i^T over paired columns (a, n) and (b, n), in float64; of one argument, its Gram matrix."""
    right = left if right is None else right
    return left.double() @ right.double().T


class System:
    """A = gram + lam I, factored once, dividing from the right.

    Args:
        gram: sum of x x^T over all columns, weighted, (d_in, d_in).
        lam: weight of staying near the old projection; 0 only when the columns span the whole space.
        setting: of the policy, that gives ``lam``, with what makes the system regular.

    Raises:
        UsageFault: A is singular.
    """

    def __init__(self, gram: Tensor, lam: float, setting: str = "raise lam, the weight of the old projection") -> None:
        gram, size = gram.double(), len(gram)
        self._scales, self._basis = torch.linalg.eigh(
            gram + lam * torch.eye(size, dtype=gram.dtype, device=gram.device)
        )
        if self._scales[0] <= size * torch.finfo(torch.float64).eps * self._scales[-1]:
            raise UsageFault(
                "the closed form has no unique solution: its system of equations is singular",
                fix=setting,
                where="harden.unlearner",
            )

    def divide(self, values: Tensor) -> Tensor:
        """values A^-1 for values (d_out, d_in)."""
        divided: Tensor = (values.double() @ self._basis / self._scales) @ self._basis.T
        return divided


def guided_change(shift: Tensor, gram: Tensor, preserve: Tensor | None, *, lam: float, es: float, ps: float) -> Tensor:
    """K (d_in, d_in) with W' = W + W K for every W, where each wanted value is v_i = W g_i.

    Args:
        shift: sum of (g_i - x_i) x_i^T.
        gram: sum of x_i x_i^T.
        preserve: sum of p_j p_j^T, or None.
        lam, es, ps: weights of the old projection, of the wanted values, and of what is preserved (mu above).
    """
    total = es * gram if preserve is None else es * gram + ps * preserve
    return System(total, lam).divide(es * shift)


@torch.no_grad()
def apply_change(weights: dict[str, torch.nn.Parameter], change: Tensor) -> None:
    """W <- W + W K in place."""
    for weight in weights.values():
        weight.copy_(weight.double() + weight.double() @ change)
