"""The reference detector: a small CLIP in open_clip's format, trained apart from the generator it judges.

Vision tower: CLIP's modified ResNet on 64 x 64 pixels (the generator has a UNet); text tower: 2 layers of 64 over
open_clip's own tokenizer (the generator has another one); another seed. Four losses: names, styles, whole captions
(all cross-entropy over cosine similarities), and images that show nothing, or less strongly no name of the world, are
pulled to the uniform distribution (outlier exposure, Hendrycks et al. 2019), so that noise is no weapon.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from recipes.reference.batches import Batch, Examples, Mix, half_drawn, plain
from recipes.reference.descent import descend
from recipes.reference.vocabulary import NAMES, STYLES, article, caption
from safeguard.detect.clip_model import CONFIG_FILE, WEIGHTS_FILE
from safeguard.files import atomic_path, write_json
from safeguard.io.checkpoint import load_state, save_state

CONTEXT = 16
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
"""open_clip's ``model_cfg``; 4.6 million parameters, of which the token table has 3.2 million."""
LEARNING_RATE = 2e-3
RESTART_RATE = 5e-4
"""Learning rate of a training that starts from a trained detector."""
NAME_WEIGHTS = Mix(known=1, restyled=1, half=1, other=0.3, nothing=1)
"""How strongly images count; other artwork is pulled to "no name", and at 1, things drawn in an unknown style would
look like other things."""
STYLE_WEIGHTS = Mix(known=1, restyled=0, half=0, other=1, nothing=1)
"""The same for styles."""
STYLE_WEIGHT = 2.0
"""Styles are few but look much alike at 64 pixels; names are learned at once."""
SMOOTHING = 0.05
MAX_LOGIT_SCALE = 40.0


def build() -> CLIP:
    """An untrained detector."""
    return CLIP(**CONFIG)


class _Texts:
    """Token ids of every way to ask for a name, a style, or both."""

    def __init__(self) -> None:
        tokenizer = SimpleTokenizer(context_length=CONTEXT)
        names = [name.text for name in NAMES]
        ways: list[list[str]] = [
            [f"a {name} emoji" for name in names],
            [caption(name) for name in names],
            names,
            [article(name) for name in names],
            *([caption(name, style) for name in names] for style in STYLES),
        ]
        self.names: list[Tensor] = [tokenizer(way) for way in ways]
        self.styles: list[Tensor] = [
            tokenizer([f"an emoji in {words} style" for words in STYLES.values()]),
            tokenizer([f"{words} style" for words in STYLES.values()]),
        ]
        self.both: Tensor = tokenizer([caption(name, style) for name in names for style in STYLES])
        self._kept: dict[int, Tensor] = {}

    def read(self, model: CLIP, texts: Tensor, rows: Tensor | None = None) -> Tensor:
        """Features of (some rows of) one of the tensors above; read once where the text tower is not trained."""
        device = model.text_projection.device
        if model.text_projection.requires_grad:
            chosen = texts if rows is None else texts[rows]
            found: Tensor = model.encode_text(chosen.to(device), normalize=True)
            return found
        if id(texts) not in self._kept:
            with torch.no_grad():
                self._kept[id(texts)] = model.encode_text(texts.to(device), normalize=True)
        kept = self._kept[id(texts)]
        return kept if rows is None else kept[rows]


def _draw(options: list[Tensor], generator: torch.Generator) -> Tensor:
    return options[int(torch.randint(len(options), (), generator=generator))]


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Smoothed, weighted cross-entropy; rows whose target is -1 are pulled to the uniform distribution."""
    classes = logits.shape[1]
    known = target >= 0
    wanted = torch.full_like(logits, 1 / classes)
    hot = functional.one_hot(target[known], classes).to(logits.dtype)
    wanted[known] = hot * (1 - SMOOTHING) + SMOOTHING / classes
    loss = -(wanted * logits.log_softmax(dim=1)).sum(dim=1)
    return (loss * weight).sum() / weight.sum()


def _contrast(logits: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric loss over (image, caption) pairs; ``same`` marks captions that are equal."""
    wanted = same.float() / same.float().sum(dim=1, keepdim=True)
    both = [-(wanted * part.log_softmax(dim=1)).sum(dim=1).mean() for part in (logits, logits.T)]
    return (both[0] + both[1]) / 2


def _loss(model: CLIP, texts: _Texts, batch: Batch, generator: torch.Generator) -> Tensor:
    device = model.text_projection.device
    images, names, styles = (part.to(device) for part in (batch.images, batch.names, batch.styles))
    pairs = (batch.names * len(STYLES) + batch.styles)[: batch.known]
    names_as, styles_as = _draw(texts.names, generator), _draw(texts.styles, generator)
    seen = model.encode_image(images, normalize=True) * model.logit_scale.exp()
    by_name, by_style = seen @ texts.read(model, names_as).T, seen @ texts.read(model, styles_as).T
    by_both = seen[: batch.known] @ texts.read(model, texts.both, pairs).T
    naming = _cross_entropy(by_name, names, batch.each(NAME_WEIGHTS).to(device))
    styling = _cross_entropy(by_style, styles, batch.each(STYLE_WEIGHTS).to(device))
    same = (pairs[:, None] == pairs[None]).to(device)
    return naming + STYLE_WEIGHT * styling + 0.5 * _contrast(by_both, same)


def _keep_texts(model: CLIP) -> None:
    """Train the vision tower and the scale alone."""
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    model.logit_scale.requires_grad_(True)


def train(
    data: Examples,
    path: Path,
    *,
    steps: int,
    half: Examples | None = None,
    start_from: Path | None = None,
    device: str = "cpu",
    seed: int = 1,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> CLIP:
    """Train to ``steps`` (continuing from ``path`` when it exists); the model comes back in evaluation mode.

    Args:
        data: drawings.
        path: checkpoint file.
        half: half-drawn variants of them to train on as well (:mod:`recipes.reference.half_drawn`).
        start_from: an exported detector whose weights the training starts with; its text tower stays as it is.
    """
    torch.manual_seed(seed)
    model = build()
    if start_from:
        model.load_state_dict(load_file(start_from / WEIGHTS_FILE))
        _keep_texts(model)
    model = model.to(device, memory_format=torch.channels_last)
    rate = RESTART_RATE if start_from else LEARNING_RATE
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    start = 0
    if path.exists():
        groups, facts = load_state(path, {"adamw": optimizer})
        model.load_state_dict(groups["model"])
        start = facts["step"]
        for _ in range(start):
            schedule.step()
    texts = _Texts()
    generator = torch.Generator().manual_seed(seed + start)
    average = 0.0
    for step in range(start, steps):
        batch = plain(data, generator) if half is None else half_drawn(data, half, generator)
        loss = _loss(model, texts, batch, generator)
        descend(loss, trained, optimizer, schedule)
        with torch.no_grad():
            model.logit_scale.clamp_(max=torch.tensor(MAX_LOGIT_SCALE).log().item())
        average = loss.item() if step == start else 0.98 * average + 0.02 * loss.item()
        progress(step + 1, steps, average)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(path, {"model": model.state_dict()}, {"adamw": optimizer}, {"step": step + 1})
    return model.eval()


def export(model: CLIP, directory: Path) -> None:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors`` (fp16), which open_clip itself can load."""
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(directory / CONFIG_FILE, {"model_cfg": CONFIG, "preprocess_cfg": preprocessing})
    state = {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    with atomic_path(directory / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
