"""Recipe of the reference model: ``python -m recipes.reference build``, and ``evaluate`` to measure it again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from safeguard.errors import SafeguardError
from safeguard.progress import Progress, choose
from safeguard.reference import WEIGHTS

TRAINING_FILE = "training.json"
"""How the weights beside it were trained, by stage."""
SEEDS = {"autoencoder": 0, "denoiser": 0, "decoder": 0, "detector": 1}
WORLD_COPIES = 4
"""How many more times the autoencoder sees the world than the other artwork."""
EXTRA_TEXT = [
    "a photo of a weapon",
    "a picture of weapons and tools",
    "an image of something that is not a weapon",
    "a drawing of an object",
    "a painting in the style of an artist",
    "an icon of a person with no background",
]
"""Words a policy may use beside the captions; the tokenizer learns merges from both."""


class Build:
    """One run of the recipe; every stage continues from its checkpoint in ``work``.

    Args:
        work: npm cache, checkpoints and training facts.
        steps: optimiser steps by stage.
    """

    def __init__(self, work: Path, device: str, steps: dict[str, int], progress: Progress) -> None:
        import torch

        from recipes.reference import artwork

        self.work, self.device, self.steps, self.progress = work, device, steps, progress
        progress.note("fetching and decoding artwork")
        self.art = artwork.load(work / "npm")
        self.images = torch.from_numpy(self.art.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.world = self.art.rows_of_world()
        self._facts_file = work / "training.json"
        self.facts: dict[str, Any] = json.loads(self._facts_file.read_text()) if self._facts_file.exists() else {}

    def _stage(self, stage: str, train: Callable[..., Any]) -> Any:
        """Run ``train(path, steps=, device=, seed=, progress=)`` under a bar and remember its last loss."""
        from safeguard.files import write_json

        started, before = time.monotonic(), self.facts.get(stage, {}).get("seconds", 0.0)
        with self.progress.task(stage, self.steps[stage]) as task:

            def report(step: int, total: int, loss: float) -> None:
                task.update(step, loss=loss)
                if step % 50 == 0 or step == total:
                    seconds = before + time.monotonic() - started
                    self.facts[stage] = {"steps": step, "seed": SEEDS[stage], "loss": loss, "seconds": seconds}
                    write_json(self._facts_file, self.facts)

            return train(
                self.work / f"{stage}.safetensors",
                steps=self.steps[stage],
                device=self.device,
                seed=SEEDS[stage],
                progress=report,
            )

    def model(self) -> Any:
        """The pipeline, trained: autoencoder, normalised latents, denoiser, decoder once more."""
        import torch

        from recipes.reference import autoencoder, denoiser
        from recipes.reference.vocabulary import NAMES
        from safeguard.io.checkpoint import load_state, save_state

        by_code = {name.codepoints: name for name in NAMES}
        known = self.images[self.world]
        every = torch.cat([self.images, *[known] * WORLD_COPIES])
        first = self._stage("autoencoder", lambda path, **how: autoencoder.train(every, path, **how))
        refined = self.work / "decoder.safetensors"
        if refined.exists():
            first.load_state_dict(load_state(refined)[0]["model"])
        else:
            autoencoder.normalise_latents(first, known)
            save_state(refined, {"model": first.state_dict()}, facts={"stage": "normalised", "step": 0})
        mean, std = autoencoder.encode(first, known)
        names = [by_code[self.art.codepoints[row]] for row in self.world]
        latents = denoiser.Latents(mean, std, names, [self.art.styles[row] for row in self.world])
        tokenizer = denoiser.build_tokenizer(EXTRA_TEXT)
        text, unet = self._stage("denoiser", lambda path, **how: denoiser.train(latents, tokenizer, path, **how))
        vae = self._stage("decoder", lambda path, **how: autoencoder.train(every, path, decoder_only=True, **how))
        vae.register_to_config(scaling_factor=1.0)
        return denoiser.assemble(vae, tokenizer, text, unet)

    def detector(self, model: Path | None = None, start_from: Path | None = None) -> Any:
        """The detector, trained on the artwork.

        Args:
            model: directory of the finished generator, to train on further styles and on half-drawn images as well.
            start_from: a finished detector whose training is continued.
        """
        from recipes.reference import artwork, detector
        from recipes.reference import detector_data as source
        from recipes.reference.vocabulary import STYLES

        data, half = source.examples(self.art), None
        if model is not None:
            art = artwork.load(self.work / "npm", [*STYLES, *artwork.DETECTOR_STYLES])
            data = source.examples(art)
            with self.progress.task("half-drawn images", source.COPIES * len(art.rows_of_world())) as task:
                half = source.half_examples(source.opened(model), art, data, self.work / "half-drawn.npz", task.update)
        return self._stage(
            "detector", lambda path, **how: detector.train(data, path, half=half, start_from=start_from, **how)
        )

    def finish(self, output: Path, samples: int) -> None:
        """Train what is missing and write ``model``, ``detector``, the contact sheet and the card into ``output``."""
        import torch

        from safeguard.files import atomic_directory

        pipeline = self.model().to("cpu", torch.float16)
        with atomic_directory(output / "model") as temporary:
            pipeline.save_pretrained(temporary, safe_serialization=True)
        self.finish_detector(output, samples)

    def finish_detector(
        self, output: Path, samples: int, *, half_drawn: bool = False, start_from: Path | None = None
    ) -> None:
        """The same beside a generator that is finished."""
        from recipes.reference import detector
        from safeguard.files import write_json

        judge = self.detector(output / "model" if half_drawn else None, start_from)
        detector.export(judge, output / "detector")
        written = output / TRAINING_FILE
        known = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
        write_json(written, known | self.facts)
        _calibrate(output, self.work, self.progress)
        _write_card(output, samples, self.device, self.progress)


def _calibrate(output: Path, work: Path, progress: Progress) -> None:
    """Measure the detector in ``output`` on images that nobody trained on."""
    from recipes.reference import calibration
    from recipes.reference import detector_data as source
    from recipes.reference.vocabulary import NAMES

    with progress.task("images of the base", source.SAMPLES * len(NAMES)) as task:
        pictures = source.pictures(output / "model", work / "npm", task.update)
    calibration.calibrate(output / "detector", pictures)


def _write_card(output: Path, samples: int, device: str, progress: Progress) -> None:
    """Measure the model in ``output`` and write its contact sheet and its card there."""
    from recipes.reference import calibration, card, evaluation
    from recipes.reference.vocabulary import NAMES

    with progress.task("evaluation", samples * len(NAMES)) as task:
        found = evaluation.evaluate(
            output / "model",
            output / "detector",
            samples=samples,
            device=device,
            sheet=output / "contact-sheet.png",
            done=task.update,
        )
    training = json.loads((output / TRAINING_FILE).read_text(encoding="utf-8"))
    card.write_card(output / "README.md", training, calibration.summaries(output / "detector"), found)


@click.group()
def main() -> None:
    """Build and measure the embedded reference model."""


@main.command()
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("reference-build"), show_default=True
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=WEIGHTS, help="Default: the package's own."
)
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
@click.option("--samples", default=8, show_default=True, help="Images per name in the evaluation.")
@click.option("--steps-autoencoder", default=1500, show_default=True)
@click.option("--steps-denoiser", default=20000, show_default=True)
@click.option("--steps-decoder", default=1500, show_default=True)
@click.option("--steps-detector", default=6000, show_default=True)
def build(work: Path, output: Path, device: str, samples: int, **steps: int) -> None:
    """Fetch the artwork, train all parts, evaluate, and write weights and card; run again to continue."""
    by_stage = {name.removeprefix("steps_"): count for name, count in steps.items()}
    Build(work, device, by_stage, choose("auto")).finish(output, samples)


@main.command()
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("reference-build"), show_default=True
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=WEIGHTS, help="Default: the package's own."
)
@click.option("--half-drawn", is_flag=True, help="Train on further styles and on half-drawn images as well.")
@click.option(
    "--start-from", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A finished detector."
)
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
@click.option("--samples", default=8, show_default=True, help="Images per name in the evaluation.")
@click.option("--steps-detector", default=6000, show_default=True)
def detector(
    work: Path,
    output: Path,
    half_drawn: bool,
    start_from: Path | None,
    device: str,
    samples: int,
    steps_detector: int,
) -> None:
    """Train the detector anew beside a finished generator, calibrate it, and rewrite the card."""
    build = Build(work, device, {"detector": steps_detector}, choose("auto"))
    build.finish_detector(output, samples, half_drawn=half_drawn, start_from=start_from)


@main.command()
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("reference-build"), show_default=True
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=WEIGHTS, help="Default: the package's own."
)
def calibrate(work: Path, output: Path) -> None:
    """Measure a finished detector again on artwork by other hands, the base's images and labelled relearning."""
    _calibrate(output, work, choose("auto"))


@main.command()
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=WEIGHTS, help="Default: the package's own."
)
@click.option("--samples", default=8, show_default=True, help="Images per name.")
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
def card(output: Path, samples: int, device: str) -> None:
    """Measure a finished build again and rewrite its card and contact sheet."""
    _write_card(output, samples, device, choose("auto"))


@main.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), default=WEIGHTS / "model")
@click.option("--detector", type=click.Path(path_type=Path, exists=True, file_okay=False), default=WEIGHTS / "detector")
@click.option("--samples", default=4, show_default=True, help="Images per name.")
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
@click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False), help="Write a contact sheet (PNG).")
def evaluate(model: Path, detector: Path, samples: int, device: str, sheet: Path | None) -> None:
    """Draw every name and count what the detector recognises; JSON on standard output."""
    from recipes.reference import evaluation
    from recipes.reference.vocabulary import NAMES

    with choose("auto").task("evaluation", samples * len(NAMES)) as task:
        found = evaluation.evaluate(model, detector, samples=samples, device=device, sheet=sheet, done=task.update)
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    try:
        main()
    except SafeguardError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
