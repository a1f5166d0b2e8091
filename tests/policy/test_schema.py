"""Templates come from untrusted files: what they expand to is bounded and plain."""

import pytest
from pydantic import ValidationError

from safeguard.policy.schema import PromptTemplate


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
