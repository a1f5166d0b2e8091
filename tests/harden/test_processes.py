"""Several processes make the model that one makes: the command line as a launcher starts it, on the CPU over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from safeguard import api
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.io.opening import open_pipeline
from safeguard.processes import ALONE, Processes, join, launched
from tests.contexts import tiny_policy
from tests.tiny import save_tiny

RESALIGN = {
    "name": "resalign",
    "harmful_loss": None,
    "hypergradient": "moreau",
    "evaluations": 1,
    "steps": 2,
    "simulations": 3,
    "learning_rate": 1e-3,
    "warm_start": True,
    "gamma": 0.5,
    "distribution": {"steps": [1, 2], "learning_rates": [1e-3], "optimizers": ["sgd"]},
}
# Its adversary is state that losses leave behind for after the step: only the main process's is right.
RECELER = {
    "name": "receler",
    "steps": 1,
    "batch_size": 2,
    "rank": 2,
    "attack_steps": 1,
    "trajectory_steps": 2,
    "pool": 2,
    "learning_rate": 1e-3,
}


def launch(arguments: list[str], count: int, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Python in ``count`` processes, each with what ``torchrun`` and ``accelerate launch`` tell it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        return [
            subprocess.CompletedProcess(arguments, process.returncode, *output)
            for process in running
            for output in [process.communicate(timeout=300)]
        ]
    finally:
        for process in running:
            process.kill()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(DiffusionModel(open_pipeline(folder)).named_parameters())


def test_two_processes_make_the_model_that_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "base")
    policy = tiny_policy(unlearner=RECELER, resilience=RESALIGN, images=2).model_dump(mode="json")
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(policy | {"model": str(tmp_path / "base")}))
    command = ["-m", "safeguard", "harden", str(file), "--out", str(tmp_path / "two" / "hardened"), "--device", "cpu"]
    cache = str(tmp_path / "two" / "cache")
    first, second = launch([*command, "--progress", "plain"], 2, SAFEGUARD_CACHE=cache)
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert "hardened model" in first.stdout and first.stderr
    assert second.stdout == ""
    assert not any(word in second.stderr for word in ("resalign", "erase", "hardened")), second.stderr

    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "one" / "cache"))
    alone = api.harden(file, tmp_path / "one" / "hardened", device="cpu")
    one, two, base = (weights(tmp_path / name) for name in ("one/hardened", "two/hardened", "base"))
    assert one.keys() == two.keys()
    moved = sum(float((one[name] - base[name]).pow(2).sum()) for name in base) ** 0.5
    apart = sum(float((one[name] - two[name]).pow(2).sum()) for name in base) ** 0.5
    assert apart < 1e-4 * moved
    record = json.loads((tmp_path / "two" / "hardened" / api.RECORD_FILE).read_text())
    assert (record["processes"], alone.record["processes"]) == (2, 1)
    assert record["series"].keys() == alone.record["series"].keys()
    for name, values in alone.record["series"].items():
        logged = [step for step, value in enumerate(values) if value is not None]
        found = record["series"][name]
        assert logged == [step for step, value in enumerate(found) if value is not None], name
        expected = [values[step] for step in logged]
        assert [found[step] for step in logged] == pytest.approx(expected, rel=1e-3, abs=1e-5), name


EXCHANGE = """
import torch
from safeguard.errors import EnvironmentFault
from safeguard.processes import join

fellows, device = join("cpu")
assert (fellows.count, device) == (2, "cpu")
one = torch.tensor([[1.0, 2.0]]) * (1 + fellows.rank)
two = torch.tensor(float(fellows.rank), dtype=torch.float64)
weights = torch.ones(3)
added = fellows.all_reduce([one, two], alike=[weights])
assert torch.equal(added[0], torch.tensor([[3.0, 6.0]])) and added[1] == 1 and added[1].dtype == torch.float64
assert fellows.gather((fellows.rank, None)) == [(0, None), (1, None)]
assert fellows.broadcast_object("main" if fellows.main else None) == "main"
fellows.broadcast([one])
assert torch.equal(one, torch.tensor([[1.0, 2.0]]))
weights[0] += 1e-6 * fellows.rank
try:
    fellows.all_reduce([one], alike=[weights])
except EnvironmentFault as error:
    print(error)
"""


def test_what_processes_exchange() -> None:
    for done in launch(["-c", EXCHANGE], 2):
        assert done.returncode == 0, done.stderr
        assert "do not hold the same weights" in done.stdout


def test_items_go_to_whoever_has_least_to_do_the_longest_first() -> None:
    costs = [5.0, 30.0, 10.0, 20.0, 5.0]
    assert [Processes(rank, 2).share(costs) for rank in range(2)] == [[2, 3, 4], [0, 1]]
    assert Processes(0, 4).share([1.0, 1.0, 1.0]) == [], "the main process has more to do besides"
    assert ALONE.share(costs) == [0, 1, 2, 3, 4]


def test_alone_nothing_is_exchanged() -> None:
    values = [torch.arange(3.0), torch.ones(2)]
    assert all(torch.equal(a, b) for a, b in zip(ALONE.all_reduce(values, alike=values), values, strict=True))
    assert ALONE.gather(3) == [3] and ALONE.broadcast_object("word") == "word"


def test_a_launcher_tells_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched() == (0, 1, 0), "a cluster that sets one variable launched nothing"
    assert join("auto") == (ALONE, "auto")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched() == (3, 4, 1)
    with pytest.raises(UsageFault, match="4 processes cannot share cuda:0"):
        join("cuda:0")
