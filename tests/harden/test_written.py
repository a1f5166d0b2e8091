"""What a hardening writes: the types of the base model, its companions, and a record that is read back strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from safeguard import api
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.storage import cast_to_stored, round_to_stored
from safeguard.errors import ModelFault, TrainingFault
from safeguard.harden.control import unlearned_only
from safeguard.io.formats import read_header
from safeguard.io.identity import components
from safeguard.io.manifest import manifest
from safeguard.io.opening import open_directory
from safeguard.policy.loading import load_policy
from safeguard.progress import SilentProgress
from safeguard.registry import unlearners
from safeguard.results import json_schema
from safeguard.results.hardening import HardeningRecord, read_record
from tests.contracts.runs import tiny
from tests.harden.conftest import write_policy
from tests.io.test_opening import older
from tests.io.test_preflight import edit
from tests.tiny import save_tiny, tiny_pipeline

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def types(directory: Path) -> dict[str, str]:
    """Type on disk of every tensor."""
    return {
        f"{part}.{name}": slot.dtype
        for part, file in WEIGHTS.items()
        for name, slot in read_header(directory / file).items()
    }


def store(directory: Path, part: str, dtype: torch.dtype, only: str = "") -> None:
    path = directory / WEIGHTS[part]
    tensors = {name: value.to(dtype) if only in name else value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


class TestTypes:
    def test_every_tensor_keeps_the_type_it_was_stored_in(self, desk: Path) -> None:
        store(desk / "base", "unet", torch.float16)
        store(desk / "base", "vae", torch.bfloat16)
        store(desk / "base", "text_encoder", torch.float16, only="self_attn")
        hardened = api.harden(desk / "policy.yaml", desk / "hardened").path
        assert types(hardened) == types(desk / "base")
        assert set(types(hardened).values()) == {"F16", "BF16", "F32"}
        assert (hardened / WEIGHTS["unet"]).stat().st_size < 1.05 * (desk / "base" / WEIGHTS["unet"]).stat().st_size
        for part in ("vae", "text_encoder"):
            before, after = (load_file(folder / WEIGHTS[part]) for folder in (desk / "base", hardened))
            assert all(torch.equal(value, after[name]) for name, value in before.items())

    def test_what_is_checked_is_what_is_written(self, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The checks see values that half precision can hold: those of the files."""
        seen: dict[str, torch.Tensor] = {}
        check = api.engine.check_images

        def look(base: DiffusionModel, hardened: DiffusionModel, *arguments: Any) -> Any:
            seen.update({name: value.detach().clone() for name, value in hardened.named_parameters().items()})
            return check(base, hardened, *arguments)

        monkeypatch.setattr(api.engine, "check_images", look)
        store(desk / "base", "unet", torch.float16)
        result = api.harden(desk / "policy.yaml", desk / "hardened")
        written = DiffusionModel(open_directory(result.path).pipeline).named_parameters()
        assert all(torch.equal(value, written[name]) for name, value in seen.items())
        assert any(note.startswith("the weights were rounded to float16") for note in result.record["notes"])

    def test_a_change_that_half_precision_cannot_hold_is_none(self, desk: Path) -> None:
        store(desk / "base", "unet", torch.float16)
        unlearner = {"name": "esd", "steps": 1, "trajectory_steps": 2, "pool": 2, "learning_rate": 1e-9}
        write_policy(desk, harden={"unlearner": unlearner, "images": 3})
        with pytest.raises(TrainingFault, match="changed nothing"):
            api.harden(desk / "policy.yaml", desk / "hardened")

    def test_the_unlearned_control_is_stored_like_the_base(self, desk: Path) -> None:
        store(desk / "base", "unet", torch.float16)
        write_policy(desk, harden={"unlearner": {"name": "uce"}, "images": 3})
        base = open_directory(desk / "base")
        policy = load_policy(desk / "policy.yaml")
        control = unlearned_only(policy, desk / "base", base.digest, "cpu", SilentProgress())
        assert types(control) == types(desk / "base")
        hardened = api.harden(desk / "policy.yaml", desk / "hardened").path
        assert (control / WEIGHTS["unet"]).read_bytes() == (hardened / WEIGHTS["unet"]).read_bytes()

    def test_rounding_then_casting_loses_nothing(self) -> None:
        pipeline: Any = tiny_pipeline()
        stored = {f"unet.{name}": torch.float16 for name in pipeline.unet.state_dict()}
        untouched = {name: value.clone() for name, value in pipeline.vae.state_dict().items()}
        assert round_to_stored(pipeline, stored) == [torch.float16]
        rounded = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
        assert {value.dtype for value in rounded.values()} == {torch.float32}
        assert round_to_stored(pipeline, stored) == [torch.float16]
        cast_to_stored(pipeline, stored)
        assert all(torch.equal(value.float(), rounded[name]) for name, value in pipeline.unet.state_dict().items())
        assert {value.dtype for value in pipeline.unet.state_dict().values()} == {torch.float16}
        assert all(torch.equal(value, untouched[name]) for name, value in pipeline.vae.state_dict().items())


