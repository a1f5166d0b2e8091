"""The detector's recipe: losses, resuming, and an export that open_clip itself opens."""

import numpy as np
import pytest
import torch

from recipes.reference import batches, calibration, detector
from recipes.reference.relearning import Drawn
from recipes.reference.vocabulary import NAMES
from safeguard.io.checkpoint import load_state


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 64, 64, generator=generator) * 2 - 1
    codes = [name.codepoints for name in NAMES[:6]] + ["1f6e1", "1f4bf"]
    return batches.examples(images, codes, ["noto", "twemoji", "fluent-3d", "fluent-flat"] * 2)


def half_of(data):
    """Half-drawn images: the drawings, paler."""
    return batches.Examples(0.5 + 0.5 * data.images, data.names, torch.full_like(data.styles, -1))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "detector.safetensors"
    seen = []
    model = detector.train(data, path, steps=2, half=half_of(data), progress=lambda *facts: seen.append(facts))
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
    again = detector.train(data, path, steps=2, half=half_of(data), progress=lambda *facts: pytest.fail("it trained"))
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


@pytest.mark.parametrize("kind", ["plain", "half"])
def test_a_batch_shows_names_only_where_something_is_drawn(data, kind):
    generator = torch.Generator().manual_seed(0)
    batch = batches.plain(data, generator) if kind == "plain" else batches.half_drawn(data, half_of(data), generator)
    counts = [int(count) for count in batch.mix]
    assert len(batch.images) == len(batch.names) == len(batch.styles) == sum(counts)
    known, restyled, half, other, nothing = torch.split(batch.names, counts)
    assert all((part >= 0).all() for part in (known, restyled, half))
    assert (other == -1).all() and (nothing == -1).all()
    assert (batch.styles[: batch.known] >= 0).all() and (torch.split(batch.styles, counts)[2] == -1).all()
    weights = batch.each(detector.NAME_WEIGHTS)
    assert len(weights) == sum(counts) and weights[-1] == 1 and weights.min() == pytest.approx(0.3)


def test_a_training_on_drawings_alone_runs(data, tmp_path):
    seen = []
    detector.train(data, tmp_path / "state", steps=1, progress=lambda *facts: seen.append(facts))
    assert len(seen) == 1 and np.isfinite(seen[0][2])


def test_a_training_may_start_from_a_finished_detector_and_leaves_its_texts(trained, tmp_path, data):
    detector.export(trained[0], tmp_path / "first")
    later = detector.train(data, tmp_path / "state", steps=1, half=half_of(data), start_from=tmp_path / "first")
    before, after = trained[0].state_dict(), later.state_dict()
    changed = {key for key, value in after.items() if (value - before[key]).abs().max() > 2e-3}
    assert changed and all(key.startswith("visual.") for key in changed)


def test_texts_that_are_not_trained_are_read_once_and_are_the_same(data):
    texts, pairs = detector._Texts(), torch.tensor([5, 5, 70])
    model = detector.build().eval()
    trained = texts.read(model, texts.both, pairs)
    detector._keep_texts(model)
    torch.testing.assert_close(texts.read(model, texts.both, pairs), trained, atol=1e-5, rtol=0)
    first = texts.read(model, texts.names[0])
    model.text_projection.data.zero_()
    assert texts.read(model, texts.names[0]) is first


@pytest.fixture(scope="module")
def pictures(data):
    pixels = calibration.to_pixels(data.images)
    plan = [(name, "noto", 0) for name in NAMES[:8]]
    drawn = Drawn(pixels, [name.text for name in NAMES[:8]], ["weapon, hardened"] * 8, [100] * 8)
    shown = [True, True, False, None, False, False, None, False]
    return calibration.Pictures(data, (pixels, plan), [(drawn, shown, "weapon")])


def test_calibration_has_a_table_for_every_kind_of_image(trained, tmp_path, pictures):
    detector.export(trained[0], tmp_path)
    calibration.calibrate(tmp_path, pictures)
    found = {(part["kind"], part["data"]): part for part in calibration.summaries(tmp_path)}
    assert found["names", calibration.HELD_OUT]["sets"]["weapon"]["detected"][1] == 6
    assert found["names", calibration.BASE]["sets"]["weapon"]["detected"][1] == 7
    assert found["styles", calibration.BASE]["sets"]["noto"]["detected"][1] == 8
    weapons = [name.text for name in NAMES if name.group == "weapon"]
    record = calibration.detector(tmp_path).calibration(weapons)
    assert [(each.positives, each.negatives) for each in record.strata] == [(6, 2), (7, 1), (2, 4)]
    assert [each.counts for each in record.strata] == [False, True, True]
    bounds = calibration.smallest(tmp_path, weapons)
    assert 0 <= bounds["sensitivity"] <= 1 and bounds["false_alarms"] > 0


def test_images_labelled_for_one_group_say_nothing_of_another(trained, tmp_path, pictures):
    detector.export(trained[0], tmp_path)
    calibration.calibrate(tmp_path, pictures)
    tools = [name.text for name in NAMES if name.group == "tool"]
    assert [each.data for each in calibration.detector(tmp_path).calibration(tools).strata] == [
        calibration.HELD_OUT,
        calibration.BASE,
    ]
