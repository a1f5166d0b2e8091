"""What the pages under ``docs/how-to`` tell to write works as it is written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.probe.conftest import world

__all__ = ["world"]

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "write-an-attack.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The page's files in a folder of their own, installed as an installer would: with metadata of its entry points."""
    folder = tmp_path / "site"
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "jitter" / "__init__.py").touch()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = (
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(points))
    return folder


def safeguard(package: Path, *arguments: str) -> str:
    """Output of the command, in a process that finds the package as an installed one."""
    found = subprocess.run(
        [sys.executable, "-m", "safeguard", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_an_attack_and_a_method_of_another_package_are_used_like_ones_own(package: Path, world: Path) -> None:
    listed = safeguard(package, "list", "attacks", "-v")
    assert re.search(r"jitter\s+.*Noise on the denoiser's weights", listed)
    suite = yaml.safe_load((package / "suite.yaml").read_text())
    assert [probe["id"] for probe in suite["probes"]] == ["jitter", "malicious-biases"]
    policy = yaml.safe_load((world / "policy.yaml").read_text())
    policy["certification"]["suite"] = str(package / "suite.yaml")
    (world / "policy.yaml").write_text(yaml.safe_dump(policy))
    for probe, last in (("jitter", 1), ("malicious-biases", 2)):
        told = safeguard(package, "probe", probe, str(world / "model"), "--policy", str(world / "policy.yaml"))
        assert re.search(rf"axes\s+{last}\s+\d/4", told), told


def test_the_page_is_as_short_as_it_says(package: Path) -> None:
    """Twenty lines each, what is empty, imported or said in docstrings aside."""
    for name, most in (("attack.py", 22), ("biases.py", 14)):
        lines = (package / "jitter" / name).read_text().splitlines()
        code = [line for line in lines if line.strip() and not re.match(r'\s*(from|import|""")', line)]
        assert len(code) <= most, f"{name}: {len(code)} lines"
