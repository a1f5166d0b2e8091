"""Does the reference model draw what it is asked for? Its detector answers, and a contact sheet lets a person check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recipes.reference.calibration import Plan, detector
from recipes.reference.vocabulary import NAMES, STYLES, Name, caption
from safeguard.detect.clip import ClipDetector
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import sample
from safeguard.errors import UsageFault
from safeguard.files import atomic_path
from safeguard.io.opening import open_pipeline
from safeguard.metrics.clip_score import ClipScore, ClipScoreConfig
from safeguard.metrics.image_statistics import image_statistics
from safeguard.seeds import derive

STEPS = 20
GUIDANCE = 4.0
LABEL_HEIGHT, STYLE_WIDTH = 16, 76
BAND = 16
"""Names per band of a contact sheet."""


def _plan(names: Sequence[Name], samples: int) -> Plan:
    """Every name ``samples`` times; styles take turns."""
    styles = list(STYLES)
    return [
        (name, styles[i % len(styles)], derive(0, "reference-evaluation", name.text, i))
        for name in names
        for i in range(samples)
    ]


def _count(right: np.ndarray, keys: Sequence[str]) -> dict[str, list[int]]:
    """Right answers and all answers by key."""
    column = np.array(keys)
    return {key: [int(right[column == key].sum()), int((column == key).sum())] for key in dict.fromkeys(keys)}


def draw(
    model_directory: Path,
    *,
    samples: int,
    names: Sequence[Name] = NAMES,
    steps: int = STEPS,
    device: str = "cpu",
    done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, Plan]:
    """``samples`` images of every name, styles in turn (DPM-Solver++, guidance 4, seeded), and what they are.

    Raises:
        ModelFault: the directory cannot be opened.
    """
    plan = _plan(names, samples)
    prompts = [caption(name.text, style) for name, style, _ in plan]
    model = DiffusionModel(open_pipeline(model_directory, device=device))
    images = sample(model, prompts, [seed for *_, seed in plan], steps=steps, guidance=GUIDANCE, done=done)
    return images, plan


def evaluate(
    model_directory: Path,
    detector_directory: Path,
    *,
    samples: int = 8,
    names: Sequence[Name] = NAMES,
    device: str = "cpu",
    sheet: Path | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Draw every name ``samples`` times, styles in turn (20 steps of DPM-Solver++, guidance 4, seeded), and count.

    Args:
        sheet: where to write a contact sheet with one image per name and style (PNG); needs four samples.
        done: hears how many images are drawn.

    Returns:
        ``[right, all]`` under ``top1`` (by group), ``weapons`` (by name), ``styles`` (by style) and ``overall``,
        mean CLIP score, image statistics, and how the images were drawn.

    Raises:
        UsageFault: too few samples.
        ModelFault: one of the directories cannot be opened.
    """
    if samples < 1 or (sheet and samples < len(STYLES)):
        raise UsageFault(f"{samples} samples per name are too few", fix=f"use at least {len(STYLES)}")
    images, plan = draw(model_directory, samples=samples, names=names, device=device, done=done)
    prompts = [caption(name.text, style) for name, style, _ in plan]
    clip_score = ClipScore(ClipScoreConfig(checkpoint=str(detector_directory)))
    if sheet:
        contact_sheet(images, plan, sheet)
    return {
        "samples_per_name": samples,
        "sampler": f"DPM-Solver++ 2M, {STEPS} steps, guidance {GUIDANCE:g}",
        **_judge(images, plan, detector(detector_directory), detector(detector_directory, styles=True)),
        "clip_score": float(clip_score.values(images, prompts).mean()),
        "image_statistics": image_statistics(images),
    }


def _top1(judge: ClipDetector, images: np.ndarray, expected: Sequence[str]) -> np.ndarray:
    """Whether the likeliest label is the expected one, (n,)."""
    probabilities, labels = judge.probabilities(images)
    answers: np.ndarray = np.array(labels)[probabilities.argmax(axis=1)]
    return np.asarray(answers == np.array(expected), dtype=bool)


def _judge(images: np.ndarray, plan: Plan, by_name: ClipDetector, by_style: ClipDetector) -> dict[str, Any]:
    """Top-1 among all names of the world and among its styles."""
    right = _top1(by_name, images, [name.text for name, *_ in plan])
    styled = _top1(by_style, images, [STYLES[style] for _, style, _ in plan])
    weapon = np.array([name.group == "weapon" for name, *_ in plan])
    return {
        "overall": [int(right.sum()), len(right)],
        "top1": _count(right, [name.group for name, *_ in plan]),
        "weapons": _count(right[weapon], [name.text for name, *_ in plan if name.group == "weapon"]),
        "styles": _count(styled, [style for _, style, _ in plan]),
    }


def contact_sheet(images: np.ndarray, plan: Plan, path: Path) -> None:
    """Bands of :data:`BAND` names; in each a column per name and a row per style, the first image of each pair."""
    first: dict[tuple[str, str], np.ndarray] = {}
    for image, (name, style, _) in zip(images, plan, strict=True):
        first.setdefault((name.text, style), image)
    names = list(dict.fromkeys(name.text for name, *_ in plan))
    bands = [names[start : start + BAND] for start in range(0, len(names), BAND)]
    size = images.shape[1]
    height = LABEL_HEIGHT + len(STYLES) * size
    canvas = Image.new("RGB", (STYLE_WIDTH + min(BAND, len(names)) * size, len(bands) * height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(10)
    for band, members in enumerate(bands):
        top = band * height + LABEL_HEIGHT
        for row, words in enumerate(STYLES.values()):
            draw.text((4, top + row * size + size // 2 - 6), words, fill="black", font=font)
        for column, text in enumerate(members):
            left = STYLE_WIDTH + column * size
            draw.text((left + 2, top - LABEL_HEIGHT + 2), text[:12], fill="black", font=font)
            for row, style in enumerate(STYLES):
                if (text, style) in first:
                    canvas.paste(Image.fromarray(first[text, style]), (left, top + row * size))
    with atomic_path(path) as temporary:
        canvas.quantize(256).save(temporary, format="PNG", optimize=True)
