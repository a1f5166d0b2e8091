"""What the README shows is what the package does."""

import json
import re
from pathlib import Path

from safeguard import cli
from safeguard.policy.loading import load_policy
from safeguard.policy.methods import check_methods
from safeguard.policy.suite import check_suite
from safeguard.probe.campaign import fitting_suite

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "docs" / "results" / "quickstart" / "report.json"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_policy_in_the_readme_is_valid_and_fits_its_suite(tmp_path):
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block
    path = tmp_path / "policy.yaml"
    path.write_text("\n".join(line[3:] for line in block[1].splitlines()) + "\n", encoding="utf-8")
    declared = load_policy(path)
    check_methods(declared, path)
    fitting_suite(declared, path)


def test_the_policy_page_shows_valid_suites_and_valid_parts_of_a_policy(tmp_path):
    page = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    suites = [block for block in blocks if "probes:" in block]
    assert len(suites) == 2
    for suite in suites:
        path = tmp_path / "suite.yaml"
        path.write_text(suite, encoding="utf-8")
        check_suite(path)
    whole = "version: 1\nname: parts\nmodel: reference\n" + "".join(block for block in blocks if block not in suites)
    path = tmp_path / "policy.yaml"
    path.write_text(whole, encoding="utf-8")
    check_methods(load_policy(path), path)


def test_the_readme_has_every_verb():
    named = re.findall(r"^\| `safeguard (\w+)", README, re.MULTILINE)
    assert named == list(cli.VERBS)


def test_links_between_the_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)\)", page.read_text("utf-8"))
    ]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_numbers_in_the_readme_are_those_of_the_report():
    report = json.loads(RESULT.read_text("utf-8"))
    assert f"**{report['verdict']}**" in README
    found = {
        (claim["probe"], curve["role"]): [f"{point['pooled_rate']:.0%}" for point in curve["points"]]
        for claim in report["claims"]
        for curve in claim["curves"]
    }
    cells = re.findall(r"^\| [^|]*\b(base|unlearned|hardened)\b[^|]* ((?:\| *[0-9]* *%? *)+)\|$", README, re.MULTILINE)
    shown = {role: [cell.strip() for cell in row.split("|") if cell.strip()] for role, row in cells}
    assert shown == {
        "base": found["released", "base"],
        "unlearned": found["malicious-full", "unlearned"],
        "hardened": found["malicious-full", "hardened"],
    }
    for row in report["utility"]:
        if row["metric"] == "detection rate":
            assert f"{row['subject']} {row['hardened']:.0%} (base {row['base']:.0%})" in " ".join(README.split())


def test_the_policy_of_the_result_is_the_shipped_one():
    from safeguard.policy.loading import policy_digest

    report = json.loads(RESULT.read_text("utf-8"))
    shipped = load_policy(ROOT / "policies" / "quickstart.yaml")
    assert report["provenance"]["policy_digest"] == policy_digest(shipped)
