"""The zero-shot detector against open_clip itself, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from safeguard.detect.calibration import CalibrationTables, ScoreTable
from safeguard.detect.clip import ClipConfig, ClipDetector
from safeguard.errors import ModelFault, UsageFault
from safeguard.registry import detectors
from tests.detect.clip_checkpoint import CONFIG, save_clip

WORDS = ["axe", "dagger", "cat", "rose"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def detector(checkpoint, **settings):
    return ClipDetector(ClipConfig(**{"checkpoint": str(checkpoint), "vocabulary": WORDS} | settings))


def test_probabilities_are_those_of_open_clip(checkpoint, images):
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{checkpoint}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(Image.fromarray(i)) for i in images]), normalize=True)
        read = model.encode_text(tokenizer([f"a {word} emoji" for word in WORDS]), normalize=True)
        expected = (model.logit_scale.exp() * seen @ read.T).softmax(dim=1).numpy()
    judge = detector(checkpoint)
    assert expected.std(axis=0).max() > 1e-3, "the test checkpoint does not tell images apart"
    np.testing.assert_allclose(judge.probabilities(images)[0], expected, atol=1e-5)
    np.testing.assert_allclose(judge.scores(images, ["dagger", "axe"]), expected[:, :2].sum(axis=1), atol=1e-5)


def test_resizing_follows_open_clip(checkpoint):
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:60, 30:80] = (200, 40, 10)
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{checkpoint}")
    with torch.no_grad():
        expected = model.encode_image(preprocess(Image.fromarray(image))[None], normalize=True)
    assert float((detector(checkpoint)._clip.encode_images(image[None]) * expected).sum()) > 0.999


def test_a_detector_short_of_memory_judges_the_same_in_smaller_batches(checkpoint, images):
    judge = detector(checkpoint)
    whole, seen = judge.scores(images, ["axe"]), []

    def check(module, inputs):
        seen.append(len(inputs[0]))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    judge._clip.model.visual.register_forward_pre_hook(check)
    np.testing.assert_allclose(judge.scores(images, ["axe"]), whole, atol=1e-5)
    assert seen == [7, 4, 2, 2, 2, 1]


def test_a_detector_takes_fewer_large_images_at_once(checkpoint):
    judge, seen = detector(checkpoint), []
    judge._clip.model.visual.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    judge.scores(np.zeros((17, 512, 512, 3), dtype=np.uint8), ["axe"])
    judge.scores(np.zeros((65, 64, 64, 3), dtype=np.uint8), ["axe"])
    assert seen == [16, 1, 64, 1]


def test_repeated_labels_count_once(checkpoint, images):
    judge = detector(checkpoint)
    np.testing.assert_array_equal(judge.scores(images, ["axe", "axe"]), judge.scores(images, ["axe"]))


def test_a_label_outside_the_vocabulary_joins_it(checkpoint, images):
    wide, narrow = detector(checkpoint), detector(checkpoint, vocabulary=WORDS[1:])
    np.testing.assert_allclose(narrow.scores(images, ["axe"]), wide.scores(images, ["axe"]), atol=1e-6)


def test_a_concept_needs_labels_and_something_beside_them(checkpoint, images):
    with pytest.raises(UsageFault, match="at least one label"):
        detector(checkpoint).scores(images, [])
    with pytest.raises(UsageFault, match="nothing but these labels"):
        detector(checkpoint).scores(images, WORDS)
    with pytest.raises(UsageFault, match="needs a vocabulary"):
        detector(checkpoint, vocabulary=[])


def test_images_must_be_uint8_rgb(checkpoint):
    with pytest.raises(UsageFault, match="uint8"):
        detector(checkpoint).scores(np.zeros((1, 32, 32, 3), np.float32), ["axe"])


def test_the_digest_covers_weights_settings_and_calibration(checkpoint, tmp_path, images):
    same = detector(checkpoint).digest
    assert same == detector(checkpoint).digest
    others = [
        detector(save_clip(tmp_path, seed=1)).digest,
        detector(checkpoint, threshold=0.6).digest,
        detector(checkpoint, vocabulary=WORDS[1:]).digest,
        detector(checkpoint, template="{label}").digest,
    ]
    calibrated = [save_clip(tmp_path / name) for name in ("first", "second")]
    for directory, truth in zip(calibrated, (0, 1), strict=True):
        seen = detector(directory).probabilities(images[:1])[0]
        table = ScoreTable.of(seen, [truth], vocabulary=WORDS, template="a {label} emoji", data="one image")
        CalibrationTables(tables=[table]).write(directory / "calibration.json")
        others.append(detector(directory).digest)
    assert len({same, *others}) == 7


def test_settings_are_strict():
    with pytest.raises(ValidationError, match="label"):
        ClipConfig(template="an emoji")
    with pytest.raises(ValidationError, match="extra"):
        ClipConfig(treshold=0.5)
    assert detectors.get("clip").Config is ClipConfig


def test_a_template_cannot_reach_into_objects(checkpoint, images):
    hostile = detector(checkpoint, template="{label.__class__} {label}")
    assert np.isfinite(hostile.scores(images, ["axe"])).all()


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_both_files_must_be_there(tmp_path, name):
    (save_clip(tmp_path) / name).unlink()
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelFault, match=f"{name} is missing"):
        detector(tmp_path)


def test_nothing_outside_the_checkpoint_is_fetched(tmp_path):
    save_clip(tmp_path)
    config = {"model_cfg": CONFIG | {"text_cfg": {"hf_model_name": "somebody/something"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFault, match="outside the checkpoint"):
        detector(tmp_path)


@pytest.mark.parametrize(
    "config",
    ["[]", "{}", "{", '{"model_cfg": 3}', json.dumps({"model_cfg": CONFIG | {"embed_dim": 8}})],
)
def test_a_broken_configuration_is_a_model_fault(tmp_path, config):
    (save_clip(tmp_path) / "open_clip_config.json").write_text(config)
    with pytest.raises(ModelFault):
        detector(tmp_path)


def test_an_unknown_checkpoint_is_a_usage_fault(tmp_path):
    with pytest.raises(UsageFault, match="no CLIP checkpoint"):
        detector(tmp_path / "missing")


def test_calibration_comes_from_the_file_beside_the_weights(tmp_path, images):
    save_clip(tmp_path)
    assert detector(tmp_path).calibration(["axe"]) is None
    judge = detector(tmp_path)
    truth = [0, 1, 2, 3, 0, 1, -1]
    table = ScoreTable.of(
        judge.probabilities(images)[0], truth, vocabulary=WORDS, template="a {label} emoji", data="seven images"
    )
    CalibrationTables(tables=[table]).write(tmp_path / "calibration.json")
    judge = detector(tmp_path, vocabulary=[], threshold=0.3)
    record = judge.calibration(["dagger", "axe"])
    flagged = judge.scores(images, ["dagger", "axe"]) >= 0.3
    shown = np.isin(truth, [0, 1])
    assert (record.positives, record.negatives) == (4, 3)
    assert (record.detected, record.false_alarms) == (flagged[shown].sum(), flagged[~shown].sum())
    assert detector(tmp_path, template="{label}").calibration(["axe"]) is None
    assert judge.calibration(["unheard of"]) is None


def test_a_broken_calibration_is_a_model_fault(tmp_path):
    (save_clip(tmp_path) / "calibration.json").write_text('{"tables": [{"data": 3}]}')
    with pytest.raises(ModelFault, match="calibration"):
        detector(tmp_path)
