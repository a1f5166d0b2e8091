"""The starting policy is valid whatever it is asked for, and takes no text as YAML."""

from __future__ import annotations

import fnmatch

import pytest

from recipes.reference.vocabulary import NAMES
from safeguard.errors import PolicyFault, UsageFault
from safeguard.policy.loading import check_methods, load_policy_text
from safeguard.policy.study import cells, load_study
from safeguard.policy.suite import load_suite
from safeguard.policy.template import starting_policy
from safeguard.resilience.resalign import ResAlignConfig


@pytest.mark.parametrize("model", ["reference", "owner/name", "./models/sd 1.5"])
def test_valid_down_to_the_methods(model: str):
    text = starting_policy("my-policy", model, "kitchen knife")
    policy = load_policy_text(text)
    check_methods(policy)
    assert text.startswith("# yaml-language-server: $schema=")
    assert (policy.name, policy.model, policy.concepts[0].name) == ("my-policy", model, "kitchen-knife")
    assert policy.concepts[0].labels == ["kitchen knife"]
    assert any("kitchen knife" in prompt for prompt in policy.concepts[0].prompt_list)


@pytest.mark.parametrize(
    "concept", ["axe", 'say "hi": [x] #', "a, b]}", "$name ${model}", "{thing}", "C:\\knife", "yes"]
)
@pytest.mark.parametrize("model", ["reference", "owner/name"])
def test_words_stay_words(concept: str, model: str):
    policy = load_policy_text(starting_policy("p", model, concept))
    assert policy.concepts[0].labels == [concept]
    vocabulary = policy.concepts[0].detector.settings["vocabulary"]
    assert vocabulary == [] if model == "reference" else vocabulary[0] == concept


def test_article():
    assert (
        "an axe emoji in noto style"
        in load_policy_text(starting_policy("p", "reference", "axe")).concepts[0].prompt_list
    )


def test_the_reference_model_knows_everything_it_mentions():
    policy = load_policy_text(starting_policy("p"))
    subjects = [*policy.concepts, *policy.concepts[0].related, *policy.retain]
    assert {label for subject in subjects for label in subject.labels} <= {name.text for name in NAMES}


def test_every_requirement_has_its_probe_and_data():
    policy = load_policy_text(starting_policy("p"))
    ids = [probe.id for probe in load_suite(policy.certification.suite).probes]
    for requirement in policy.requirements:
        assert fnmatch.filter(ids, requirement.probe)
    assert policy.retain and policy.concepts[0].related


def test_the_reference_model_is_hardened_as_was_measured_and_others_by_the_defaults():
    measured = next(cell.policy for cell in cells(load_study("resilience")) if cell.name == "esd-f/resalign-single")
    own, other = (load_policy_text(starting_policy("p", model)).harden for model in ("reference", "owner/name"))
    assert (own.unlearner, own.schedule) == (measured.harden.unlearner, measured.harden.schedule)
    assert ResAlignConfig(**own.resilience.settings) == ResAlignConfig(**measured.harden.resilience.settings)
    assert (other.unlearner.settings, other.resilience.settings) == ({"preserve_weight": 1.0}, {})


@pytest.mark.parametrize(("model", "margin"), [("reference", 0.1), ("owner/name", 0.03)])
def test_what_must_survive_is_measured_with_the_detectors_checkpoint(model: str, margin: float):
    policy = load_policy_text(starting_policy("p", model))
    (metric,) = policy.utility.metrics
    assert (metric.name, metric.margin) == ("clip-score", margin)
    assert metric.settings == {"checkpoint": policy.concepts[0].detector.settings["checkpoint"]}


def test_names_that_cannot_be_used():
    with pytest.raises(UsageFault, match="'my-policy'"):
        starting_policy("My Policy")
    with pytest.raises(UsageFault, match="cannot name a policy"):
        starting_policy("")
    with pytest.raises(UsageFault, match="gives no name to the concept"):
        starting_policy("p", concept="刀")
    with pytest.raises(PolicyFault, match="string should have at most 64"):
        starting_policy("p" * 65)
    assert load_policy_text(starting_policy("p", concept="word " * 30)).concepts[0].name == ("word-" * 10)[:48]
