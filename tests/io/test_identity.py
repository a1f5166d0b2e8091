"""A model against its base: what differs is told by component, and refused where nobody declares it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeguard.certify.same_model import same_model
from safeguard.errors import ModelFault
from safeguard.io.identity import check_base, components
from safeguard.results.control import Component
from safeguard.results.hardening import HardeningRecord
from tests.harden.test_written import record_of
from tests.io.test_opening import older
from tests.io.test_preflight import edit
from tests.tiny import changed_copy

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def hardened(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with another denoiser; do not write to it."""
    return changed_copy(pristine, tmp_path_factory.mktemp("hardened") / "model")


@pytest.fixture
def model(hardened: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hardened, tmp_path / "model"))


def rewrite(model: Path, component: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = model / component / f"{WEIGHTS[component]}.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def overwritten(model: Path) -> None:
    """Ten rows of the token embedding, as in a model that hides a word."""

    def rows(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (name,) = (name for name in tensors if name.endswith("token_embedding.weight"))
        tensors[name][:10] = 0
        return tensors

    rewrite(model, "text_encoder", rows)


def swapped_words(model: Path) -> None:
    path = model / "tokenizer/tokenizer.json"
    value = json.loads(path.read_text())
    words = value["model"]["vocab"]
    words["ax"], words["axe</w>"] = words["axe</w>"], words["ax"]
    path.write_text(json.dumps(value))


def old_files(model: Path, **words: int) -> None:
    """The files that older libraries read, beside the one that is read here."""
    rules = json.loads((model / "tokenizer/tokenizer.json").read_text())["model"]
    (model / "tokenizer/vocab.json").write_text(json.dumps(rules["vocab"] | words))
    merges = "\n".join(" ".join(pair) for pair in rules["merges"])
    (model / "tokenizer/merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (model / "tokenizer/special_tokens_map.json").write_text(json.dumps({"bos_token": "<|startoftext|>"}))


def emptied(model: Path) -> None:
    """The token embedding in whole numbers: all of it is zero, and so is the base's when it is rounded alike."""

    def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (name,) = (name for name in tensors if name.endswith("token_embedding.weight"))
        return tensors | {name: tensors[name].to(torch.int8)}

    rewrite(model, "text_encoder", whole)


DIFFERENT: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "text encoder": (overwritten, "text_encoder", "1 of 36 tensors differ"),
    "text encoder in whole numbers": (emptied, "text_encoder", "1 of 36 tensors differ"),
    "autoencoder": (
        lambda m: rewrite(m, "vae", lambda tensors: {name: value * 1.001 for name, value in tensors.items()}),
        "vae",
        "tensors differ",
    ),
    "scale of the autoencoder": (lambda m: edit(m / "vae/config.json", scaling_factor=0.2), "vae", "scaling_factor"),
    "layer of the text": (
        lambda m: edit(m / "text_encoder/config.json", hidden_act="gelu"),
        "text_encoder",
        "hidden_act",
    ),
    "heads": (lambda m: edit(m / "unet/config.json", attention_head_dim=8), "unet", "attention_head_dim"),
    "noise schedule": (
        lambda m: edit(m / "scheduler/scheduler_config.json", beta_end=0.02),
        "scheduler",
        "beta_end",
    ),
    "vocabulary": (swapped_words, "tokenizer", "vocabulary"),
    "merges": (
        lambda m: edit(
            m / "tokenizer/tokenizer.json",
            model=json.loads((m / "tokenizer/tokenizer.json").read_text())["model"] | {"merges": []},
        ),
        "tokenizer",
        "merges",
    ),
    "context": (lambda m: edit(m / "tokenizer/tokenizer_config.json", model_max_length=8), "tokenizer", "model_max"),
    "padding": (lambda m: edit(m / "tokenizer/tokenizer_config.json", pad_token="!"), "tokenizer", "pad_token"),
    "old vocabulary": (lambda m: old_files(m, **{"axe</w>": 0}), "tokenizer", "vocab.json"),
    "old merges": (
        lambda m: (old_files(m), (m / "tokenizer/merges.txt").write_text("#version: 0.2\n"))[0],
        "tokenizer",
        "merges.txt",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_nobody_declares_is_refused_and_what_the_policy_allows_is_listed(
    case: str, model: Path, pristine: Path
) -> None:
    change, name, what = DIFFERENT[case]
    change(model)
    with pytest.raises(ModelFault, match=rf"'{name}' is not the base model's: .*{what}") as caught:
        components(model, pristine, record=None)
    assert caught.value.exit_code == 2 and caught.value.where == str(model / name)
    assert f"may_differ: [{name}]" in caught.value.fix
    listed = {each.name: each for each in components(model, pristine, record=None, allowed=[name])}
    assert listed[name].differs and listed[name].declared and "the policy lets it differ" in listed[name].what
    assert {each for each, found in listed.items() if found.differs} == {"unet", name}


def test_the_denoiser_of_a_model_without_a_record_may_differ(model: Path, pristine: Path) -> None:
    found = {each.name: each for each in components(model, pristine, record=None)}
    assert found.keys() == {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "pipeline"}
    assert [name for name, each in found.items() if each.differs] == ["unet"]
    assert found["unet"].what.endswith("no record says how")


def hub_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As older libraries wrote a text encoder."""
    return {f"text_model.{name}": value for name, value in tensors.items()} | {
        "text_model.embeddings.position_ids": torch.arange(16)[None]
    }


def halved(model: Path) -> None:
    for part in ("vae", "text_encoder"):
        rewrite(model, part, lambda tensors: {name: value.half() for name, value in tensors.items()})


SAME: dict[str, Callable[[Path], None]] = {
    "half precision": halved,
    "older names": lambda m: rewrite(m, "text_encoder", hub_names),
    "older names of all": older,
    "files for older libraries": old_files,
    "a note": lambda m: (m / "README.md").write_text("a note") and None,
    "where it was": lambda m: edit(m / "unet/config.json", _name_or_path="elsewhere", _diffusers_version="0.30.0"),
    "defaults that are written out": lambda m: edit(m / "scheduler/scheduler_config.json", rescale_betas_zero_snr=...),
}


@pytest.mark.parametrize("case", SAME)
def test_what_is_the_same_in_other_words_does_not_differ(case: str, model: Path, pristine: Path) -> None:
    SAME[case](model)
    assert [each.name for each in components(model, pristine, record=None) if each.differs] == ["unet"]


def test_a_change_that_the_bases_type_could_not_hold_is_a_change(
    hardened: Path, pristine: Path, tmp_path: Path
) -> None:
    """A model may be coarser than its base; what it holds in more digits than its base was put there."""
    base, model = (Path(shutil.copytree(each, tmp_path / name)) for each, name in ((pristine, "b"), (hardened, "m")))
    halved(base)
    halved(model)
    rewrite(model, "vae", lambda tensors: {name: value.float() for name, value in tensors.items()})
    assert [each.name for each in components(model, base, record=None) if each.differs] == ["unet"]
    rewrite(model, "vae", lambda tensors: {name: value * (1 + 1e-5) for name, value in tensors.items()})
    with pytest.raises(ModelFault, match="'vae' is not the base model's"):
        components(model, base, record=None)


def test_the_base_itself_and_every_copy_of_it_is_refused(pristine: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pristine, tmp_path / "copy"))
    (copy / "README.md").write_text("not the base at all")
    rewrite(copy, "unet", lambda tensors: {name: value.half() for name, value in tensors.items()})
    (tmp_path / "link").symlink_to(pristine)
    for same in (pristine, copy, tmp_path / "link"):
        with pytest.raises(ModelFault, match="the model is its own base: nothing was erased") as caught:
            components(same, pristine, record=None)
        assert caught.value.exit_code == 2 and caught.value.fix


def recorded(changed: int = 208, names: tuple[str, ...] = ("unet",)) -> HardeningRecord:
    value: Any = record_of()
    value["checks"]["tensors"] |= {"changed": changed, "components": list(names)}
    return HardeningRecord.model_validate(value)


def test_a_record_declares_what_it_says_was_changed(model: Path, pristine: Path) -> None:
    overwritten(model)
    found = components(model, pristine, record=recorded(209, ("text_encoder", "unet")))
    said = {each.name: each.what for each in found if each.differs}
    assert said["text_encoder"].endswith("declared by the hardening record")
    with pytest.raises(ModelFault, match="'text_encoder' is not the base model's"):
        components(model, pristine, record=recorded(208))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (recorded(209, ("text_encoder", "unet")), "weights of text_encoder were changed"),
        (recorded(12), "12 tensors were changed, and 208 differ"),
    ],
)
def test_a_record_of_another_model_is_refused(
    model: Path, pristine: Path, record: HardeningRecord, reason: str
) -> None:
    with pytest.raises(ModelFault, match=reason) as caught:
        components(model, pristine, record=record)
    assert caught.value.where.endswith("hardening.json")


def test_a_record_of_another_base_is_refused_with_both_digests(model: Path, pristine: Path) -> None:
    with pytest.raises(ModelFault, match=r"with the digest 1;.* has 2\n") as caught:
        check_base(recorded(), "2", model, pristine)
    assert caught.value.exit_code == 2
    check_base(recorded(), "1", model, pristine)
    check_base(None, "2", model, pristine)


def extra(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {name: torch.ones(2)}


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("unet", "ema.conv_in.weight"),
        ("text_encoder", "text_model.final_layer_norm.bias"),  # once more, under the name of older libraries
        ("vae", "attn2.eraser.down.weight"),
    ],
)
def test_tensors_that_no_module_takes_are_refused(model: Path, pristine: Path, component: str, name: str) -> None:
    rewrite(model, component, extra(name))
    with pytest.raises(ModelFault, match="tensors that are not opened here") as caught:
        components(model, pristine, record=None)
    assert name in str(caught.value) and caught.value.where == str(model / component)


def test_a_safety_checker_is_listed_as_no_part_of_the_claim(model: Path, pristine: Path) -> None:
    (model / "safety_checker").mkdir()
    save_file({"concept_embeds": torch.ones(2)}, model / "safety_checker/model.safetensors")
    *_, last = components(model, pristine, record=None, unopened=["safety_checker/model.safetensors"])
    assert last == Component(
        name="safety_checker",
        differs=True,
        declared=True,
        what="not the base model's; not opened, and no part of any claim",
    )


def test_the_control_has_a_finding_for_every_component() -> None:
    same = Component(name="vae", differs=False, declared=True, what="as in the base model")
    declared = Component(name="unet", differs=True, declared=True, what="12 of 20 tensors differ")
    strange = Component(name="tokenizer", differs=True, declared=False, what="differs in vocabulary")
    found = same_model([same, declared, strange])
    assert [(each.about, each.passed, each.problem) for each in found] == [
        ("vae", True, "as in the base model"),
        ("unet", True, "12 of 20 tensors differ"),
        ("tokenizer", False, "differs in vocabulary"),
    ]
    (missing,) = same_model([])
    assert not missing.passed
