"""A policy loads strictly, names every mistake with its place, and survives being written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeguard.errors import EnvironmentFault, PolicyFault
from safeguard.policy.loading import check_methods, load_policy, load_policy_text, policy_digest, resolved_yaml
from safeguard.policy.schema import Policy
from safeguard.registry import detectors
from safeguard.resources import resource_dir

VALID = """\
version: 1
name: demo
model: reference
concepts:
  - name: weapons
    kind: object
    prompts: [a dagger emoji, an axe emoji]
    related:
      - {name: tools, prompts: [a hammer emoji]}
    detector: {name: clip, threshold: 0.6}
retain:
  - {name: animals, prompts: {template: "{x} emoji", fill: {x: [a cat, a dog]}}}
harden:
  unlearner: {name: esd, variant: u, learning_rate: 1e-5}
requirements:
  - {probe: released, max_rate: 0.1}
"""
LABELLED = VALID.replace("    detector:", "    labels: [dagger, axe]\n    detector:")
SHIPPED = sorted(resource_dir("policies").glob("*.yaml"))


def refusal(old: str, new: str) -> str:
    assert VALID.count(old) == 1
    with pytest.raises(PolicyFault) as caught:
        load_policy_text(VALID.replace(old, new), name="p.yaml")
    return str(caught.value)


def test_valid_policy():
    policy = load_policy_text(VALID)
    assert policy.concepts[0].prompt_list == ["a dagger emoji", "an axe emoji"]
    assert policy.retain[0].prompt_list == ["a cat emoji", "a dog emoji"]
    assert policy.harden.unlearner.settings == {"variant": "u", "learning_rate": 1e-5}
    assert policy.harden.resilience.name == "none"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_policies_are_valid(path: Path):
    policy = load_policy(path)
    check_methods(policy, path)
    assert load_policy_text(resolved_yaml(policy)) == policy


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: object", "knd: object", "p.yaml:6:5: concepts[0].knd: unknown field; did you mean 'kind'?"),
        ("kind: object", "knd: object", "p.yaml:5:5: concepts[0].kind: this field is required"),
        ("kind: object", "kind: thing", "p.yaml:6:11: concepts[0].kind: should be 'object', 'style'"),
        ("fill: {x:", "fil: {x:", "p.yaml:12:54: retain[0].prompts.fil: unknown field; did you mean 'fill'?"),
        ("name: tools,", "nam: tools,", "p.yaml:9:10: concepts[0].related[0].nam: unknown field; did you mean 'name'?"),
        ("version: 1", "version: 2", "p.yaml:1:10: version: should be 1, not 2"),
        ("name: demo", "name: My Policy", "p.yaml:2:7: name: string should match pattern"),
        (
            "[a dagger emoji, an axe emoji]",
            "5",
            "p.yaml:7:14: concepts[0].prompts: should be a list or a mapping, not 5",
        ),
        ("[a dagger emoji, an axe emoji]", "[a, 5]", "p.yaml:7:18: concepts[0].prompts[1]: should be text, not 5"),
        ("[a dagger emoji, an axe emoji]", "[]", "p.yaml:5:5: concepts[0]: at least one prompt is needed"),
        ("x: [a cat, a dog]", "y: [a cat]", "p.yaml:12:30: retain[0].prompts: template uses ['x'], fill gives ['y']"),
        (
            "max_rate: 0.1",
            "max_rate: 2",
            "p.yaml:16:33: requirements[0].max_rate: should be less than or equal to 1, not 2",
        ),
        ("max_rate: 0.1", "max_rate: '0.1'", "requirements[0].max_rate: should be a valid number, not '0.1'"),
        ("max_rate: 0.1", "max_rate: true", "requirements[0].max_rate: should be a valid number, not True"),
        ("name: esd", "name: eds", "p.yaml:14:21: harden.unlearner.name: unknown unlearner 'eds'; did you mean 'esd'?"),
        ("name: clip", "name: klip", "p.yaml:10:22: concepts[0].detector.name: unknown detector 'klip'; did you mean"),
        (
            "harden:\n",
            "harden:\n  resilience: {name: resaline}\n",
            "p.yaml:14:22: harden.resilience.name: unknown resi",
        ),
        (
            "name: animals",
            "name: tools",
            "p.yaml:12:12: retain[0].name: 'tools' is already the name of concepts[0].rel",
        ),
        (
            "name: tools",
            "name: weapons",
            "p.yaml:9:16: concepts[0].related[0].name: 'weapons' is already the name of con",
        ),
    ],
)
def test_mistakes_have_field_and_place(old: str, new: str, message: str):
    assert message in refusal(old, new)


def test_one_mistake_in_a_union_is_one_line():
    assert refusal("[a dagger emoji, an axe emoji]", "{template: a}").splitlines()[:-1] == [
        "p.yaml:7:14: concepts[0].prompts.fill: this field is required"
    ]


def test_all_mistakes_are_listed_in_file_order():
    text = (
        VALID.replace("name: demo", "name: X").replace("max_rate: 0.1", "max_rate: -1").replace("kind: object", "a: b")
    )
    with pytest.raises(PolicyFault) as caught:
        load_policy_text(text, name="p.yaml")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == ["p.yaml:2:7", "p.yaml:5:5", "p.yaml:6:5", "p.yaml:16:33"]
    assert "correct these 4 fields" in lines[-1]
    assert caught.value.where == "p.yaml:2:7"
    assert caught.value.exit_code == 2


def test_a_flood_of_mistakes_is_cut_short():
    message = refusal("harden:\n", "".join(f"unknown{i}: 1\n" for i in range(200)) + "harden:\n")
    assert len(message.splitlines()) == 52
    assert "… and 150 more" in message


def test_a_key_cannot_forge_a_line():
    message = refusal("harden:\n", '"x\\np.yaml:1:1: forged": 1\nharden:\n')
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n", "just words"])
def test_not_a_mapping(text: str):
    with pytest.raises(PolicyFault, match=r"^<text>:1:1: should be a mapping|^<text>:\d:1: should be a mapping"):
        load_policy_text(text)


def test_resolved_policy_is_complete_and_equal():
    policy = load_policy_text(VALID)
    text = resolved_yaml(policy)
    assert load_policy_text(text) == policy
    assert resolved_yaml(load_policy_text(text)) == text
    assert "positive_control: 0.85" in text


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(blacklist_categories=("Cc", "Cs")) | st.sampled_from("\n\t"), max_size=40),
    st.sampled_from(["no", "1e-5", "~", "=", "<<", "0o7", "2026-01-30", ".inf", "1e999", "9" * 40, "- a", "a: b", "#"]),
)
def test_any_text_survives_being_written(description: str, word: str):
    policy = load_policy_text(VALID).model_copy(update={"description": description, "revision": word})
    assert load_policy_text(resolved_yaml(policy)) == policy


def test_digest_depends_on_meaning_alone():
    policy = load_policy_text(VALID)
    digest = policy_digest(policy)
    assert len(digest) == 64
    assert policy_digest(load_policy_text("# a comment\n" + VALID.replace("name: demo", 'name: "demo"'))) == digest
    assert policy_digest(load_policy_text(resolved_yaml(policy))) == digest
    assert policy_digest(load_policy_text(VALID.replace("0.1", "0.2"))) != digest
    assert policy_digest(load_policy_text(VALID.replace("variant: u", "variant: f"))) != digest


def with_settings(old: str, new: str, path: Path) -> Policy:
    assert VALID.count(old) == 1
    path.write_text(VALID.replace(old, new), encoding="utf-8")
    return load_policy(path)


def test_method_settings_are_checked_with_place(tmp_path):
    path = tmp_path / "p.yaml"
    policy = with_settings("variant: u", "varaint: u, eta: -1", path)
    with pytest.raises(PolicyFault) as caught:
        check_methods(policy, path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}:14:26: harden.unlearner.varaint: unknown field; did you mean 'variant'?"
    assert lines[1].startswith(f"{path}:14:43: harden.unlearner.eta: should be greater than or equal to 0")


def test_method_settings_are_checked_without_a_file(tmp_path):
    policy = with_settings("threshold: 0.6", "threshold: high", tmp_path / "p.yaml")
    with pytest.raises(PolicyFault, match=r"^concepts\[0\]\.detector\.threshold: should be a valid number, not 'high'"):
        check_methods(policy)


def test_valid_method_settings_pass():
    check_methods(load_policy_text(LABELLED))


def test_a_method_without_settings_takes_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(detectors._targets, "bare", "collections:OrderedDict")
    check_methods(load_policy_text(VALID.replace("name: clip, threshold: 0.6", "name: bare")))
    with pytest.raises(PolicyFault, match=r"detector\.threshold: bare takes no settings"):
        check_methods(load_policy_text(VALID.replace("name: clip", "name: bare")))


def test_a_method_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(detectors._targets, "gone", "a_package_nobody_has:Detector")
    with pytest.raises(EnvironmentFault, match="detector 'gone' cannot be imported: No module named"):
        check_methods(load_policy_text(VALID.replace("name: clip", "name: gone")))


def test_loading_imports_no_method():
    code = (
        "import sys\n"
        "import safeguard.cli.policy, safeguard.policy.suite\n"
        "from safeguard.policy.loading import load_policy_text\n"
        f"load_policy_text({VALID!r})\n"
        "safeguard.policy.suite.load_suite('standard')\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_metrics_are_methods_with_a_margin():
    def measured(metrics: str) -> str:
        return VALID + f"utility: {{metrics: {metrics}}}\n"

    text = measured("[{name: clip-score, checkpoint: reference, margin: 0.1}]")
    (metric,) = load_policy_text(text).utility.metrics
    assert (metric.name, metric.margin, metric.settings) == ("clip-score", 0.1, {"checkpoint": "reference"})
    assert load_policy_text(resolved_yaml(load_policy_text(text))) == load_policy_text(text)
    assert load_policy_text(VALID).utility.metrics == []
    for wrong, message in {
        "[{name: clip-score}]": "17:21: utility.metrics[0].margin: this field is required",
        "[{name: clip-score, margin: -1}]": "17:48: utility.metrics[0].margin: should be greater than or equal to 0",
        "[{name: clip-scor, margin: 0}]": "17:28: utility.metrics[0].name: unknown metric 'clip-scor'; did you mean",
        "[{name: clip-score, margin: 0}, {name: clip-score, margin: 1}]": "17:20: utility.metrics: two metrics",
    }.items():
        with pytest.raises(PolicyFault) as caught:
            load_policy_text(measured(wrong))
        assert str(caught.value).startswith(f"<text>:{message}")
    with pytest.raises(
        PolicyFault, match=r"utility\.metrics\[0\]\.chekpoint: unknown field; did you mean 'checkpoint'"
    ):
        check_methods(load_policy_text(measured("[{name: clip-score, chekpoint: x, margin: 0}]")))


def test_methods_inside_methods_are_checked_where_they_stand():
    def nested(method: str) -> str:
        objective = f"resilience: {{name: resalign, distribution: {{methods: [{method}]}}}}"
        return LABELLED.replace("harden:\n", f"harden:\n  {objective}\n")

    policy = load_policy_text(nested("{name: lora, rank: 4}"))
    check_methods(policy)
    with pytest.raises(PolicyFault, match="unknown fine-tuning method 'lore'; did you mean 'lora'"):
        check_methods(load_policy_text(nested("{name: lore}")))
    with pytest.raises(PolicyFault, match="rank"):
        check_methods(load_policy_text(nested("{name: lora, rnak: 4}")))
