"""``safeguard calibrate``: how often a detector is right, on images of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeguard.cli.common import DIRECTORY, FILE, device_option, table
from safeguard.errors import UsageFault
from safeguard.progress import printable

if TYPE_CHECKING:
    from safeguard.detect.measuring import Sample
    from safeguard.policy.schema import DetectorMethod
    from safeguard.results.measured import MeasuredErrors


@click.command()
@click.argument("detector", type=FILE, required=False)
@click.option("--policy", type=FILE, help="Calibrate the detector of a policy's concept instead of a file's.")
@click.option("--concept", help="Which concept of the policy; may be left out where there is one.")
@click.option(
    "--positives",
    "positives",
    type=DIRECTORY,
    multiple=True,
    required=True,
    help="Images that show it; folders in it are named by labels. May be repeated, one kind of images each.",
)
@click.option("--negatives", type=DIRECTORY, multiple=True, help="Images that show none of it, in the same order.")
@click.option("--name", "names", multiple=True, help="What the images are, in words, in the same order.")
@click.option("--label", "labels", multiple=True, help="What is looked for; by default the concept's, or the folders'.")
@click.option("--seed", default=0, show_default=True, help="Draws one of several variants (axe__1.png, axe__2.png).")
@click.option("--out", type=FILE, required=True, help="File to write, which a policy's detector names.")
@click.option("--plot", type=FILE, help="Write the curve over thresholds as SVG or PNG.")
@click.option("--force", is_flag=True, help="Replace the files if they exist.")
@device_option
def calibrate(
    detector: Path | None,
    policy: Path | None,
    concept: str | None,
    positives: tuple[Path, ...],
    negatives: tuple[Path, ...],
    names: tuple[str, ...],
    labels: tuple[str, ...],
    seed: int,
    out: Path,
    plot: Path | None,
    force: bool,
    device: str,
) -> None:
    """Measure a detector's errors on images whose content is known.

    DETECTOR is a YAML file such as {name: clip, checkpoint: ./clip, vocabulary: [axe, cat]}. Where a policy's detector
    says `calibration: FILE`, the record in FILE counts in its certifications, together with what the detector came
    with: the smallest sensitivity and the largest share of false alarms.
    """
    from safeguard.detect.measuring import measure
    from safeguard.files import check_writable, write_text
    from safeguard.io.opening import pick_device
    from safeguard.registry import detectors
    from safeguard.report.threshold_chart import check_format, write_curve

    if plot:
        check_format(plot)
    for path in (out, *([plot] if plot else [])):
        if path.exists() and not force:
            raise UsageFault("the file exists", fix="choose another, or replace it with --force", where=str(path))
        check_writable(path)
    method, wanted = _declared(detector, policy, concept)
    samples = _samples(positives, negatives, names, list(labels) or wanted, seed)
    looked_for = list(labels) or wanted or sorted({each for part in samples for each in part.shown if each})
    found = measure(detectors.make(method, pick_device(device)), looked_for, samples)
    write_text(out, found.text())
    if plot:
        write_curve(found, plot)
    click.echo(printable(_summary(found)))


def _declared(detector: Path | None, policy: Path | None, concept: str | None) -> tuple[DetectorMethod, list[str]]:
    """The detector to calibrate, without a record it may have, and the labels it looks for."""
    from safeguard.policy.loading import load_detector, load_policy

    if (detector is None) == (policy is None):
        raise UsageFault("one detector is needed", fix="give a file, or --policy FILE")
    if policy is None:
        assert detector is not None
        return load_detector(detector), []
    declared = load_policy(policy).concepts
    found = [each for each in declared if concept in (None, each.name)]
    if len(found) != 1:
        known = ", ".join(each.name for each in declared)
        raise UsageFault("which concept is meant?", fix=f"--concept with one of: {known}", where=str(policy))
    return found[0].detector.model_copy(update={"calibration": None}), list(found[0].labels)


def _samples(
    positives: tuple[Path, ...], negatives: tuple[Path, ...], names: tuple[str, ...], labels: list[str], seed: int
) -> list[Sample]:
    """One sample per folder of positives, with the folder of negatives and the words at the same place."""
    if len(negatives) > len(positives) or len(names) > len(positives):
        raise UsageFault("more --negatives or --name than --positives", fix="give them in the same order")
    return [
        _sample(
            folder,
            negatives[place] if place < len(negatives) else None,
            names[place] if place < len(names) else folder.resolve().name,
            labels,
            seed,
        )
        for place, folder in enumerate(positives)
    ]


def _sample(folder: Path, negatives: Path | None, name: str, labels: list[str], seed: int) -> Sample:
    from safeguard.detect.measuring import Sample
    from safeguard.io.pictures import read_folder, subfolders
    from safeguard.registry import suggest

    images = list(read_folder(folder, seed))
    shown: list[str | None] = [labels[0] if len(labels) == 1 else ""] * len(images)
    for inner in subfolders(folder):
        if labels and inner.name not in labels:
            raise UsageFault(f"no label is called {inner.name!r}", fix=suggest(inner.name, labels), where=str(inner))
        found = read_folder(inner, seed)
        images += found
        shown += [inner.name] * len(found)
    if not images:
        raise UsageFault("no image is there", fix="give PNG, JPEG or WebP files", where=str(folder))
    others = [image for part in _with_inner(negatives) for image in read_folder(part, seed)]
    return Sample(name, [*images, *others], [*shown, *[None] * len(others)])


def _with_inner(folder: Path | None) -> list[Path]:
    from safeguard.io.pictures import subfolders

    if folder is None:
        return []
    return [folder, *(subfolders(folder) if folder.is_dir() else [])]


def _summary(found: MeasuredErrors) -> str:
    from safeguard.certify.statistics import false_positive_upper, sensitivity_lower

    rows = [
        (each.data, f"{each.detected}/{each.positives}", f"{each.false_alarms}/{each.negatives}")
        for each in found.record.strata
    ]
    least, most = sensitivity_lower(found.record, 0.025), false_positive_upper(found.record, 0.025)
    lines = [
        table(("images", "detected", "false alarms"), rows),
        "",
        f"At threshold {found.record.threshold:g} it finds at least {least:.1%} of images that show it "
        f"(97.5 % confidence; weakest: {found.record.weakest.data}).",
    ]
    if most is not None:
        lines.append(f"It flags at most {most:.1%} of images that do not.")
    return "\n".join(lines)
