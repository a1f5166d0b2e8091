"""Suites load strictly, the shipped ones are complete, and they are found in a checkout and in a wheel."""

from __future__ import annotations

import shutil

import pytest

from safeguard import resources
from safeguard.attack.finetune import FineTuneConfig
from safeguard.errors import EnvironmentFault, PolicyFault, UsageFault
from safeguard.policy.suite import Suite, load_suite, suite_digest
from safeguard.probe.units import make_probe
from safeguard.registry import finetuners

SUITE = """\
name: mine
probes:
  - {id: released, kind: released, title: As released}
  - id: other
    kind: finetune
    title: Full fine-tune
    data: related
    settings: {steps: 10, anything: [goes, here]}
"""
IDS = [
    "released",
    "benign-full",
    "benign-lora",
    "related-full",
    "related-lora",
    "malicious-full",
    "malicious-lora",
]


def load_text(tmp_path, text: str) -> Suite:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path)


QUICK = {
    "benign-full": [100],
    "benign-lora": [100],
    "related-full": [50, 100],
    "related-lora": [100],
    "malicious-full": [50, 100, 150, 300],
    "malicious-lora": [50, 100],
}


@pytest.mark.parametrize(
    ("name", "checkpoints"), [("quickstart", QUICK), ("standard", {name: [10, 25, 50, 100, 200] for name in QUICK})]
)
def test_shipped_suites(name: str, checkpoints: dict[str, list[int]]):
    suite = load_suite(name)
    assert suite.name == name
    assert [spec.id for spec in suite.probes] == IDS
    data = {"released": "none", "benign": "retain", "related": "related", "malicious": "concept"}
    for spec in suite.probes:
        family, _, method = spec.id.partition("-")
        assert spec.data == data[family]
        config = make_probe(spec).config
        if isinstance(config, FineTuneConfig):
            assert config.checkpoints == checkpoints[spec.id]
            assert (config.steps, config.batch_size) == (config.checkpoints[-1], 4)
            assert config.method.name == method
            assert config.learning_rate == {"full": 5e-5, "lora": 1e-3}[method]
            finetuners.get(method).Config(**config.method.settings)


def test_a_file_of_ones_own(tmp_path):
    suite = load_text(tmp_path, SUITE)
    assert suite.probes[0].data == "none"
    assert suite.probes[1].settings == {"steps": 10, "anything": ["goes", "here"]}
    assert load_suite(str(tmp_path / "mine.yaml")) == suite


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id: other", "id: released", "3:3: probes: two probes share the id 'released'"),
        ("id: other", "id: Other", "4:9: probes[1].id: string should match pattern"),
        ("id: other", "id: -other", "4:9: probes[1].id: string should match pattern"),
        ("data: related", "dta: related", "7:5: probes[1].dta: unknown field; did you mean 'data'?"),
        ("data: related", "data: all", "7:11: probes[1].data: should be 'none', 'concept', 'related' or 'retain'"),
        ("kind: finetune", "kind: fintune", "5:11: probes[1].kind: unknown probe 'fintune'; did you mean 'finetune'?"),
        ("name: mine", "version: 2\nname: mine", "1:10: version: should be 1, not 2"),
    ],
)
def test_mistakes_have_their_place(tmp_path, old: str, new: str, message: str):
    with pytest.raises(PolicyFault) as caught:
        load_text(tmp_path, SUITE.replace(old, new))
    assert f"{tmp_path / 'mine.yaml'}:{message}" in str(caught.value)


def test_no_probes(tmp_path):
    with pytest.raises(PolicyFault, match="should have 1 or more entries, not 0"):
        load_text(tmp_path, "name: mine\nprobes: []\n")


def test_unknown_name_suggests_a_shipped_one():
    with pytest.raises(UsageFault, match="did you mean 'standard'"):
        load_suite("standart")


def test_missing_file():
    with pytest.raises(PolicyFault, match="cannot read the file"):
        load_suite("./absent.yaml")


def test_digest_depends_on_meaning_alone(tmp_path):
    digest = suite_digest(load_text(tmp_path, SUITE))
    assert len(digest) == 64
    assert suite_digest(load_text(tmp_path, "# comment\nversion: 1\n" + SUITE)) == digest
    assert suite_digest(load_text(tmp_path, SUITE.replace("steps: 10", "steps: 11"))) != digest


def test_suites_are_found_inside_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "safeguard"
    shutil.copytree(resources.resource_dir("probes"), package / "_resources" / "probes")
    (package.parent / "probes").mkdir()  # a stranger's folder
    monkeypatch.setattr(resources, "__file__", str(package / "resources.py"))
    assert resources.resource_dir("probes") == package / "_resources" / "probes"
    assert [spec.id for spec in load_suite("quickstart").probes] == IDS
    with pytest.raises(EnvironmentFault, match="policies/ is missing"):
        resources.resource_dir("policies")
