"""torchvision beside a CPU-only torch: importing safeguard first is enough to make it work."""

import subprocess
import sys

import pytest
import torch

from safeguard.compat import _nms

needs_repair = pytest.mark.skipif(
    torch.version.cuda is not None, reason="torch has CUDA here, so torchvision brings its own operators"
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def slow_nms(boxes: list[list[float]], scores: list[float], limit: float) -> list[int]:
    """Keep the best box, drop what overlaps it too much, repeat; one pair of boxes at a time."""

    def overlap(a: list[float], b: list[float]) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0.0) * max(height, 0.0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    waiting = sorted(range(len(boxes)), key=lambda index: -scores[index])
    kept = []
    while waiting:
        kept.append(waiting.pop(0))
        waiting = [index for index in waiting if overlap(boxes[kept[-1]], boxes[index]) <= limit]
    return kept


def random_boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 10
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 6 + 0.5
    return torch.cat([corner, corner + size], dim=1), torch.rand(count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_nms_agrees_with_the_slow_version(count, limit):
    boxes, scores = random_boxes(count, seed=count)
    kept = _nms(boxes, scores, limit).tolist()
    assert kept == slow_nms(boxes.tolist(), scores.tolist(), limit)
    assert count < 40 or 1 < len(kept) < count, "the case is too easy"


@needs_repair
def test_safeguard_makes_torchvision_importable():
    done = python(
        "import safeguard, torchvision, torch\n"
        "boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])\n"
        "print(torch.ops.torchvision.nms(boxes, torch.tensor([.5, .9, .1]), .5).tolist())\n"
        "from torchvision.transforms import v2\n"
        "import diffusers, peft\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1, 2]\n"


@needs_repair
def test_the_hook_leaves_nothing_behind_and_acts_once():
    done = python(
        "import sys, safeguard\n"
        "from safeguard import compat\n"
        "hooks = lambda: sum(type(f).__name__ == '_TorchvisionHook' for f in sys.meta_path)\n"
        "compat.install()\n"
        "assert hooks() == 1 and 'torch' not in sys.modules\n"
        "import torchvision\n"
        "assert hooks() == 0\n"
        "compat.install()\n"
        "assert hooks() == 0\n"
    )
    assert done.returncode == 0, done.stderr
