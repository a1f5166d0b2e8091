"""MACE: its two closed forms against check values, its attention loss, and the three stages through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.harden import phase
from safeguard.harden.engine import build, harden
from safeguard.policy.schema import ResilienceMethod, UnlearnerMethod
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common.attention import attention_masks, cross_attention_maps, resize_masks
from safeguard.unlearn.common.captions import captions_moment
from safeguard.unlearn.common.closed_form import System, guided_change, moment
from safeguard.unlearn.mace import MACE, MACEConfig, attention_loss, fuse_update, timestep_density
from tests.closed_forms import E, G, P, W, close, sines
from tests.contexts import drawn_context, mixed_concepts, names_context, states

QUICK = {"name": "mace", "steps": 2, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))


def mace(concepts: int = 2, **settings: Any) -> MACE:
    context = drawn_context(QUICK, mixed_concepts(concepts))
    return MACE(MACEConfig(**settings), context)


def weights(context: HardeningContext) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in context.model.named_parameters().items()}


# -- closed forms -----------------------------------------------------------------------------------------------------


def refined(mu: float) -> torch.Tensor:
    return W + W @ guided_change(moment(G - E, E), moment(E), moment(P), lam=0.1, es=1, ps=mu)


def test_refinement_has_its_check_values() -> None:
    assert close(
        refined(1e-4),
        [
            [0.374143284, 0.914620372, 0.610481621, -0.602001533],
            [-0.440142033, -0.423789203, 0.088506943, 0.939863892],
            [0.201248780, -0.360606155, -0.726185619, -0.626670542],
        ],
    )
    assert refined(1e-8).sum().item() == pytest.approx(-0.050946802, abs=1e-9), "mu twice, as in the released code"
    assert (refined(1e-8) - refined(1e-4)).abs().max().item() == pytest.approx(5.37e-4, abs=5e-7)


def test_fusion_has_its_check_values() -> None:
    deltas = sines(3, 1, 0.4, 0.1) @ sines(1, 4, 0.6, 0.2), sines(3, 1, 0.8, 0.7) @ sines(1, 4, 1.1, 0.4)
    prior = 1e-4 * moment(P)
    pull = deltas[0] @ moment(E) + deltas[1] @ moment(G)
    found = fuse_update(refined(1e-4), W, pull, prior, System(moment(E) + moment(G) + prior, 0.0))
    assert close(
        found,
        [
            [-0.517220654, 3.133122007, -0.638809292, 0.969287946],
            [-0.725974500, 1.604200141, -0.375680563, 2.310486040],
            [1.011274385, 0.553334874, 0.267100235, -0.125037088],
        ],
    )


def test_one_concept_of_full_rank_is_fused_exactly() -> None:
    states, delta, nothing = sines(4, 6, 0.7, 0.3) + torch.eye(4, 6), sines(3, 4, 0.4, 0.1), torch.zeros(4, 4)
    found = fuse_update(W, W, delta @ moment(states), nothing.double(), System(moment(states), 0.0))
    assert torch.allclose(found, W + delta, atol=1e-10)


def test_without_adapters_fusion_changes_nothing() -> None:
    prior = moment(P)
    assert torch.equal(fuse_update(W, W, torch.zeros_like(W), prior, System(moment(E) + prior, 0.1)), W)


@pytest.fixture
def captions(tmp_path: Path) -> str:
    """A file of captions to preserve."""
    file = tmp_path / "captions.txt"
    file.write_text("a cat in a hat\n\n  ice\n")
    return str(file)


def scatter(context: HardeningContext, texts: list[str]) -> torch.Tensor:
    """sum p p^T over all states of the texts, one state after the other."""
    states = [state for text in texts for state in context.teacher.encode_prompts([text]).states[0].double()]
    return torch.stack([torch.outer(state, state) for state in states]).sum(0)


@pytest.mark.parametrize(("variant", "mu"), [("paper", 0.3), ("released", 0.09)])
@pytest.mark.parametrize("with_captions", [False, True])
def test_both_closed_forms_are_minimisers_written_out(
    variant: str, mu: float, with_captions: bool, captions: str
) -> None:
    """The gradient of either objective, with every state by itself, vanishes at what the method leaves behind."""
    settings = {"variant": variant, "refine_preserve": 0.3, "fuse_preserve": 0.2, "preserve_weight": 5.0, "lam": 0.4}
    neighbour = {"name": "cups", "prompts": ["a cup"]}
    context = drawn_context(QUICK, [mixed_concepts(2)[0] | {"related": [neighbour]}, *mixed_concepts(2)[1:]])
    method = MACE(MACEConfig.model_validate(settings | {"prior": captions if with_captions else ""}), context)
    keep = scatter(context, ["", "hat"]) + 5 * scatter(context, ["a cup"])
    if with_captions:
        keep = keep + scatter(context, ["a cat in a hat", "ice"])
    start = {name: value.detach().clone().double() for name, value in method.parameters().items()}
    method.prepare()
    refined = {name: value.detach().clone().double() for name, value in method.parameters().items()}
    surrounding = []
    for old, new, shared in SURROUNDING:
        x, g = (context.teacher.encode_prompts([text]).states[0].double() for text in (old, new))
        surrounding += [(x[i], g[j]) for i, j in shared]
    for name, weight in refined.items():
        w0 = start[name]
        gradient = sum(torch.outer(weight @ x - w0 @ g, x) for x, g in surrounding)
        gradient = gradient + mu * (weight - w0) @ keep + 0.4 * (weight - w0)
        assert gradient.norm() < 1e-4 * (w0 @ keep).norm(), name
        assert (weight - w0).norm() > 1e-2 * w0.norm(), name

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in method.trained().values():
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator))
    deltas = {
        (course.concept.name, name): (up @ down).detach().double()
        for course in method._courses
        for name, (down, up) in course.adapter.factors.items()
    }
    method.edit()
    for name, value in method.parameters().items():
        weight, w1 = value.detach().double(), refined[name]
        gradient = 0.2 * (weight - start[name]) @ keep + 0.4 * (weight - w1)
        for concept in context.concepts:
            gradient = gradient + (weight - w1 - deltas[concept.name, name]) @ scatter(context, concept.prompt_list)
        assert gradient.norm() < 1e-4 * (start[name] @ keep).norm(), name
        assert (weight - w1).norm() > 1e-2 * w1.norm(), name


SURROUNDING = [
    # start and "a", then the end and all padding of the longer text
    ("a 00", "a z", [(0, 0), (1, 1), *((4 + i, 3 + i) for i in range(12))]),
    ("a 01", "a z", [(0, 0), (1, 1), *((4 + i, 3 + i) for i in range(12))]),
    ("cat in x", "cat", [*((i, i) for i in range(4)), *((7 + i, 4 + i) for i in range(9))]),
    ("hat in x", "hat", [*((i, i) for i in range(4)), *((7 + i, 4 + i) for i in range(9))]),
]
"""Prompt, anchor, and the positions that are paired: all but the words that differ."""


def test_captions_are_summed_once_per_text_encoder(captions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = drawn_context(QUICK, mixed_concepts(1))
    found = captions_moment(context.teacher, captions, context.progress)
    expected = scatter(context, ["a cat in a hat", "ice"])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    asked: list[int] = []
    encode = DiffusionModel.encode_anew
    monkeypatch.setattr(
        DiffusionModel, "encode_anew", lambda self, texts: asked.append(len(texts)) or encode(self, texts)
    )
    assert torch.equal(captions_moment(context.teacher, captions, context.progress), found)
    assert asked == [], "read from the cache"
    with torch.no_grad():
        context.teacher.parts["text_encoder"].get_input_embeddings().weight.mul_(1.1)  # type: ignore[operator]
    assert not torch.allclose(captions_moment(context.teacher, captions, context.progress), found)
    digest = MACE(MACEConfig(prior=captions), context).data_digest
    Path(captions).write_text("ice")
    assert digest and MACE(MACEConfig(prior=captions), context).data_digest != digest
    for content in ("", " \n"):
        Path(captions).write_text(content)
        with pytest.raises(UsageFault, match="holds no caption"):
            MACE(MACEConfig(prior=captions), context)
    with pytest.raises(UsageFault, match="captions cannot be read"):
        MACE(MACEConfig(prior=captions + ".gone"), context)


# -- the descent ------------------------------------------------------------------------------------------------------


def test_the_density_of_timesteps() -> None:
    density = timestep_density(1000)
    assert density.sum().item() == pytest.approx(199.999115, abs=1e-6)
    p = density / density.sum()
    assert p[0].item() == pytest.approx(2.27e-7, abs=5e-10)
    assert [p[t].item() for t in (200, 300, 400)] == pytest.approx([0.002499784, 0.004933093, 0.002499784], abs=1e-9)
    assert (p * torch.arange(1000)).sum().item() == pytest.approx(300.0014, abs=1e-4)
    assert p[200:401].sum().item() == pytest.approx(0.863873, abs=1e-6)


def test_collected_maps_are_those_the_network_uses() -> None:
    context = drawn_context(QUICK, mixed_concepts(1))
    batch = context.forget.rows(torch.tensor([0, 1]), torch.Generator())
    seen: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda module, args, kwargs, output: seen.append((module, args[0], kwargs["encoder_hidden_states"])),
            with_kwargs=True,
        )
        for name, module in context.model.unet.named_modules()
        if name.endswith("attn2")
    ]
    with torch.no_grad(), cross_attention_maps(context.model.unet) as maps:
        plain = context.model.predict(batch.latents, torch.tensor([300, 500]), batch.conditioning)
    for handle in handles:
        handle.remove()
    assert len(maps) == len(seen) == 4
    for found, (module, hidden, text) in zip(maps, seen, strict=True):
        q, k = module.head_to_batch_dim(module.to_q(hidden)), module.head_to_batch_dim(module.to_k(text))
        assert torch.allclose(found.flatten(0, 1), module.get_attention_scores(q, k), atol=1e-6)
    assert torch.equal(plain, context.model.predict(batch.latents, torch.tensor([300, 500]), batch.conditioning))


def test_the_loss_is_the_sum_over_layers_of_norms_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, pixels, 5, generator=generator) for pixels in (64, 16)]
    masks = torch.rand(2, 8, 8, generator=generator) > 0.5
    tokens = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    for squared in (True, False):
        slow = 0.0
        for image in range(2):
            for attention in maps:
                inside = resize_masks(masks, attention.shape[2])[image]
                size = attention[image][:, inside][:, :, tokens[image]].square().sum().item()
                slow += (size if squared else size**0.5) / 2
        assert attention_loss(maps, masks, tokens, squared=squared).item() == pytest.approx(slow, rel=1e-5)
    empty = attention_loss([m.requires_grad_() for m in maps], torch.zeros_like(masks), tokens, squared=False)
    empty.backward()
    assert empty.item() == 0 and maps[0].grad is not None and not maps[0].grad.isnan().any()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_first_step_moves_one_side_of_one_adapter(variant: str) -> None:
    method = mace(variant=variant, batch_size=2)
    method.prepare()
    method.context.step = 1
    method.loss(torch.Generator().manual_seed(0)).backward()
    moved = {
        name for name, factor in method.trained().items() if factor.grad is not None and factor.grad.abs().max() > 0
    }
    expected = {name for name in method.trained() if name.startswith("object-01/") and name.endswith("to_k.weight.up")}
    assert expected and expected <= moved
    assert all(name.startswith("object-01/") and name.endswith(".up") for name in moved)


def test_descent_lowers_attention_and_fusion_keeps_it() -> None:
    method = mace(0, steps=40, learning_rate=2e-2, lam=1e-3, batch_size=2)
    context = method.context

    def attention() -> float:
        """Mean attention of the model as it stands to the words of the style."""
        batch = context.forget.rows(torch.tensor([0, 1]), torch.Generator().manual_seed(0))
        with torch.no_grad(), cross_attention_maps(context.model.unet) as maps:
            context.model.predict(batch.latents, torch.tensor([300, 300]), batch.conditioning)
        return sum(float((attention.mean((1, 2)) * tokens).sum()) for attention in maps)

    method.prepare()
    tokens = method._courses[0].tokens
    before = attention()
    optimizer = torch.optim.Adam(method.trained().values(), lr=2e-2)
    for step in range(40):
        optimizer.zero_grad()
        method.loss(torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    method.edit()
    assert attention() < 0.98 * before


def test_masks_are_the_users_where_given(tmp_path: Path) -> None:
    home = tmp_path / "object-00"
    home.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for name in ("one", "two"):
        Image.fromarray(pixels).save(home / f"{name}.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:4, :] = 255
    Image.fromarray(mask).save(home / "one.mask.png")
    method = MACE(MACEConfig(examples=str(tmp_path)), drawn_context(QUICK, mixed_concepts(1)[:1]))
    method.prepare()
    (course,) = method._courses
    assert course.masks[0, :2].all() and not course.masks[0, 2:].any()
    assert course.masks[1].any(), "without a mask, where the base model attends"
    digest = method.data_digest
    (home / "one.mask.png").unlink()
    assert digest and MACE(method.config, method.context).data_digest != digest
    (home / "one.txt").write_text("something else")
    with pytest.raises(UsageFault, match="none of the prompts"):
        MACE(method.config, method.context).prepare()


def test_a_style_covers_the_whole_image_and_an_object_does_not() -> None:
    method = mace(1)
    method.prepare()
    thing, style = method._courses
    assert style.masks.all() and thing.masks.any() and not thing.masks.all()
    assert thing.tokens[0].tolist() == [False, False, True, True, *[True] * 12], "the number, the end, padding"


def test_attention_masks_find_where_attention_is() -> None:
    context = drawn_context(QUICK, mixed_concepts(1))
    batch = context.forget.rows(torch.tensor([0]), torch.Generator())
    words, t = torch.zeros(1, 16, dtype=torch.bool), torch.tensor([200])
    words[0, 3] = True
    loose, strict = (
        attention_masks(context.teacher, batch.latents, t, batch.conditioning, words, threshold)
        for threshold in (0.0, 1.0)
    )
    assert loose.all() and 0 < strict.sum() < 64


def test_every_concept_needs_an_image() -> None:
    method = mace(3)
    method.context.forget.captions[1] = "a 00"
    with pytest.raises(UsageFault, match="object-01"):
        method.prepare()


# -- the whole --------------------------------------------------------------------------------------------------------


def test_a_hundred_names_and_a_style_through_the_engine() -> None:
    context = drawn_context({**QUICK, "steps": 1}, mixed_concepts(100))
    before = weights(context)
    record = harden(context, "base")
    changed = {name for name, value in weights(context).items() if not torch.equal(value, before[name])}
    assert changed == set(build(UnlearnerMethod(name="mace"), context).parameters())
    assert len(record.series["erasure loss"]) == 101


@torch.no_grad()
def test_a_hundred_names_of_the_reference_model_in_both_closed_forms() -> None:
    """Gradients of both objectives vanish; what surrounds a name moves to its anchor's."""
    context = names_context({"name": "mace"}, kept=44)
    method = MACE(MACEConfig(), context)
    start = {name: value.detach().clone().double() for name, value in method.parameters().items()}
    method.prepare()
    refined = {name: value.detach().clone().double() for name, value in method.parameters().items()}
    tokenizer, length = context.model.pipeline.tokenizer, context.model.empty.states.shape[1]
    kept = torch.cat([states(context, text) for text in ["", *context.policy.retain[0].prompt_list]])
    prior = kept.T @ kept
    anchor, words = states(context, "an emoji"), tokenizer("an emoji").input_ids
    surrounding, wanted = [], []
    for concept in context.concepts:
        (prompt,) = concept.prompt_list
        ids, own = tokenizer(prompt).input_ids, states(context, prompt)
        shift, same_article = len(ids) - len(words), ids[1] == words[1]
        pairs = [(0, 0), *([(1, 1)] if same_article else []), *((i, i - shift) for i in range(len(ids) - 2, length))]
        surrounding.append(own[[i for i, _ in pairs]])
        wanted.append(anchor[[j for _, j in pairs]])
    x, g = torch.cat(surrounding), torch.cat(wanted)
    for name, w1 in refined.items():
        w0 = start[name]
        gradient = (x @ w1.T - g @ w0.T).T @ x + (w1 - w0) @ prior + 0.5 * (w1 - w0)
        away = x @ w0.T - g @ w0.T
        assert gradient.norm() < 1e-4 * (away.T @ x).norm(), name
        assert (x @ w1.T - g @ w0.T).norm() < 0.8 * away.norm(), name

    generator = torch.Generator().manual_seed(1)
    for factor in method.trained().values():
        factor.copy_(0.1 * torch.randn(factor.shape, generator=generator))
    factors = [course.adapter.factors for course in method._courses]
    method.edit()
    own = [states(context, concept.prompt_list[0]) for concept in context.concepts]
    assert len(factors) == len(own) == 100
    for name, value in method.parameters().items():
        weight, w1 = value.detach().double(), refined[name]
        gradient = (weight - start[name]) @ prior + 0.5 * (weight - w1)
        size = torch.zeros_like(gradient)
        for e, of in zip(own, factors, strict=True):
            delta = (of[name][1] @ of[name][0]).double()
            gradient += (weight - w1 - delta) @ (e.T @ e)
            size += delta @ (e.T @ e)
        assert gradient.norm() < 1e-4 * size.norm(), name


