"""Counting what a model draws, on a tiny random pipeline and an untrained detector."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from recipes.reference import batches, calibration, card, detector, evaluation
from recipes.reference.__main__ import main
from recipes.reference.relearning import Drawn
from recipes.reference.vocabulary import NAMES, STYLES
from safeguard.errors import ModelFault, UsageFault
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    save_tiny(folder / "model")
    torch.manual_seed(0)
    detector.export(detector.build(), folder / "detector")
    return folder


@pytest.fixture(scope="module")
def found(built):
    evaluation.STEPS, steps = 2, evaluation.STEPS
    drawn = []
    try:
        result = evaluation.evaluate(
            built / "model",
            built / "detector",
            samples=4,
            names=[*NAMES[:2], NAMES[8]],
            sheet=built / "sheet.png",
            done=drawn.append,
        )
    finally:
        evaluation.STEPS = steps
    return result, drawn


def test_every_image_is_counted_once(found):
    result, drawn = found
    assert result["overall"][1] == 12 and drawn[-1] == 12
    assert {group: total for group, (_, total) in result["top1"].items()} == {"weapon": 8, "tool": 4}
    assert {name: total for name, (_, total) in result["weapons"].items()} == {NAMES[0].text: 4, NAMES[1].text: 4}
    assert {style: total for style, (_, total) in result["styles"].items()} == dict.fromkeys(STYLES, 3)
    assert sum(right for right, _ in result["top1"].values()) == result["overall"][0]
    assert -1 <= result["clip_score"] <= 1
    assert set(result["image_statistics"]) == {"mean_std", "blank_share", "noise_share"}
    json.dumps(result)


def test_the_sheet_has_a_cell_per_name_and_style(found, built):
    sheet = Image.open(built / "sheet.png").convert("RGB")
    assert sheet.size == (evaluation.STYLE_WIDTH + 3 * 16, evaluation.LABEL_HEIGHT + 4 * 16)
    cells = np.asarray(sheet)[evaluation.LABEL_HEIGHT :, evaluation.STYLE_WIDTH :].reshape(4, 16, 3, 16, 3)
    assert all(cells[row, :, column].std() > 0 for row in range(4) for column in range(3))


def test_right_answers_are_counted_right():
    class Judge:
        def probabilities(self, images):
            return np.eye(3)[[0, 1, 2, 0]], ["axe", "cat", "rose"]

    assert evaluation._top1(Judge(), np.zeros(4), ["axe", "cat", "axe", "axe"]).tolist() == [True, True, False, True]
    assert evaluation._count(np.array([True, False, True]), ["a", "b", "a"]) == {"a": [2, 2], "b": [0, 1]}


def test_too_few_samples_and_foreign_directories_are_refused(built, tmp_path):
    with pytest.raises(UsageFault, match="too few"):
        evaluation.evaluate(built / "model", built / "detector", samples=1, sheet=tmp_path / "sheet.png")
    with pytest.raises(ModelFault):
        evaluation.evaluate(built / "detector", built / "detector")


def test_the_card_tells_data_numbers_and_licences(found, built):
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    data = batches.examples(images, [NAMES[0].codepoints, NAMES[9].codepoints, "1f6e1"], ["noto", "twemoji", "noto"])
    pixels = calibration.to_pixels(images)
    drawn = Drawn(pixels, ["pistol"] * 3, ["weapon, hardened"] * 3, [0, 50, 100])
    plan = [(name, "noto", 0) for name in NAMES[:3]]
    calibration.calibrate(
        built / "detector", calibration.Pictures(data, (pixels, plan), [(drawn, [True, False, None], "weapon")])
    )
    measured = calibration.summaries(built / "detector")
    training = {"autoencoder": {"steps": 1500, "seed": 0, "loss": 0.1105, "seconds": 971.2}}
    text = card.model_card(training, measured, found[0])
    licence, package, stage = (
        "CC-BY-4.0",
        "emoji-datasource-google@16.0.0",
        "| autoencoder | 1,500 | 0 | 0.1105 | 971 |",
    )
    right, total = found[0]["overall"]
    for fact in (licence, package, stage, f"Overall {right / total:.1%} ({right}/12)"):
        assert fact in text


def test_the_command_explains_itself():
    result = CliRunner().invoke(main, ["build", "--help"])
    assert result.exit_code == 0
    for option in (
        "--work",
        "--device",
        "--steps-autoencoder",
        "--steps-denoiser",
        "--steps-decoder",
        "--steps-detector",
    ):
        assert option in result.output
