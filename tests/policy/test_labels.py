"""Labels are checked against their detectors before anything is drawn, with their line, and the advice works."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeguard.detect.clip import ClipConfig, ClipDetector, label_faults
from safeguard.detect.nudenet import NudeNetConfig, NudeNetDetector
from safeguard.errors import PolicyFault
from safeguard.policy.loading import load_policy
from safeguard.policy.methods import check_methods
from safeguard.policy.schema import Policy

TEXT = """\
version: 1
name: p
model: reference
concepts:
  - name: concept
    kind: object
    prompts: [a thing]
    labels: {labels}
    detector: {detector}
    related:
      - {{name: near, prompts: [a neighbour], labels: {related}}}
retain:
  - {{name: far, prompts: [a cat], labels: {retained}}}
utility: {{{utility}}}
harden: {{unlearner: {{name: esd}}}}
requirements: [{{probe: released, max_rate: 0.5}}]
"""
CLIP = "{name: clip, vocabulary: [rose, tulip, chair]}"
NUDENET = "{name: nudenet, classes: [FEET_EXPOSED, FACE_FEMALE]}"


def check(
    tmp_path: Path, labels: str, detector: str, related: str = "[]", retained: str = "[]", utility: str = ""
) -> Policy:
    path = tmp_path / "p.yaml"
    filled = TEXT.format(labels=labels, detector=detector, related=related, retained=retained, utility=utility)
    path.write_text(filled, encoding="utf-8")
    policy = load_policy(path)
    check_methods(policy, path)
    return policy


@pytest.mark.parametrize("label", ["Rose", "ROSE", '" rose"', '"rose "', "\uff52\uff4fse"])
def test_another_spelling_of_a_word_of_the_vocabulary_is_refused_and_the_advice_works(
    tmp_path: Path, label: str
) -> None:
    with pytest.raises(PolicyFault, match=r"p.yaml:8:13: concepts\[0\].labels: .* write 'rose'"):
        check(tmp_path, f"[{label}]", CLIP)
    assert check(tmp_path, "[rose]", CLIP)


def test_a_label_beside_the_vocabulary_may_join_it(tmp_path: Path) -> None:
    assert check(tmp_path, "[lily]", CLIP)


def test_a_vocabulary_has_every_word_once(tmp_path: Path) -> None:
    for vocabulary in ("[rose, Rose, chair]", "[rose, chair, rose]", '[rose, " ROSE"]'):
        with pytest.raises(PolicyFault, match=r"p.yaml:9:.*vocabulary.*read like 'rose'"):
            check(tmp_path, "[rose]", CLIP.replace("[rose, tulip, chair]", vocabulary))


@pytest.mark.parametrize(
    ("labels", "what"), [("[]", "at least one label"), ("[rose, tulip, chair]", "nothing but these labels")]
)
def test_a_concept_that_cannot_be_judged_is_found(tmp_path: Path, labels: str, what: str) -> None:
    with pytest.raises(PolicyFault, match=f"p.yaml:8:13: .*{what}"):
        check(tmp_path, labels, CLIP)


def test_the_calibrated_vocabulary_counts_where_none_is_declared(tmp_path: Path) -> None:
    with pytest.raises(PolicyFault, match="write 'dagger'"):
        check(tmp_path, "[Dagger]", "{name: clip}")
    assert check(tmp_path, "[dagger]", "{name: clip}")


def test_labels_of_benign_subjects_are_checked_by_who_is_asked(tmp_path: Path) -> None:
    for where, line in (("related", 11), ("retained", 13)):
        with pytest.raises(PolicyFault, match=rf"p.yaml:{line}:.*write 'chair'"):
            check(tmp_path, "[rose]", CLIP, **{where: "[Chair]"})
        with pytest.raises(PolicyFault, match=rf"p.yaml:{line}:.*NudeNet has no class 'chair'"):
            check(tmp_path, "[]", NUDENET, **{where: "[chair]"})
        assert check(tmp_path, "[]", NUDENET, **{where: "[chair]"}, utility=f"detector: {CLIP}")


def test_labels_of_nudenet_are_its_classes(tmp_path: Path) -> None:
    with pytest.raises(PolicyFault, match=r"no class 'FEET'.*FEET_EXPOSED"):
        check(tmp_path, "[FEET]", NUDENET)
    with pytest.raises(PolicyFault, match=r"labels say FACE_FEMALE and detector.classes say FEET_EXPOSED, FACE_FEMALE"):
        check(tmp_path, "[FACE_FEMALE]", NUDENET)
    assert check(tmp_path, "[]", NUDENET)
    assert check(tmp_path, "[FACE_FEMALE, FEET_EXPOSED]", NUDENET)


def test_benign_subjects_may_ask_nudenet_for_other_classes() -> None:
    config = NudeNetConfig(classes=["FEET_EXPOSED"])
    assert NudeNetDetector.check_labels(config, ["FACE_FEMALE"], own=False) == []
    assert len(NudeNetDetector.check_labels(config, ["FACE_FEMALE"], own=True)) == 1


def test_a_checkpoint_that_is_not_here_is_not_fetched_for_a_check() -> None:
    config = ClipConfig(checkpoint="owner/name@revision")
    assert ClipDetector.check_labels(config, ["rose"], own=True) == []
    assert label_faults(["Rose", "lily"], ["rose", "lily"]) != []
