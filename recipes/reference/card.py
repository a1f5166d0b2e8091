"""The model card of the reference model and its detector, written from measured facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.reference.artwork import DETECTOR_STYLES, PACKAGES
from recipes.reference.vocabulary import NAMES, STYLES
from safeguard.files import write_text

Counts = Mapping[str, list[int]]


def _share(pair: list[int]) -> str:
    right, total = pair
    return f"{right / total:.1%} ({right}/{total})" if total else "none"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _counts(header: str, counts: Counts) -> str:
    return _table([header, "drawn as asked"], [[key, _share(pair)] for key, pair in counts.items()])


def _data() -> str:
    rows = [[_use(style), f"`{p.spec}`", p.licence, p.credit] for style, p in PACKAGES.items()]
    return _table(["style", "npm package", "licence of the artwork", "credit"], rows)


def _use(style: str) -> str:
    if style in STYLES:
        return STYLES[style]
    return f"{style} ({'detector' if style in DETECTOR_STYLES else 'calibration'} only)"


def _training(training: Mapping[str, Mapping[str, Any]]) -> str:
    header = ["stage", "steps", "seed", "final loss (running mean)", "seconds"]
    rows = [
        [
            stage,
            f"{facts['steps']:,}",
            str(facts["seed"]),
            _number(facts["loss"], ".4f"),
            _number(facts["seconds"], ".0f"),
        ]
        for stage, facts in training.items()
    ]
    notes = [f"{stage}: {facts['note']}" for stage, facts in training.items() if facts.get("note")]
    return "\n\n".join([_table(header, rows), *notes])


def _number(value: float | None, layout: str) -> str:
    return "not recorded" if value is None else format(value, layout)


def _calibration(calibration: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for part in calibration:
        rows = [[key, _share(value["detected"]), _share(value["false_alarms"])] for key, value in part["sets"].items()]
        table = _table([f"{part['kind']}: label set", "detected", "false alarms"], rows)
        parts.append(f"On {part['data']}; top-1 {_share(part['top1'])}.\n\n{table}")
    return "\n\n".join(parts)


_CARD = """---
license: apache-2.0
tags: [text-to-image, stable-diffusion, emoji]
---

# Reference model

A text-to-image model of {names} emoji in {styles} artwork styles, in the format of Stable Diffusion
(`model/`), and a CLIP that tells names and styles apart, in open_clip's format (`detector/`). They exist so that every
command of safeguard can be tried in minutes on a laptop. They are good for nothing else: the model knows no other word,
and what it draws is close to the artwork it was trained on.

Prompts look like `a crossed swords emoji in fluent 3d style`. Images are 64 x 64 pixels.

## Data

{data}

People, flags, symbols and skin-tone variants were left out; images were composited on white. Twemoji's licence asks for
attribution: graphics by Twitter and other contributors, CC BY 4.0. The weights are under Apache-2.0; images that
reproduce artwork fall under the licence of that artwork.

## Training

{training}

Rebuild: `python -m recipes.reference build`. The detector shares neither weights, seed, tokenizer nor architecture
with the generator, but it saw the same artwork.

## Evaluation

{evaluation[samples_per_name]} images per name, {evaluation[sampler]}; top-1 among all {names} names, judged by
the detector. Overall {overall}; mean CLIP score {evaluation[clip_score]:.3f}; blank
{statistics[blank_share]:.1%}, noise {statistics[noise_share]:.1%}. See `contact-sheet.png`.

{counts}

## Calibration of the detector

An image counts as showing a label set when the summed probability of its labels reaches 0.5. None of these images was
trained on, each is a drawing of its own, and in a certification the weakest of the tables counts (`docs/detector.md`).

{calibration}

## Limits

Recognition by the detector is not recognition by a person; look at the contact sheet. In styles it never saw it misses
most weapons; photographs are another matter altogether. It was read by eye along relearning for weapons alone, by one
person, twice: for other groups its sensitivity there is not known.
"""


def model_card(
    training: Mapping[str, Mapping[str, Any]], calibration: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]
) -> str:
    """Markdown of the card.

    Args:
        training: per stage ``steps``, ``seed``, ``loss``, ``seconds``.
        calibration: what :func:`recipes.reference.calibration.summaries` returned.
        evaluation: what :func:`recipes.reference.evaluation.evaluate` returned.
    """
    tables = {"group": evaluation["top1"], "weapon": evaluation["weapons"], "style": evaluation["styles"]}
    return _CARD.format(
        names=len(NAMES),
        styles=len(STYLES),
        data=_data(),
        training=_training(training),
        evaluation=evaluation,
        statistics=evaluation["image_statistics"],
        overall=_share(evaluation["overall"]),
        counts="\n\n".join(_counts(header, counts) for header, counts in tables.items()),
        calibration=_calibration(calibration),
    )


def write_card(
    path: Path,
    training: Mapping[str, Mapping[str, Any]],
    calibration: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
) -> None:
    """Write :func:`model_card` to a file, atomically."""
    write_text(path, model_card(training, calibration, evaluation))