def published(base: Path) -> None:
    """Give a model what published ones have beside their weights."""
    (base / "LICENSE.md").write_text("CreativeML Open RAIL-M\n")
    (base / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model card é\n")
    (base / "NOTICE").write_text("A notice.\n")
    (base / "samples").mkdir()
    (base / "samples" / "grid.png").write_bytes(b"not looked at")
    CLIPImageProcessor().save_pretrained(base / "feature_extractor")
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 16, "patch_size": 8}
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    config = CLIPConfig(vision_config=vision, projection_dim=8)
    StableDiffusionSafetyChecker(config).save_pretrained(base / "safety_checker")
    edit(
        base / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )


class TestCompanions:
    def test_terms_and_a_safety_checker_are_carried_over(self, desk: Path) -> None:
        published(desk / "base")
        (desk / "base" / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(
            (desk / "base" / WEIGHTS["unet"]).read_bytes()
        )
        result = api.harden(desk / "policy.yaml", desk / "hardened")
        before, after = manifest(desk / "base"), manifest(result.path)
        carried = [name for name in before if name.startswith(("safety_checker/", "feature_extractor/"))]
        assert len(carried) == 3
        for name in ("LICENSE.md", "README.md", "NOTICE", *carried):
            assert after[name] == before[name]
        index = json.loads((result.path / "model_index.json").read_text())
        assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
        assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"] and index["requires_safety_checker"]
        assert "samples/grid.png" not in after
        notes = "\n".join(result.record["notes"])
        assert (
            "carried over from the base model, byte for byte: LICENSE.md, NOTICE, README.md, feature_extractor, "
            in notes
        )
        assert "left out of what the base model's directory holds: samples/grid.png, unet/diffusion_pytorch" in notes
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(result.path)
        assert type(pipeline.safety_checker).__name__ == "StableDiffusionSafetyChecker"
        assert open_directory(result.path).files == after

    def test_a_component_without_its_files_is_said_to_be_left_out(self, desk: Path) -> None:
        edit(desk / "base" / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
        result = api.harden(desk / "policy.yaml", desk / "hardened")
        index = json.loads((result.path / "model_index.json").read_text())
        assert index["safety_checker"] == [None, None]
        assert "left out of what the base model's directory holds: safety_checker" in result.record["notes"]

    def test_of_a_model_without_any_nothing_is_said(self, desk: Path) -> None:
        result = api.harden(desk / "policy.yaml", desk / "hardened")
        again = api.harden(write_policy(desk, model=str(result.path)), desk / "twice")
        said = "\n".join(result.record["notes"] + again.record["notes"])
        assert "carried over" not in said and "left out" not in said, "records of ours are no companions either"

    def test_a_licence_that_changes_meanwhile_ends_the_run(self, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        published(desk / "base")
        harden = api.engine.harden

        def edit_meanwhile(*arguments: Any, **settings: Any) -> Any:
            (desk / "base" / "LICENSE.md").write_text("other terms")
            return harden(*arguments, **settings)

        monkeypatch.setattr(api.engine, "harden", edit_meanwhile)
        with pytest.raises(ModelFault, match=r"changed while it was hardened \(LICENSE.md\)"):
            api.harden(desk / "policy.yaml", desk / "hardened")
        assert not (desk / "hardened").exists()


def record_of(**changes: Any) -> dict[str, Any]:
    """A record, as JSON."""
    images = {"prompts": ["a cat"], "base": {"blank": 0}, "hardened": {"blank": 0}, "flawed_before": 0, "broken": 0}
    return {
        "version": 1,
        "policy": "tiny",
        "policy_digest": "0",
        "base_model": "base",
        "base_digest": "1",
        "unlearner": {"name": "esd", "steps": 2},
        "resilience": {"name": "none"},
        "seed": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "environment": {"torch": "2"},
        "series": {"erasure loss": [1.0, None]},
        "phases": [["erase with esd", 2]],
        "notes": [],
        "checks": {
            "tensors": {"changed": 1, "components": ["unet"], "unchanged": [], "untouched": 2},
            "images": images,
        },
        "seconds": 1.5,
        "cpu_seconds": 1.5,
        "peak_bytes": 10,
        "processes": 1,
        "micro_batch": None,
        "halved": 0,
    } | changes


class TestRecord:
    def test_reads_what_was_written(self, desk: Path) -> None:
        result = api.harden(desk / "policy.yaml", desk / "hardened")
        record = read_record(result.path)
        assert record is not None and record.model_dump(mode="json") == result.record
        assert record.unlearner.name == "esd" and record.series["erasure loss"] and record.checks.tensors.changed
        assert (result.path / "hardening.json").read_text() == record.text()

    @pytest.mark.parametrize("unlearner", ["esd", "advunlearn"])
    def test_it_names_the_components_that_changed_and_counts_as_many_tensors_as_differ(
        self, desk: Path, unlearner: str
    ) -> None:
        """Of a base as published: old names, several types; compared file with file, as a certification does."""
        older(desk / "base")
        store(desk / "base", "unet", torch.float16)
        store(desk / "base", "vae", torch.bfloat16)
        write_policy(desk, harden={"unlearner": tiny(unlearners, unlearner), "images": 3})
        result = api.harden(desk / "policy.yaml", desk / "hardened")
        record = read_record(result.path)
        assert record is not None
        assert record.components == [{"esd": "unet", "advunlearn": "text_encoder"}[unlearner]]
        found = components(result.path, desk / "base", record=record)
        assert [each.name for each in found if each.differs] == record.components

    def test_none_where_there_is_none(self, tmp_path: Path) -> None:
        assert read_record(save_tiny(tmp_path / "m")) is None

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"series": ...}, "series"),
            ({"series": {"loss": ["high"]}}, "series.loss.0"),
            ({"seconds": "12"}, "seconds"),
            ({"seed": 1.5}, "seed"),
            ({"unlearner": {}}, "unlearner.name"),
            ({"checks": {}}, "checks.tensors"),
            ({"version": 2}, "version"),
            ({"remark": "new"}, "remark"),
        ],
    )
    def test_a_record_that_is_none_is_refused_by_file_and_field(
        self, tmp_path: Path, change: dict[str, Any], field: str
    ) -> None:
        value = {name: item for name, item in record_of(**change).items() if item is not ...}
        (tmp_path / "hardening.json").write_text(json.dumps(value))
        with pytest.raises(ModelFault, match=f"not a hardening record: {field}: ") as caught:
            read_record(tmp_path)
        assert caught.value.where.endswith("hardening.json") and caught.value.exit_code == 2 and caught.value.fix

    @pytest.mark.parametrize("content", [b"", b"{half", b"[]", b"\xff\xfe"])
    def test_what_is_no_json_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "hardening.json").write_bytes(content)
        with pytest.raises(ModelFault, match="not a hardening record"):
            read_record(tmp_path)

    def test_certify_reads_it_before_anything_is_run(self, desk: Path) -> None:
        hardened = api.harden(desk / "policy.yaml", desk / "hardened").path
        record = json.loads((hardened / "hardening.json").read_text())
        del record["series"]
        (hardened / "hardening.json").write_text(json.dumps(record))
        with pytest.raises(ModelFault, match="series"):
            api.certify(hardened, out=desk / "run")
        assert not (desk / "run").exists()

    def test_every_valid_record_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "hardening.json").write_text(json.dumps(record_of()))
        assert read_record(tmp_path) == HardeningRecord.model_validate(record_of())

    def test_the_schema_file_is_up_to_date(self) -> None:
        schema = json_schema.path("hardening").read_text(encoding="utf-8")
        assert schema == json_schema.generate("hardening"), "run `python -m safeguard.results.json_schema`"
