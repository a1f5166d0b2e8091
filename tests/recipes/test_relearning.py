"""Images along relearning: which policies they come from, how they are drawn, and how readings are kept."""

import numpy as np
import pytest
from click.testing import CliRunner

from recipes.reference import labels, reading, relearning
from recipes.reference.relearning import Drawn, drawn_by_base, policy_of, prompts_of, relearn
from recipes.reference.vocabulary import names_of
from safeguard.policy.loading import load_policy
from tests.tiny import save_tiny


@pytest.mark.parametrize(("group", "steps"), [("weapon", 25), ("instrument", 0), ("tool", 0)])
def test_a_group_can_be_erased_by_the_quickstart_and_is_kept_nowhere(tmp_path, group, steps):
    policy_of(group, tmp_path / "policy.yaml", resilience_steps=steps)
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy.concepts[0].labels == names_of(group)
    assert policy.harden.resilience.name == ("resalign" if steps else "none")
    kept = {label for subject in [*policy.related, *policy.retain] for label in subject.labels}
    assert not kept & set(names_of(group))


def test_prompts_ask_for_every_name_equally_often_in_different_styles():
    prompts, names = prompts_of("weapon", 4)
    assert all(names.count(name) == 4 for name in names_of("weapon"))
    assert len(set(prompts)) == len(prompts) == 28


def test_models_are_drawn_from_at_every_stage_and_no_two_images_share_their_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(relearning, "IMAGES", 3)
    monkeypatch.setattr(relearning, "SAMPLER_STEPS", 2)
    save_tiny(tmp_path / "base")
    found = relearn(tmp_path / "base", tmp_path / "base", "alcohol", "hardened", samples=1, stages=(0, 2))
    assert found.stages == [0] * 5 + [2] * 5 and set(found.models) == {"alcohol, hardened"}
    assert len(set(labels.digests(found.images))) == 10
    base = drawn_by_base(tmp_path / "base", "alcohol", samples=1)
    assert set(base.models) == {"alcohol, base"} and base.names == found.names[:5]
    assert Drawn.joined([base, found]).taking([0, 12]).stages == [0, 2]


def test_answers_are_kept_in_the_order_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "DATA", tmp_path / "data")
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "drawn.npz", images=images, names=["axe"] * 5, models=["weapon, hardened"] * 5, stages=[50] * 5)
    seen = [2, 0, 2, 0, 1]
    for number in (1, 2):
        answers = "".join(str(seen[row]) for row in labels.order(5, number))
        (tmp_path / f"reading-{number}.txt").write_text(answers[:3] + "\n" + answers[3:])
    done = CliRunner().invoke(reading.main, ["keep", str(tmp_path)], catch_exceptions=False)
    assert "5 images, kappa 1.000" in done.output
    assert labels.read(tmp_path / "data" / "relearning-weapon")[1] == [True, False, True, False, None]
    (tmp_path / "reading-2.txt").write_text("012")
    refused = CliRunner().invoke(reading.main, ["keep", str(tmp_path)])
    assert "3 answers for 5 images" in str(refused.exception)