def test_a_killed_run_continues_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    concepts = mixed_concepts(2)
    whole = drawn_context(QUICK, concepts)
    harden(whole, "whole")
    monkeypatch.setattr(phase, "CHECKPOINT_SECONDS", 0.0)
    step, calls = torch.optim.Adam.step, 0

    def interrupted(self: torch.optim.Adam, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harden(drawn_context(QUICK, concepts), "killed")
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    resumed = drawn_context(QUICK, concepts)
    harden(resumed, "killed")
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


OBJECTIVES = {
    "hypergradient norm": {"name": "resalign", "steps": 1, "distribution": {"steps": [2]}},
    "meta gradient norm": {"name": "meta-unlearning", "steps": 1, "learning_rate": 1e-3},
    "ascent gradient norm": {"name": "imma", "steps": 1, "learning_rate": 1e-3, "training": {"steps": 2}},
}
"""By what each writes into the record."""


@pytest.mark.parametrize("unlearner", [QUICK, {"name": "rece", "epochs": 1}], ids=["mace", "rece"])
@pytest.mark.parametrize("series", OBJECTIVES)
def test_an_objective_comes_after_the_closed_form(unlearner: dict[str, Any], series: str) -> None:
    alone, hardened = (drawn_context(unlearner, mixed_concepts(1)) for _ in range(2))
    harden(alone, "base")
    hardened.images = {"concept": hardened.forget, "retain": hardened.forget}.get
    record = harden(hardened, "base", objective=ResilienceMethod(**OBJECTIVES[series]))
    told = record.series[series]
    assert len(told) == (5 if unlearner is QUICK else 1) and told[-1] is not None and told[-1] > 0
    after = weights(hardened)
    assert any(not torch.equal(value, after[name]) for name, value in weights(alone).items())
    assert all(value.isfinite().all() for value in after.values())
