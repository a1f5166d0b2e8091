"""A probe on somebody's own images, from the suite's file to the finished unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from safeguard.errors import UsageFault
from safeguard.policy.examination import UnitSpec
from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Serial
from safeguard.probe.units import Units
from safeguard.progress import SilentProgress
from safeguard.results.unit import UnitResult
from tests.probe.conftest import NONCE
from tests.probe.worlds import SUITE


def write(folder: Path, shade: int) -> None:
    folder.mkdir(exist_ok=True)
    for place in range(2):
        Image.new("RGB", (24, 24), (shade, 100 * place, 0)).save(folder / f"{place}.png")
    rows = [{"file_name": f"{place}.png", "text": "my axe"} for place in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def owned(world: Path) -> Path:
    """A world whose malicious fine-tune is on a folder beside the suite."""
    write(world / "mine", 200)
    probes = yaml.safe_load(yaml.safe_dump(SUITE["probes"]))
    probes[1]["attack"]["data"] = {"folder": "./mine", "shows": "concept", "images": 2}
    (world / "suite.yaml").write_text(yaml.safe_dump(SUITE | {"probes": probes}))
    return world


def opened(world: Path) -> tuple[Campaign, UnitSpec]:
    campaign = Campaign.open(world / "model", policy=world / "policy.yaml", device="cpu", nonce=NONCE)
    return campaign, campaign.unit("hardened", campaign.spec("malicious-full"), 0)


def run(world: Path) -> UnitResult:
    campaign, spec = opened(world)
    (found,) = Serial().run(campaign, [spec], Units(world / "run", shared=False), SilentProgress())
    assert not campaign.examination.contradictions(found)
    return found


def test_a_unit_is_about_the_content_of_the_folder_and_not_its_place(owned: Path) -> None:
    first = run(owned)
    (digest,) = first.data_digests
    (shown,) = first.training_images
    assert (shown.digest, shown.source, shown.images, list(shown.flagged)) == (digest, "concept", 2, ["axes"])
    assert str(owned) not in json.dumps(first.facts["probe"]) and first.facts["probe"]["attack"]["data"]["digest"]
    (owned / "in").mkdir()
    (owned / "mine").rename(owned / "in" / "mine")
    (owned / "suite.yaml").write_text((owned / "suite.yaml").read_text().replace("./mine", "./in/mine"))
    assert opened(owned)[1].address == first.address
    write(owned / "in" / "mine", 10)
    second = run(owned)
    assert second.address != first.address and second.data_digests != [digest]


def test_a_folder_that_changes_meanwhile_is_refused(owned: Path) -> None:
    campaign, spec = opened(owned)
    write(owned / "mine", 10)
    with pytest.raises(UsageFault, match="the folder's digest is"):
        list(Serial().run(campaign, [spec], Units(owned / "run", shared=False), SilentProgress()))
