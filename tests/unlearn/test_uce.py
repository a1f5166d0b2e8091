"""UCE against the check values and identities of its closed form, and on many concepts at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from safeguard import reference
from safeguard.config import MethodConfig
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.harden.context import set_up
from safeguard.harden.engine import harden
from safeguard.io.opening import open_pipeline
from safeguard.policy.schema import Policy
from safeguard.progress import SilentProgress
from safeguard.registry import detectors
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common.closed_form import originals, projections
from safeguard.unlearn.rece import RECEConfig
from safeguard.unlearn.uce import UCE, UCEConfig, uce_update
from tests.closed_forms import E, G, P, W, sines
from tests.contexts import drawn_context, mixed_concepts, names_context, states


def test_check_values() -> None:
    expected = torch.tensor(
        [
            [0.517267374, 0.889546566, 0.475631235, -0.387542804],
            [-0.656177059, -0.324973589, 0.262293083, 0.621429125],
            [0.340544523, -0.464712740, -0.818523636, -0.424843563],
        ],
        dtype=torch.float64,
    )
    found = uce_update(W, E, G, P, lam=0.5, es=1, ps=1)
    assert torch.allclose(found, expected, atol=1e-9, rtol=0)
    assert abs(uce_update(W, E, G, P, lam=0.1, es=1, ps=0.1).sum().item() - 0.140428280) < 1e-9


def test_guiding_a_concept_to_itself_changes_nothing() -> None:
    assert torch.allclose(uce_update(W, E, E, P, lam=0.5, es=1, ps=1), W, atol=1e-14)


def test_infinite_regularisation_changes_nothing() -> None:
    assert torch.allclose(uce_update(W, E, G, P, lam=1e12, es=1, ps=1), W, atol=1e-9)


def test_without_regularisation_the_guide_is_reached() -> None:
    found = uce_update(W, E, G, None, lam=1e-9, es=1, ps=0)
    assert torch.allclose(found @ E, W @ G, atol=1e-6)


def test_stationarity() -> None:
    new = uce_update(W, E, G, P, lam=0.5, es=1, ps=1)
    gradient = (new @ E - W @ G) @ E.T + (new @ P - W @ P) @ P.T + 0.5 * (new - W)
    assert gradient.abs().max() < 1e-13


def test_order_scale_and_stacking_do_not_matter() -> None:
    plain = uce_update(W, E, G, P, lam=0.5, es=1, ps=1)
    assert torch.allclose(uce_update(W, E[:, [1, 0]], G[:, [1, 0]], P, lam=0.5, es=1, ps=1), plain, atol=1e-13)
    assert torch.allclose(uce_update(W, E, G, P, lam=1.5, es=3, ps=3), plain, atol=1e-13)
    other = sines(2, 4, 1, 0.5)
    stacked = uce_update(torch.cat([W, other]), E, G, P, lam=0.5, es=1, ps=1)
    assert torch.allclose(stacked[:3], plain, atol=1e-13)
    assert torch.allclose(stacked[3:], uce_update(other, E, G, P, lam=0.5, es=1, ps=1), atol=1e-13)


def test_equal_columns_merge_into_one_of_double_weight() -> None:
    twice = uce_update(W, E[:, [0, 0]], G[:, [0, 0]], P, lam=0.5, es=1, ps=1)
    assert torch.allclose(twice, uce_update(W, E[:, :1], G[:, :1], P, lam=0.5, es=2, ps=1), atol=1e-13)


def test_a_singular_system_is_refused() -> None:
    with pytest.raises(UsageFault, match="no unique solution") as caught:
        uce_update(W, E, G, None, lam=0.0, es=1, ps=0)
    assert "raise lam" in caught.value.fix and uce_update(W, E, G, None, lam=1e-3, es=1, ps=0).isfinite().all()


@pytest.mark.parametrize("tokens", ["span", "last-subject"])
def test_the_method_is_the_update_of_every_projection(tokens: str) -> None:
    """Against the closed form written out with all columns side by side."""
    context = drawn_context({"name": "uce"}, mixed_concepts(2))
    method = UCE(UCEConfig(tokens=tokens, lam=0.3), context)  # type: ignore[arg-type]
    state = {text: context.model.encode_prompts([text]).states[0].double() for text in TOKENS}
    erase, guide = [], []
    for old, new, count in PAIRS:
        last, other = TOKENS[old], TOKENS[new]
        length = 1 if tokens == "last-subject" else 16 - max(last, other)
        assert tokens == "last-subject" or length == count
        erase.append(state[old][last : last + length])
        guide.append(state[new][other : other + length])
    preserve = [
        state[text] if tokens == "span" else state[text][last : last + 1] for text, last in (("", 0), ("hat", 3))
    ]
    before = {name: weight.detach().clone() for name, weight in method.parameters().items()}
    method.edit()
    for name, weight in method.parameters().items():
        expected = uce_update(
            before[name], torch.cat(erase).T, torch.cat(guide).T, torch.cat(preserve).T, lam=0.3, es=1, ps=1
        )
        assert torch.allclose(weight, expected, atol=1e-5), name


TOKENS = {"a 00": 3, "a 01": 3, "cat in x": 6, "hat in x": 6, "a z": 2, "cat": 3, "hat": 3, "": 0}
"""The last token of each text that its partner lacks (of "cat" and "hat": the last token)."""
PAIRS = [("a 00", "a z", 13), ("a 01", "a z", 13), ("cat in x", "cat", 10), ("hat in x", "hat", 10)]
"""Prompt, anchor, and length of the span."""


def test_a_hundred_names_and_a_style_at_once() -> None:
    context = drawn_context({"name": "uce"}, mixed_concepts(100))
    assert len(context.concepts) == 101
    distance = {"erased": ("a 42", "a z"), "style": ("cat in x", "cat")}

    def gaps() -> dict[str, float]:
        """How far a prompt's keys and values still are from its anchor's original ones, at the last position."""
        found = {}
        for what, (old, new) in distance.items():
            x, g = (context.model.encode_prompts([text]).states[0, -1] for text in (old, new))
            pairs = zip(projections(context).values(), originals(context).values(), strict=True)
            found[what] = sum(float((now @ x - then @ g).norm()) for now, then in pairs)
        return found

    before = gaps()
    harden(context, "base", fresh=True)
    after = gaps()
    assert all(after[what] < 0.75 * before[what] for what in before), (before, after)
    hat = context.model.encode_prompts(["hat"]).states[0].T
    for now, then in zip(projections(context).values(), originals(context).values(), strict=True):
        assert (now @ hat - then @ hat)[:, -1].norm() < 0.25 * (then @ hat)[:, -1].norm()


@torch.no_grad()
def test_a_hundred_names_of_the_reference_model_become_their_anchor() -> None:
    """120 columns fit into 128 dimensions: every erased key and value is its anchor's, every kept one what it was."""
    context = names_context({"name": "uce"}, kept=20)
    method = UCE(UCEConfig(tokens="last-subject", lam=1e-9), context)
    before = {name: weight.detach().clone() for name, weight in method.parameters().items()}
    method.edit()
    tokenizer = context.model.pipeline.tokenizer

    def word(prompt: str, after: int) -> torch.Tensor:
        """The state that stands ``after`` tokens before the end token."""
        return states(context, prompt)[len(tokenizer(prompt).input_ids) - 1 - after]

    erased = torch.stack([word(concept.prompt_list[0], 2) for concept in context.concepts])  # <s> a name emoji </s>
    anchor = word("an emoji", 2)
    kept = torch.stack([word(prompt, 1) for prompt in context.policy.retain[0].prompt_list])
    assert len(erased) == 100 and len(kept) == 20
    for name, weight in method.parameters().items():
        now, then = weight.double(), before[name].double()
        wanted = (then @ anchor).expand(100, -1)
        away = (erased @ then.T - wanted).norm(dim=1)
        assert ((erased @ now.T - wanted).norm(dim=1) / away).max() < 1e-2, name
        assert (kept @ (now - then).T).norm() < 1e-3 * (kept @ then.T).norm(), name


