"""Paths in a policy are those of its own file, wherever the command is run; its digest does not know where it lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeguard.policy.loading import load_policy, load_policy_text, policy_digest, resolved_yaml
from safeguard.policy.schema import Policy


def write(folder: Path, **changes: Any) -> Path:
    """A policy that names its model, its suite and its detector by relative paths; all lie beside it."""
    data = {
        "version": 1,
        "name": "relative",
        "model": "base",
        "concepts": [
            {
                "name": "axes",
                "kind": "object",
                "prompts": ["an axe"],
                "labels": ["axe"],
                "detector": {"name": "clip", "checkpoint": "models/clip"},
            }
        ],
        "retain": [{"name": "cats", "prompts": ["a cat"], "labels": ["cat"]}],
        "harden": {"unlearner": {"name": "esd"}},
        "requirements": [{"probe": "*", "max_rate": 0.1}],
        "utility": {"metrics": [{"name": "clip-score", "checkpoint": "models/clip", "margin": 0.1}]},
        "certification": {"suite": "my-suite.yaml"},
    }
    for name in ("base", "models/clip"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(data | changes))
    return path


def places(policy: Policy) -> list[str]:
    (concept,), (metric,) = policy.concepts, policy.utility.metrics
    settings = [method.settings["checkpoint"] for method in (concept.detector, metric)]
    return [policy.model, policy.certification.suite, *settings]


def test_relative_paths_are_those_of_the_policys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, elsewhere = write(tmp_path / "mine"), tmp_path / "elsewhere"
    write(elsewhere)  # what lies in the working directory has the same names
    monkeypatch.chdir(elsewhere)
    mine = (tmp_path / "mine").resolve()
    expected = [mine / "base", mine / "my-suite.yaml", mine / "models" / "clip", mine / "models" / "clip"]
    assert places(load_policy(path)) == list(map(str, expected))
    monkeypatch.chdir(tmp_path / "mine")
    assert places(load_policy(Path("policy.yaml"))) == list(map(str, expected))


@pytest.mark.parametrize("model", ["./owner/name", "../base", "base", "some folder"])
def test_what_is_a_path_is_one_though_nothing_lies_there(tmp_path: Path, model: str) -> None:
    path = write(tmp_path / "mine", model=model)
    assert load_policy(path).model == str((tmp_path / "mine" / model).resolve())


@pytest.mark.parametrize("model", ["reference", "owner/name"])
def test_names_stay_names(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "reference").mkdir(parents=True)
    path = write(tmp_path / "mine", model=model, certification={"suite": "standard"})
    (tmp_path / "cwd" / "owner" / "name").mkdir(parents=True)
    (tmp_path / "mine" / "standard").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    loaded = load_policy(path)
    assert (loaded.model, loaded.certification.suite) == (model, "standard")


def test_an_absolute_path_is_left_alone_and_what_is_written_reads_back(tmp_path: Path) -> None:
    loaded = load_policy(write(tmp_path / "mine", model=str(tmp_path / "base")))
    assert loaded.model == str(tmp_path / "base")
    assert load_policy_text(resolved_yaml(loaded)) == loaded, "a policy in a model directory says the same anywhere"


def test_the_digest_does_not_know_where_things_lie(tmp_path: Path) -> None:
    here = load_policy(write(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    there = load_policy(tmp_path / "there" / "policy.yaml")
    assert there.model != here.model and policy_digest(there) == policy_digest(here)
    other = load_policy(write(tmp_path / "there", model="./another"))
    assert policy_digest(other) != policy_digest(here)
