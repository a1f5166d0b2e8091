"""What is erased and what is kept must differ as a model reads it; messages name both places."""

from __future__ import annotations

import pytest

from safeguard.errors import PolicyFault
from safeguard.policy.consistency import as_read, cut_prompts
from safeguard.policy.loading import load_policy, load_policy_text
from safeguard.policy.schema import Policy
from safeguard.policy.study import cells, load_study
from safeguard.resources import find_resource

TEXT = """\
version: 1
name: p
model: reference
concepts:
  - name: axes
    kind: object
    prompts: [an axe, a big axe]
    anchor: [a stick, a big stick]
    labels: [axe, hatchet]
    detector: {name: clip}
    related:
      - {name: hammers, prompts: [a hammer], labels: [hammer]}
  - name: knives
    kind: object
    prompts: [a knife]
    anchor: a spoon
    labels: [knife]
    detector: {name: clip}
retain:
  - {name: cats, prompts: [a cat, a small cat], labels: [cat]}
harden: {unlearner: {name: esd}}
requirements: [{probe: "*", max_rate: 0.5}]
"""


def check(old: str, new: str) -> str:
    """What is said about the policy with that text replaced, which must be there."""
    assert old in TEXT
    with pytest.raises(PolicyFault) as caught:
        load_policy_text(TEXT.replace(old, new, 1), "p.yaml")
    return str(caught.value)


def test_the_policy_of_these_tests_is_valid() -> None:
    assert isinstance(load_policy_text(TEXT), Policy)


@pytest.mark.parametrize(
    "written", ["an axe", "An Axe", '" an  axe "', '"an\\u00a0axe"', "\uff41\uff4e axe", "a BIG axe"]
)
def test_a_prompt_cannot_be_erased_and_kept(written: str) -> None:
    said = check("[a hammer]", f"[a hammer, {written}]")
    assert "p.yaml:12:" in said and "p.yaml:7:" in said and "concepts[0].related[0].prompts[1]" in said
    said = check("a small cat", written)
    assert "p.yaml:20:" in said and "p.yaml:7:" in said and "retain[0].prompts[1]" in said


@pytest.mark.parametrize("written", ["axe", "Axe", "HATCHET", '" axe"', "knife", "Kni\ufb01e".replace("\ufb01", "f")])
def test_a_label_cannot_be_erased_and_kept(written: str) -> None:
    said = check("labels: [cat]", f"labels: [cat, {written}]")
    assert "p.yaml:20:" in said and "retain[0].labels[1]" in said and "erased there" in said
    assert "concepts[0].related[0].labels[0]" in check("labels: [hammer]", f"labels: [{written}]")


def test_prompts_and_labels_that_read_alike_count_once() -> None:
    assert "concepts[0].prompts[1]" in check("a big axe]", "An  axe]")
    assert "retain[0].prompts[1]" in check("a small cat", "A CAT")
    assert "concepts[0].labels[1]" in check("hatchet", "AXE")


def test_a_template_that_makes_an_erased_prompt_is_found() -> None:
    template = '{template: "{x} axe", fill: {x: [a, a big]}}'
    assert "p.yaml:7:" in check("prompts: [a hammer]", f"prompts: {template}")


@pytest.mark.parametrize("anchor", ["[an axe, a stick]", "[a stick, A big  Axe]", "a knife", "[a stick, a KNIFE]"])
def test_an_anchor_that_is_erased_is_refused(anchor: str) -> None:
    said = check("[a stick, a big stick]", anchor)
    assert "p.yaml:8:" in said and "is itself to be erased" in said


def test_a_prompt_of_two_concepts_has_one_anchor() -> None:
    said = check("prompts: [a knife]", "prompts: [An axe, a knife]")
    assert "p.yaml:15:" in said and "p.yaml:7:" in said and "different anchors" in said
    shared = TEXT.replace("prompts: [a knife]", "prompts: [an axe, a knife]").replace(
        "anchor: a spoon", "anchor: [a stick, x]"
    )
    assert load_policy_text(shared)


def test_what_differs_for_the_model_is_different() -> None:
    assert as_read("an axe") != as_read("an axes") and as_read("rosé") != as_read("rose")
    assert load_policy_text(TEXT.replace("a small cat", "an axe!"))


def test_what_is_shipped_does_not_contradict_itself() -> None:
    load_policy(find_resource("policy", "policies", "quickstart"))
    for study in ("ablations", "concepts", "resilience", "unlearners"):
        assert list(cells(load_study(study)))


def test_prompts_that_are_one_after_truncation_are_refused_and_cut_ones_are_named() -> None:
    policy = load_policy_text(TEXT.replace("[a cat, a small cat]", "[a cat, a very small grey cat]"))
    tokenize = lambda prompt: [0, *map(hash, prompt.split()), 1]  # noqa: E731
    assert cut_prompts(policy, tokenize, 7) == []
    assert cut_prompts(policy, tokenize, 6) == [(("retain", 0, "prompts", 1), "a very small grey cat")]
    for twin in ("a very small grey dog", "a very small grey"):
        again = load_policy_text(TEXT.replace("[a cat, a small cat]", f"[a very small grey cat, {twin}]"))
        with pytest.raises(PolicyFault, match=r"retain\[0\].prompts\[1\].*they are one prompt"):
            cut_prompts(again, tokenize, 6)
        kept = load_policy_text(TEXT.replace("a small cat", "a very small grey cat").replace("a knife]", f"{twin}]"))
        with pytest.raises(PolicyFault, match="they are one prompt"):
            cut_prompts(kept, tokenize, 6)