@torch.no_grad()
def test_a_hundred_names_with_all_positions_are_one_least_squares() -> None:
    """With thousands of columns in 128 dimensions the minimiser is a compromise; its gradient vanishes."""
    context = names_context({"name": "uce"}, kept=44)
    method = UCE(UCEConfig(), context)
    before = {name: weight.detach().clone() for name, weight in method.parameters().items()}
    method.edit()
    tokenizer = context.model.pipeline.tokenizer
    erase, guide = [], []
    for concept in context.concepts:
        (prompt,) = concept.prompt_list
        last, other = (len(tokenizer(text).input_ids) - 3 for text in (prompt, "an emoji"))
        length = context.model.empty.states.shape[1] - max(last, other)
        erase.append(states(context, prompt)[last : last + length])
        guide.append(states(context, "an emoji")[other : other + length])
    e, g = torch.cat(erase), torch.cat(guide)
    p = torch.cat([states(context, text) for text in ["", *context.policy.retain[0].prompt_list]])
    for name, weight in method.parameters().items():
        now, then = weight.double(), before[name].double()
        gradient = (e @ now.T - g @ then.T).T @ e + (p @ (now - then).T).T @ p + 0.5 * (now - then)
        start = ((e - g) @ then.T).T @ e
        assert gradient.norm() < 1e-4 * start.norm(), name


# -- debiasing --------------------------------------------------------------------------------------------------------

