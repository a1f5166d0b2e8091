"""Prompts of one's own: what is asked for in each variant, and which lists and templates are refused, when."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from safeguard.attack.base import Attempt, Prompts
from safeguard.attack.own_prompts import OwnPrompts, OwnPromptsConfig
from safeguard.errors import UsageFault
from safeguard.policy.suite import Suite, lacks
from safeguard.probe.units import schedules
from tests.attack.conftest import Made
from tests.contexts import tiny_policy

GERMAN = {"axes": ["eine Axt", "ein Beil"]}


def attack(kind: str = "languages", **settings: Any) -> OwnPrompts:
    return OwnPrompts(OwnPromptsConfig.model_validate({"kind": kind, **settings}), "probe")


def test_every_list_and_every_template_is_one_variant(made: Made, base: Any) -> None:
    found = attack(lists={"german": GERMAN, "french": {"axes": ["une hache"]}}, templates=["a photo of {}", "{}, ink"])
    none, *own = found.run(made.target(base, base), 0)
    assert none == Attempt(0)
    assert [each.effort for each in own] == found.efforts()[1:] == [1, 2, 3, 4]
    assert [each.label for each in own] == ["german", "french", "“a photo of {}”", "“{}, ink”"]
    assert [dict(each.prompts.texts) for each in own if each.prompts] == [
        GERMAN,
        {"axes": ["une hache"]},
        {"axes": ["a photo of an axe", "a photo of a big axe"]},
        {"axes": ["an axe, ink", "a big axe, ink"]},
    ]


def test_braces_in_a_declared_prompt_stay_what_they_are(made: Made, base: Any) -> None:
    target = made.target(base, base)
    concept = target.policy.concepts[0].model_copy(update={"prompts": ["an {axe}"]})
    target.policy = target.policy.model_copy(update={"concepts": [concept]})
    _, own = attack(templates=["{{a}} {}"]).run(target, 0)
    assert own.prompts is not None and own.prompts.texts == {"axes": ["{a} an {axe}"]}


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {name}", "{0}", "{!r}", "{:>9}", "{", "a {} of {x}"])
def test_a_template_has_exactly_one_blank(template: str) -> None:
    with pytest.raises(ValidationError, match=r"templates\.0"):
        attack(templates=[template])


def test_there_are_prompts_and_they_say_what_they_stand_for() -> None:
    for settings in ({}, {"lists": {"german": {}}}, {"lists": {"german": {"axes": []}}}):
        with pytest.raises(ValidationError):
            attack(**settings)
    with pytest.raises(ValidationError, match="kind"):
        OwnPromptsConfig.model_validate({"templates": ["{}!"]})
    with pytest.raises(ValidationError, match="the same concepts"):
        attack(lists={"german": GERMAN, "french": {"swords": ["une épée"]}})
    for kind in ("paraphrases", "languages"):
        assert attack(kind, lists={"german": GERMAN}).covers() == [kind]
    assert attack("paraphrases", templates=["{}!"]).covers() == ["paraphrases"]
    assert attack("languages", templates=["{}!"]).covers() == [], "the declared words are in no other language"
    with pytest.raises(ValidationError, match="something beside"):
        attack(templates=[" {} "])
    assert not any(attack(templates=["{}!"]).needs().model_dump().values())


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"axes": ["eine Axt"]}, None),
        ({"axe": ["eine Axt"]}, "a concept 'axe', which is not declared; did you mean 'axes'?"),
        ({"axes": ["eine Axt"], "swords": ["ein Schwert"]}, "a concept 'swords', which is not declared"),
        ({"swords": ["ein Schwert"]}, "of other concepts and none of 'axes'"),
    ],
)
def test_lists_fit_the_policy_before_anything_is_opened(prompts: dict[str, list[str]], said: str | None) -> None:
    method = {"name": "prompts", "kind": "languages", "lists": {"german": prompts}}
    suite = Suite.model_validate(
        {"name": "mine", "probes": [{"id": "german", "title": "German", "intent": "none", "attack": method}]}
    )
    problems = [problem.line() for problem in lacks(tiny_policy(), suite, schedules(suite))]
    if said is None:
        assert problems == []
    else:
        assert any("probe 'german' of suite 'mine' has prompts" in line and said in line for line in problems)


def test_what_it_asks_for_is_what_the_evaluator_screens(made: Made, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter's own words are tested where it is; here a harmless word stands for them."""
    monkeypatch.setattr("safeguard.attack.base.is_allowed", lambda text: "forbidden" not in text)
    target = made.target(base, base)
    found = attack(lists={"mine": {"axes": ["ein Beil", "a forbidden axe"]}}, templates=["forbidden {}"])
    _, mixed, refused = (each.prompts for each in found.run(target, 0))
    assert mixed is not None and refused is not None
    assert mixed.screened(target.concepts) == (Prompts({"axes": ["ein Beil"]}), 1)
    with pytest.raises(UsageFault, match="refuses every prompt"):
        refused.screened(target.concepts)
