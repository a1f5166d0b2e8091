"""Templates come from untrusted files: what they expand to is bounded and plain."""

import pytest
from pydantic import ValidationError

from safeguard.policy.schema import Concept, PromptTemplate


def test_every_combination_is_a_prompt():
    template = PromptTemplate(template="{a} {b}", fill={"a": ["x", "y"], "b": ["1", "2"]})
    assert template.expand() == ["x 1", "x 2", "y 1", "y 2"]


@pytest.mark.parametrize("text", ["{a.b}", "{}", "{a:>99999999999}", "{a!r}", "{a[0]}", "{b}"])
def test_placeholders_are_plain_names(text):
    with pytest.raises(ValidationError):
        PromptTemplate(template=text, fill={"a": ["x"]})


def test_an_explosion_of_prompts_is_refused_at_once():
    fill = {f"p{i}": [str(n) for n in range(50)] for i in range(8)}
    with pytest.raises(ValidationError, match="more than 10000"):
        PromptTemplate(template=" ".join(f"{{{name}}}" for name in fill), fill=fill)


TEMPLATE = {"template": "{a} in {b}", "fill": {"a": ["x", "y"], "b": ["1"]}}


def concept(prompts: object, anchor: object) -> Concept:
    return Concept.model_validate(
        {"name": "c", "kind": "style", "prompts": prompts, "anchor": anchor, "detector": {"name": "clip"}}
    )


def test_every_prompt_has_its_anchor():
    assert concept(TEMPLATE, "{a}").anchor_list == ["x", "y"]
    assert concept(TEMPLATE, "z").anchor_list == ["z", "z"]
    assert concept(["x", "{y}"], "{z}").anchor_list == ["{z}", "{z}"], "a list of prompts has no placeholders"
    assert concept(["x", "y"], ["u", "v"]).anchor_list == ["u", "v"]


def test_a_prompt_that_is_dropped_takes_its_anchor_along():
    kept = concept(TEMPLATE, "{a}").keeping(["y in 1"])
    assert (kept.prompt_list, kept.anchor_list) == (["y in 1"], ["y"])


@pytest.mark.parametrize("anchor", ["{c}", "{a.b}", "{}", ["only one"]])
def test_anchors_match_their_prompts(anchor):
    with pytest.raises(ValidationError):
        concept(TEMPLATE, anchor)
