"""Repairs ``import torchvision`` where a CUDA-built torchvision stands beside a CPU-only torch.

The compiled part of such a torchvision cannot load, its operator schemas are never declared, and importing it (or peft,
or diffusers, which look for it) raises ``operator torchvision::nms does not exist``. The hook declares the two missing
schemas, with a pure-torch kernel for ``nms``, just before torchvision is imported. With a CUDA torch it does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_library: Any = None


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression of boxes (n, 4) as x1, y1, x2, y2; indices kept, best score first."""
    import torch

    order = scores.argsort(descending=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(int(best))
        top_left = torch.maximum(boxes[best, :2], boxes[order, :2])
        bottom_right = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        overlap = (bottom_right - top_left).clamp(min=0).prod(dim=1)
        order = order[overlap / (areas[best] + areas[order] - overlap) <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _declare_operators() -> None:
    global _library
    import torch

    if torch.version.cuda is not None or _library is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", _nms, "CPU")


class _TorchvisionHook(MetaPathFinder):
    """Acts once, when torchvision is first asked for, and lets the ordinary import go on."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None


def install() -> None:
    """Put the hook in place; cheap, imports nothing."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _TorchvisionHook) for f in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionHook())
