"""What is known of a certification before anything is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from safeguard.cli import run
from safeguard.errors import PolicyFault
from safeguard.probe.campaign import Campaign
from tests.tiny import CONTEXT


def declare(world: Path, *prompts: str) -> Path:
    """The policy with these prompts of its concept."""
    path = world / "policy.yaml"
    policy = yaml.safe_load(path.read_text())
    policy["concepts"][0]["prompts"] = list(prompts)
    path.write_text(yaml.safe_dump(policy))
    return path


def test_a_prompt_that_the_model_does_not_read_to_its_end_is_told(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "an axe " * CONTEXT
    path = declare(world, "an axe", long)
    told = f"concepts[0].prompts[1]: the model reads only the first {CONTEXT} tokens of {long!r}"
    assert Campaign.open(world / "model", policy=path, device="cpu").truncated == [told]
    assert run(["policy", "check", str(path)]) == 0
    assert f"note: {told}" in capsys.readouterr().out
    assert Campaign.open(world / "model", policy=declare(world, "an axe"), device="cpu").truncated == []


def test_prompts_that_are_one_prompt_to_the_model_are_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = declare(world, "an axe " * CONTEXT + "in red", "an axe " * CONTEXT + "in blue")
    with pytest.raises(PolicyFault, match="they are one prompt"):
        Campaign.open(world / "model", policy=path, device="cpu")
    assert run(["policy", "check", str(path)]) == 2
    assert "they are one prompt" in capsys.readouterr().err


def test_a_base_model_that_is_not_here_is_not_fetched_to_check_a_policy(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "policy.yaml"
    path.write_text(path.read_text().replace(str(world / "base"), "someone/some-model"))
    assert run(["policy", "check", str(path)]) == 0
    assert "the base model is not here" in capsys.readouterr().out
