"""``safeguard calibrate`` as a user runs it, and a policy that names what it wrote."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from safeguard.cli import run
from safeguard.detect.measuring import make
from safeguard.errors import PolicyFault
from safeguard.policy.loading import load_policy, load_policy_text, resolved_yaml
from safeguard.results.measured import MeasuredErrors
from tests.detect.clip_checkpoint import save_clip

WORDS = ["axe", "dagger", "cat"]


@pytest.fixture
def place(tmp_path):
    """A detector's file, images of axes and daggers, and images of other things."""
    save_clip(tmp_path / "clip")
    dice = np.random.default_rng(1)
    for folder, count in (("yes/axe", 3), ("yes/dagger", 2), ("no", 4), ("pale", 2)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = dice.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    settings = {"name": "clip", "checkpoint": str(tmp_path / "clip"), "vocabulary": WORDS}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def arguments(place, *more):
    images = ["--positives", f"{place}/yes", "--negatives", f"{place}/no"]
    return ["calibrate", f"{place}/detector.yaml", *images, "--out", f"{place}/record.json", *more]


def policy_file(place, **detector):
    settings = yaml.safe_load((place / "detector.yaml").read_text()) | detector
    assert run(["policy", "init", "--concept", "axe", "--out", f"{place}/policy.yaml", "--force"]) == 0
    data = yaml.safe_load((place / "policy.yaml").read_text())
    data["concepts"][0] |= {"labels": ["axe", "dagger"], "detector": settings}
    (place / "policy.yaml").write_text(yaml.safe_dump(data))
    return place / "policy.yaml"


def test_it_counts_by_label_draws_the_curve_and_says_what_it_found(place, capsys):
    assert run(arguments(place, "--name", "by hand", "--plot", f"{place}/curve.svg")) == 0
    said = capsys.readouterr().out
    found = MeasuredErrors.model_validate_json((place / "record.json").read_text())
    stratum = found.record.strata[0]
    assert found.record.labels == ["axe", "dagger"]
    assert (stratum.data, stratum.positives, stratum.negatives) == ("by hand", 5, 4)
    assert {label: counts.positives for label, counts in stratum.by_label.items()} == {"axe": 3, "dagger": 2}
    assert "by hand" in said and f"{stratum.detected}/5" in said
    assert (place / "curve.svg").read_text().count("<svg") == 1


def test_more_kinds_of_images_are_more_strata(place):
    more = ["--positives", f"{place}/pale", "--label", "axe", "--label", "dagger"]
    assert run(arguments(place, *more)) == 0
    found = MeasuredErrors.model_validate_json((place / "record.json").read_text())
    assert [(each.data, each.positives, each.negatives) for each in found.record.strata] == [
        ("yes", 5, 4),
        ("pale", 2, 0),
    ]


def test_a_policy_carries_the_record_wherever_it_goes(place):
    assert run(arguments(place)) == 0
    policy = load_policy(policy_file(place, calibration="record.json"))
    judge = make(policy.concepts[0].detector)
    found = MeasuredErrors.model_validate_json((place / "record.json").read_text())
    assert judge.calibration(["axe", "dagger"]) == found.record
    assert load_policy_text(resolved_yaml(policy)) == policy
    assert run(["policy", "check", f"{place}/policy.yaml"]) == 0


def test_the_detector_of_a_policy_is_calibrated_without_the_record_it_has(place):
    assert run(arguments(place)) == 0
    before = json.loads((place / "record.json").read_text())
    path = policy_file(place, calibration="record.json")
    images = ["--positives", f"{place}/yes", "--negatives", f"{place}/no"]
    assert run(["calibrate", "--policy", str(path), *images, "--out", f"{place}/record.json", "--force"]) == 0
    assert json.loads((place / "record.json").read_text()) == before


@pytest.mark.parametrize("content", [None, "{", '{"version": 1}', "[" * 100_000])
def test_a_policy_whose_record_is_missing_or_none_is_refused_with_its_place(place, content):
    if content is not None:
        (place / "record.json").write_text(content)
    with pytest.raises(PolicyFault, match=r"concepts\[0\]\.detector\.calibration"):
        load_policy(policy_file(place, calibration="record.json"))


def test_what_is_there_is_kept_and_mistakes_are_said_before_any_work(place, capsys):
    (place / "record.json").write_text("mine")
    assert run(arguments(place)) == 2
    assert "--force" in capsys.readouterr().err
    assert (place / "record.json").read_text() == "mine"
    assert run([*arguments(place), "--force", "--label", "axe"]) == 2
    assert "no label is called 'dagger'" in capsys.readouterr().err
    assert run([*arguments(place), "--force", "--plot", f"{place}/curve.pdf"]) == 2
    assert ".svg or .png" in capsys.readouterr().err
    assert run(["calibrate", "--positives", f"{place}/yes", "--out", f"{place}/other.json"]) == 2
    assert "--policy" in capsys.readouterr().err
