"""What the README shows is what the package does."""

import re
from pathlib import Path

from safeguard import cli
from safeguard.policy.loading import load_policy
from safeguard.probe.suite import load_suite

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_policy_in_the_readme_is_valid_and_its_requirements_match_probes(tmp_path):
    from fnmatch import fnmatchcase

    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block
    path = tmp_path / "policy.yaml"
    path.write_text("\n".join(line[3:] for line in block[1].splitlines()) + "\n", encoding="utf-8")
    policy = load_policy(path)
    probes = [spec.id for spec in load_suite(policy.certification.suite).probes]
    assert all(any(fnmatchcase(probe, need.probe) for probe in probes) for need in policy.requirements)


def test_the_readme_has_every_verb():
    named = re.findall(r"^\| `safeguard (\w+)", README, re.MULTILINE)
    assert named == list(cli.VERBS)


def test_links_between_the_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)\)", page.read_text("utf-8"))
    ]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
