"""The reference detector: a small CLIP in open_clip's format, trained apart from the generator it judges.

Vision tower: CLIP's modified ResNet on 64 x 64 pixels (the generator has a UNet); text tower: 2 layers of 64 over
open_clip's own tokenizer (the generator has another one); another seed. Four losses: names, styles, whole captions
(all cross-entropy over cosine similarities), and images that show nothing, or less strongly no name of the world, are
pulled to the uniform distribution (outlier exposure, Hendrycks et al. 2019), so that noise is no weapon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from recipes.reference.augmentation import augment, fade, nothing, restyle
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
KNOWN, RESTYLED, HALF, OTHER, NOTHING = 14, 12, 32, 10, 6
"""Images per step: of the world as they are drawn, the world restyled, half-drawn, other artwork, showing nothing."""
OTHER_WEIGHT = 0.3
"""How strongly other artwork is pulled to "no name"; at 1, things drawn in an unknown style look like other things."""
STYLE_WEIGHT = 2.0
"""Styles are few but look much alike at 64 pixels; names are learned at once."""
SMOOTHING = 0.05
MAX_LOGIT_SCALE = 40.0


@dataclass(frozen=True)
class Examples:
    """Images, float (n, 3, 64, 64) in [-1, 1], with the index of each name and style (-1: not of the world)."""

    images: Tensor
    names: Tensor
    styles: Tensor

    def rows(self, known: bool) -> Tensor:
        """Row numbers of the images that show a name of the world, or of the others."""
        return torch.nonzero((self.names >= 0) == known).flatten()

    def in_style(self) -> Tensor:
        """Row numbers of the world in a style that has a name, the generator's own."""
        return torch.nonzero((self.names >= 0) & (self.styles >= 0)).flatten()


def examples(images: Tensor, codepoints: list[str], styles: list[str]) -> Examples:
    """Match artwork with the world by code points."""
    index = {name.codepoints: i for i, name in enumerate(NAMES)}
    order = list(STYLES)
    return Examples(
        images,
        torch.tensor([index.get(code, -1) for code in codepoints]),
        torch.tensor([order.index(style) if style in order else -1 for style in styles]),
    )


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


def _batch(data: Examples, half: Examples, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Augmented images with name and style targets, in the order of the five kinds.

    Half-drawn images are faded further, and so are half of the other artwork and of what shows nothing: a pale hammer
    is a hammer, and pale nothing is nothing.
    """

    def some(pool: Tensor, count: int) -> Tensor:
        return pool[torch.randint(len(pool), (count,), generator=generator)]

    def drawn(source: Examples, rows: Tensor) -> Tensor:
        return augment(source.images[rows], generator)

    def partly(images: Tensor) -> Tensor:
        cut = len(images) // 2
        return torch.cat([images[:cut], fade(images[cut:], generator)])

    known, restyled = some(data.in_style(), KNOWN), some(data.rows(known=True), RESTYLED)
    begun, other = some(half.rows(known=True), HALF), some(data.rows(known=False), OTHER)
    sources = data.images[some(torch.arange(len(data.images)), NOTHING)]
    images = [
        drawn(data, known),
        restyle(drawn(data, restyled), generator),
        partly(drawn(half, begun)),
        partly(drawn(data, other)),
        partly(nothing(sources, generator)),
    ]
    no = torch.full((NOTHING,), -1)
    return (
        torch.cat(images).contiguous(memory_format=torch.channels_last),
        torch.cat([data.names[known], data.names[restyled], half.names[begun], data.names[other], no]),
        torch.cat([data.styles[known], data.styles[restyled], half.styles[begun], data.styles[other], no]),
    )


def _weights(*of_each_kind: float) -> Tensor:
    """One weight per image of a batch, from one per kind."""
    return torch.repeat_interleave(torch.tensor(of_each_kind), torch.tensor([KNOWN, RESTYLED, HALF, OTHER, NOTHING]))


def _loss(model: CLIP, texts: _Texts, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Tensor:
    images, names, styles = batch
    pairs = names[:KNOWN] * len(STYLES) + styles[:KNOWN]
    names_as, styles_as = _draw(texts.names, generator), _draw(texts.styles, generator)
    seen = model.encode_image(images, normalize=True) * model.logit_scale.exp()
    by_name, by_style = seen @ texts.read(model, names_as).T, seen @ texts.read(model, styles_as).T
    by_both = seen @ texts.read(model, texts.both, pairs.cpu()).T
    naming = _cross_entropy(by_name, names, _weights(1, 1, 1, OTHER_WEIGHT, 1).to(seen.device))
    styling = _cross_entropy(by_style, styles, _weights(1, 0, 0, 1, 1).to(seen.device))
    return naming + STYLE_WEIGHT * styling + 0.5 * _contrast(by_both[:KNOWN], pairs[:, None] == pairs[None])


def _keep_texts(model: CLIP) -> None:
    """Train the vision tower and the scale alone."""
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    model.logit_scale.requires_grad_(True)


def train(
    data: Examples,
    half: Examples,
    path: Path,
    *,
    steps: int,
    start_from: Path | None = None,
    device: str = "cpu",
    seed: int = 1,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> CLIP:
    """Train to ``steps`` (continuing from ``path`` when it exists); the model comes back in evaluation mode.

    Args:
        data: drawings.
        half: half-drawn variants of them (:mod:`recipes.reference.half_drawn`).
        path: checkpoint file.
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
        images, names, styles = _batch(data, half, generator)
        loss = _loss(model, texts, (images.to(device), names.to(device), styles.to(device)), generator)
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
