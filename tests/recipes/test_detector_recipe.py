"""The detector's recipe: losses, resuming, and an export that open_clip itself opens."""

import numpy as np
import pytest
import torch

from recipes.reference import calibration, detector
from recipes.reference.vocabulary import NAMES
from safeguard.io.checkpoint import load_state


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 64, 64, generator=generator) * 2 - 1
    codes = [name.codepoints for name in NAMES[:6]] + ["1f6e1", "1f4bf"]
    return detector.examples(images, codes, ["noto", "twemoji", "fluent-3d", "fluent-flat"] * 2)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "detector.safetensors"
    seen = []
    model = detector.train(data, path, steps=2, progress=lambda *facts: seen.append(facts))
    return model, path, seen


def test_examples_follow_code_points(data):
    assert data.names.tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert data.styles.tolist() == [0, 1, 2, 3] * 2
    assert data.rows(known=False).tolist() == [6, 7]


def test_images_of_nothing_want_the_uniform_distribution():
    target, weight = torch.tensor([-1]), torch.ones(1)
    flat = detector._cross_entropy(torch.zeros(1, 5), target, weight)
    sharp = detector._cross_entropy(torch.tensor([[4.0, 0, 0, 0, 0]]), target, weight)
    assert flat == pytest.approx(np.log(5)) and sharp > flat


def test_a_row_without_weight_does_not_count():
    logits = torch.tensor([[2.0, 0, 0], [0, 9.0, 0]])
    alone = detector._cross_entropy(logits[:1], torch.tensor([0]), torch.ones(1))
    both = detector._cross_entropy(logits, torch.tensor([0, 2]), torch.tensor([1.0, 0.0]))
    assert both == pytest.approx(alone.item())


def test_equal_captions_are_no_negatives():
    same = torch.tensor([[True, True], [True, True]])
    assert detector._contrast(torch.zeros(2, 2), same) == pytest.approx(np.log(2))
    matched = detector._contrast(torch.eye(2) * 20, torch.eye(2, dtype=torch.bool))
    assert matched < 1e-6


def test_training_reports_every_step_and_changes_the_weights(trained):
    model, path, seen = trained
    assert [facts[:2] for facts in seen] == [(1, 2), (2, 2)]
    torch.manual_seed(1)
    fresh = detector.build().state_dict()
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, fresh[key])]
    assert "logit_scale" in moved and "visual.conv1.weight" in moved and "token_embedding.weight" in moved
    assert load_state(path)[1] == {"step": 2}


def test_a_finished_run_is_not_trained_again(trained, data):
    model, path, _ = trained
    again = detector.train(data, path, steps=2, progress=lambda *facts: pytest.fail("it trained"))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


def test_the_export_is_small_and_opens_in_open_clip(trained, tmp_path, data):
    import open_clip

    model = trained[0]
    detector.export(model, tmp_path)
    assert (tmp_path / "open_clip_model.safetensors").stat().st_size < 9.5e6
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        expected = model.encode_image(data.images, normalize=True)
        torch.testing.assert_close(theirs.encode_image(data.images, normalize=True), expected, atol=5e-3, rtol=0)


def test_calibration_counts_every_image(trained, tmp_path, data, monkeypatch):
    for name, value in {"COPIES": 2, "OTHERS": 1, "BLANKS": 3}.items():
        monkeypatch.setattr(calibration, name, value)
    detector.export(trained[0], tmp_path)
    calibration.calibrate(tmp_path, data, data)
    found = calibration.summaries(tmp_path)
    weapons = found["names"]["sets"]["weapon"]
    assert found["names"]["top1"][1] == 12
    assert (weapons["detected"][1], weapons["false_alarms"][1]) == (12, 4)
    assert found["styles"]["sets"]["noto"]["detected"][1] + found["styles"]["sets"]["noto"]["false_alarms"][1] == 16
    assert found["openmoji"]["sets"]["weapon"]["detected"][1] == 6
    record = calibration.detector(tmp_path).calibration([name.text for name in NAMES[:6]])
    assert (record.positives, record.negatives) == (12, 4)
