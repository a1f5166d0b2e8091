"""``safeguard policy`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safeguard.cli import run
from safeguard.policy.json_schema import policy_json_schema
from safeguard.policy.loading import load_policy, load_policy_text


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "new" / "policy.yaml"
    assert run(["policy", "init", "--name", "demo", "--concept", "axe", "--out", str(path)]) == 0
    capsys.readouterr()
    return path


def test_init_then_check(written, capsys):
    assert run(["policy", "check", str(written)]) == 0
    assert capsys.readouterr().out == f"{written}: OK (1 concept, 44 prompts, 6 requirements)\n"


def test_init_keeps_what_is_there(written, capsys):
    written.write_text("mine", encoding="utf-8")
    assert run(["policy", "init", "--out", str(written)]) == 2
    assert "--force" in capsys.readouterr().err
    assert written.read_text(encoding="utf-8") == "mine"
    assert run(["policy", "init", "--out", str(written), "--force"]) == 0
    assert load_policy(written).name == "my-policy"


def refused(written, right, wrong, capsys) -> str:
    """What ``policy check`` says of the file with one thing made wrong."""
    text = written.read_text(encoding="utf-8")
    assert right in text
    written.write_text(text.replace(right, wrong), encoding="utf-8")
    assert run(["policy", "check", str(written)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_check_names_the_mistake(written, capsys):
    said = refused(written, "    kind: object", "    kid: object", capsys)
    assert "concepts[0].kid: unknown field; did you mean 'kind'?" in said
    assert f"{written}:" in said


def test_check_looks_into_the_settings_of_methods(written, capsys):
    said = refused(written, "name: esd", "name: esd\n    etta: 3", capsys)
    assert "harden.unlearner.etta: unknown" in said and "'eta'" in said


def test_check_finds_a_requirement_that_no_probe_matches(written, capsys):
    said = refused(written, "malicious-*", "malicous-*", capsys)
    assert "requirements[" in said and "no probe of suite 'standard' matches" in said
    assert f"{written}:" in said


def test_check_finds_a_probe_without_images(written, capsys):
    text = written.read_text(encoding="utf-8")
    start, end = text.index("\nretain:"), text.index("# How the model is changed")
    said = refused(written, text[start:end], "\n", capsys)
    assert "probe 'benign-full' of suite 'standard' fine-tunes on retained subjects, and there are none" in said
    assert f"{written}:" in said and "related subjects" not in said
    start, end = text.index("    # Benign neighbours"), text.index("# Unrelated things")
    written.write_text(text, encoding="utf-8")
    said = refused(written, text[start:end], "", capsys)
    assert "certification.suite: probe 'related-full'" in said and "retained subjects" not in said


def test_check_finds_a_subject_that_nothing_measures(written, capsys):
    text = written.read_text(encoding="utf-8")
    start, end = text.index("  # `safeguard list metrics`"), text.index("# How the claim is tested")
    unmeasured = text[:start] + text[end:]
    written.write_text(unmeasured, encoding="utf-8")
    assert run(["policy", "check", str(written)]) == 0, "labels are enough"
    capsys.readouterr()
    said = refused(written, "    labels: [cat, car, pizza, guitar, rose, chair]\n", "", capsys)
    place = next(i for i, line in enumerate(unmeasured.splitlines(), start=1) if "- name: everyday-things" in line)
    assert said.startswith(
        f"error: {written}:{place}:5: retain[0].labels: without labels a subject is measured by utility.metrics"
    )
    written.write_text(unmeasured, encoding="utf-8")
    said = refused(written, "        labels: [hammer, wrench, screwdriver, ladder]", "        labels: []", capsys)
    place = next(i for i, line in enumerate(unmeasured.splitlines(), start=1) if "labels: [hammer" in line)
    assert said.startswith(f"error: {written}:{place}:17: concepts[0].related[0].labels: without labels")
    written.write_text(text, encoding="utf-8")
    for labels in ("    labels: [cat, car, pizza, guitar, rose, chair]\n", "[hammer, wrench, screwdriver, ladder]"):
        text = text.replace(labels, "[]" if labels.startswith("[") else "")
    written.write_text(text, encoding="utf-8")
    assert run(["policy", "check", str(written)]) == 0, "the metric measures both"


def test_check_looks_into_the_attacks_of_a_suite(written, capsys):
    suite = written.with_name("mine.yaml")
    suite.write_text(
        "name: mine\nprobes:\n"
        "  - {id: released, title: As released, intent: none, attack: {name: released}}\n"
        "  - {id: put-back, title: p, intent: none, attack: {name: components}}\n"
        "  - {id: few-bits, title: f, intent: none, attack: {name: quantised}}\n"
        "  - {id: benign-full, title: b, intent: benign, attack: {name: finetune, data: retain}}\n"
        "  - {id: related-full, title: r, intent: benign, attack: {name: finetune, data: related, checkponts: [5]}}\n"
        "  - {id: malicious-full, title: m, intent: malicious, attack: {name: finetune, data: concept}}\n",
        encoding="utf-8",
    )
    said = refused(written, "suite: standard", f"suite: {suite}", capsys)
    assert said.startswith(
        f"error: {suite}:7:90: probes[4].attack.checkponts: unknown field; did you mean 'checkpoints'?"
    )
    suite.write_text(suite.read_text(encoding="utf-8").replace(", checkponts: [5]", ""), encoding="utf-8")
    assert run(["policy", "check", str(written)]) == 0


def test_show(written, capsys):
    assert run(["policy", "show", str(written)]) == 0
    shown = capsys.readouterr().out
    assert "erase          axe (4 prompts), object, judged by clip" in shown
    assert "rate below 0.5 for malicious-* within a budget of 50" in shown


def test_show_resolved_loads_back(written, capsys):
    assert run(["policy", "show", "--resolved", str(written)]) == 0
    assert load_policy_text(capsys.readouterr().out) == load_policy(written)


def test_schema(capsys):
    assert run(["policy", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == policy_json_schema()


def test_shipped_suites_are_listed_with_what_they_try(capsys):
    assert run(["list", "suites"]) == 0
    names = capsys.readouterr().out.split()
    assert names == sorted(names) and {"smoke", "level-1", "level-4"} <= set(names)
    assert run(["list", "suites", "-v"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("level-2"))
    assert line.split()[1] == "16" and "Level 1, and benign fine-tunes" in line
    assert run(["list"]) == 0
    assert "level-3" in capsys.readouterr().out