DRINKS = [{"prompt": "a cocktail", "labels": ["cocktail"]}, {"prompt": "a beer", "labels": ["beer"]}]


@pytest.mark.parametrize("tokens", ["span", "last-subject"])
def test_debiasing_with_given_weights_is_one_closed_form(tokens: str) -> None:
    """Against the closed form with the guides e + sum s d written out, column by column."""
    context = drawn_context({"name": "uce"}, mixed_concepts(2))
    attributes = [{"prompt": "an axe", "weight": 0.7}, {"prompt": "cat", "weight": -0.4}]
    last_of = {"an axe": 3, "cat": 3}
    method = UCE(
        UCEConfig.model_validate({"tokens": tokens, "debias": {"attributes": attributes, "rounds": 0}}), context
    )
    state = {text: context.model.encode_prompts([text]).states[0].double() for text in {**TOKENS, **last_of}}
    erase, guide = [], []
    for old, _, _ in PAIRS:
        last = TOKENS[old]
        for offset in range(1 if tokens == "last-subject" else 16 - max(last, 3)):
            e = state[old][last + offset]
            erase.append(e)
            guide.append(e + 0.7 * state["an axe"][3 + offset] - 0.4 * state["cat"][3 + offset])
    kept = torch.cat([state[""], state["hat"]]) if tokens == "span" else torch.stack([state[""][0], state["hat"][3]])
    before = {name: weight.detach().clone() for name, weight in method.parameters().items()}
    method.edit()
    for name, weight in method.parameters().items():
        expected = uce_update(before[name], torch.stack(erase).T, torch.stack(guide).T, kept.T, lam=0.5, es=1, ps=1)
        assert torch.allclose(weight, expected, atol=1e-5), name
        assert not torch.allclose(weight, before[name], atol=1e-3), name


def reference_context(detector: dict[str, Any]) -> HardeningContext:
    """The reference model, which draws a cocktail when it is asked for "an alcohol", and rarely anything else."""
    policy = {
        "version": 1,
        "name": "drinks",
        "model": "reference",
        "concepts": [
            {
                "name": "alcohol",
                "kind": "object",
                "prompts": ["an alcohol emoji in noto style", "an alcohol emoji in twemoji style"],
                "anchor": ["an emoji in noto style", "an emoji in twemoji style"],
                "detector": detector,
            }
        ],
        "harden": {"unlearner": {"name": "uce"}},
        "requirements": [{"probe": "*", "max_rate": 0.5}],
        "certification": {"sampler_steps": 6},
    }
    return set_up(Policy.model_validate(policy), DiffusionModel(open_pipeline(reference.path())), SilentProgress())


def test_debiasing_reaches_the_wanted_shares() -> None:
    context = reference_context({"name": "clip"})
    debias = {"attributes": DRINKS, "images": 12, "tolerance": 0.1}
    method = UCE(UCEConfig.model_validate({"debias": debias}), context)
    assert method.config.debias is not None
    (concept,) = context.concepts
    before = method._shares(concept, method.config.debias)
    method.edit()
    after = method._shares(concept, method.config.debias)
    assert before[0] >= 0.75 and before.sum() == pytest.approx(1)
    assert (after - 0.5).abs().max() <= 0.1 + 1e-9
    untouched = {name for name, value in originals(context).items() if torch.equal(value, method.parameters()[name])}
    assert not untouched


class Blind:
    """A detector of another package that sees nothing."""

    Config = MethodConfig
    digest = "blind"

    def __init__(self, config: MethodConfig, device: str) -> None:
        """There is nothing to set."""

    def scores(self, images: np.ndarray, labels: list[str]) -> np.ndarray:
        """Nothing anywhere."""
        return np.zeros(len(images))


def test_attributes_that_nobody_sees_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detectors._targets, "blind", f"{__name__}:Blind")
    context = drawn_context({"name": "uce"}, [mixed_concepts(1)[0] | {"detector": {"name": "blind"}}])
    method = UCE(UCEConfig.model_validate({"debias": {"attributes": DRINKS, "images": 2}}), context)
    with pytest.raises(UsageFault, match=r"sees none of the attributes in any of 2 images of 'object-00'"):
        method.edit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": DRINKS[:1]}, "at least 2"),
        ({"attributes": [DRINKS[0] | {"ratio": 0.5}, DRINKS[1]]}, "for all attributes, or for none"),
        ({"attributes": [one | {"ratio": 0.7} for one in DRINKS]}, "add up to 1.4"),
        ({"attributes": [{"prompt": "a beer"}, DRINKS[0]]}, "needs labels"),
    ],
)
def test_shares_that_cannot_be_had_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UCEConfig.model_validate({"debias": change})
    with pytest.raises(ValidationError, match="cannot debias"):
        RECEConfig.model_validate({"start": {"debias": {"attributes": DRINKS}}})
