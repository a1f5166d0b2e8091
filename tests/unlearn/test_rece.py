"""RECE against the check values of its adversarial states and rounds, and through the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeguard.errors import UsageFault
from safeguard.harden.engine import harden
from safeguard.unlearn.rece import RECE, RECEConfig, adversary
from safeguard.unlearn.uce import UCE, uce_update
from tests.closed_forms import E, G, P, W, close, sines
from tests.contexts import drawn_context, mixed_concepts

ORIGINAL = [W, sines(2, 4, 1, 0.5)]
EDITED = [uce_update(weight, E, G, P, lam=0.5, es=1, ps=1) for weight in ORIGINAL]
C = E[:, 0]
FULL = [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)]
"""Of full rank, which matrices of sines are not."""


def objective(state: torch.Tensor, lam_r: float) -> float:
    fit = sum(float((new @ state - old @ C).square().sum()) for new, old in zip(EDITED, ORIGINAL, strict=True))
    return fit + lam_r * float(state.square().sum())


@pytest.mark.parametrize(
    ("lam_r", "state", "value"),
    [
        (0.1, [1.467311490, 0.866105478, -0.436319659, -1.367084678], 0.510485423),
        (0.001, [1.509001986, 0.890460294, -0.448990088, -1.405968436], 0.005249852),
    ],
)
def test_adversarial_states_have_their_check_values(lam_r: float, state: list[float], value: float) -> None:
    found = adversary(EDITED, ORIGINAL, lam_r=lam_r) @ C
    assert close(found, state)
    assert objective(found, lam_r) == pytest.approx(value, abs=1e-9)


def test_a_round_has_its_check_values() -> None:
    state = adversary(EDITED, ORIGINAL, lam_r=0.1) @ E[:, :1]
    found = uce_update(EDITED[0], state, G[:, :1], P[:, :1], lam=0.1, es=1, ps=0.1)
    assert close(
        found,
        [
            [0.119516869, 0.663341918, 0.590777685, -0.025613487],
            [-0.291899213, -0.117805174, 0.156836773, 0.289957939],
            [0.262079249, -0.509336718, -0.795808397, -0.353444827],
        ],
    )


def test_unedited_projections_need_no_other_state() -> None:
    assert torch.allclose(adversary(FULL, FULL, lam_r=1e-9) @ C, C, atol=1e-6)
    assert not torch.allclose(adversary(FULL, FULL, lam_r=1.0) @ C, C, atol=1e-2)


def test_other_regularisations_are_minimisers_of_theirs() -> None:
    """By the gradient of the objective, written out."""
    moved = [weight + 0.3 * weight.roll(1, 0) for weight in FULL]
    standard = adversary(moved, FULL, lam_r=0.1, regularization="standard") @ C
    surrogate = adversary(moved, FULL, lam_r=0.1, regularization="surrogate") @ C
    pairs = list(zip(moved, FULL, strict=True))
    gradient = sum((new.T @ (new @ standard - old @ C) for new, old in pairs), start=0.1 * (standard - C))
    assert gradient.abs().max() < 1e-12
    gradient = sum((new.T @ (new @ surrogate - old @ C) + 0.1 * new.T @ new @ (surrogate - C) for new, old in pairs))
    assert gradient.abs().max() < 1e-12


def test_the_method_is_uce_and_its_rounds() -> None:
    """Against the rounds written out with all columns side by side."""
    context = drawn_context({"name": "rece"}, mixed_concepts(2))
    method = RECE(RECEConfig(epochs=2, lam_r=0.2), context)
    UCE(method.config.start, context).edit()
    start = {name: weight.detach().clone() for name, weight in method.parameters().items()}
    states = {text: context.model.encode_prompts([text]).states[0].T.double() for text in (*sum(PAIRS, ()), "hat", "")}
    old = torch.cat([states[prompt] for prompt, _ in PAIRS], dim=1)
    guide = torch.cat([states[anchor] for _, anchor in PAIRS], dim=1)
    preserve = torch.cat([states[""], states["hat"]], dim=1)
    originals = [weight.double() for name, weight in context.teacher.named_parameters().items() if name in start]
    expected = {name: weight.double() for name, weight in start.items()}
    for _ in range(2):
        state = adversary(expected.values(), originals, lam_r=0.2) @ old
        expected = {
            name: uce_update(weight, state, guide, preserve, lam=0.1, es=1, ps=0.1).float().double()
            for name, weight in expected.items()
        }
    with torch.no_grad():
        for name, weight in method.parameters().items():
            weight.copy_(context.teacher.named_parameters()[name])
    method.edit()
    for name, weight in method.parameters().items():
        assert torch.allclose(weight.double(), expected[name], atol=1e-4), name


PAIRS = [("a 00", "a z"), ("a 01", "a z"), ("cat in x", "cat"), ("hat in x", "hat")]


def test_it_changes_keys_and_values_only() -> None:
    context = drawn_context({"name": "rece", "epochs": 2}, mixed_concepts(3))
    harden(context, "base", fresh=True)
    base = context.teacher.named_parameters()
    changed = {name for name, value in context.model.named_parameters().items() if not torch.equal(value, base[name])}
    assert changed == set(RECE(RECEConfig(), context).parameters())


@pytest.mark.slow
def test_the_detector_keeps_the_earliest_of_equals(tmp_path: Path) -> None:
    """A random model draws nothing the reference detector flags, so UCE's own result is kept."""
    chosen, plain = (drawn_context({"name": "rece"}, mixed_concepts(1)) for _ in range(2))
    for context in (chosen, plain):
        for concept in context.concepts:
            concept.labels.append("axe")
    RECE(RECEConfig(select=2), chosen).edit()
    UCE(RECEConfig().start, plain).edit()
    for one, other in zip(chosen.model.unet.parameters(), plain.model.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_said_about_a_singular_system_helps() -> None:
    flat = [torch.zeros(3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)]
    with pytest.raises(UsageFault) as caught:
        adversary(flat, flat, lam_r=0.1, regularization="surrogate")
    assert "regularization: regzero or standard" in caught.value.fix
    for regularization in ("regzero", "standard"):
        assert adversary(flat, flat, lam_r=0.1, regularization=regularization).isfinite().all()  # type: ignore[arg-type]
    with pytest.raises(UsageFault) as caught:
        adversary(flat, flat, lam_r=1e-20)
    assert caught.value.fix == "raise lam_r" and adversary(flat, flat, lam_r=1e-3).isfinite().all()
