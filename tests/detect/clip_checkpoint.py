"""A tiny random CLIP in open_clip's format."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from safeguard.files import write_json

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_clip(directory: Path, seed: int = 0, config: dict = CONFIG) -> Path:
    """Write one whose image features are spread out enough for scores to differ; equal seeds give equal files."""
    from open_clip.model import CLIP  # only now: safeguard repairs torchvision, which it imports

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "open_clip_config.json",
        {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}},
    )
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    return directory
