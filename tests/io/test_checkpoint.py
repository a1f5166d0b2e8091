"""A training state read back is the one that was written, and continues the training bit by bit."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch

from safeguard.errors import EnvironmentFault, ModelFault
from safeguard.io.checkpoint import held, load_state, save_state


def problem() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(torch.full((1, 3), float(step))).pow(2).sum().backward()
        optimizer.step()


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    whole, optimizer = problem()
    train(whole, optimizer, range(6))

    first, optimizer = problem()
    train(first, optimizer, range(3))
    save_state(tmp_path / "s.safetensors", {"model": first.state_dict()}, {"main": optimizer}, {"step": 3})
    second, optimizer = problem()
    groups, facts = load_state(tmp_path / "s.safetensors", {"main": optimizer})
    second.load_state_dict(groups["model"])
    train(second, optimizer, range(facts["step"], 6))

    assert set(groups) == {"model"}
    assert torch.equal(second.weight, whole.weight) and torch.equal(second.bias, whole.bias)


def test_views_tied_tensors_and_dtypes_survive(tmp_path: Path) -> None:
    base = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    save_state(tmp_path / "s", {"a": {"x": base.t(), "y": base, "same/slash": base}, "b": {"n": torch.tensor(7)}})
    groups, facts = load_state(tmp_path / "s")
    assert facts == {}
    assert torch.equal(groups["a"]["x"], base.t()) and groups["a"]["x"].dtype == torch.bfloat16
    assert torch.equal(groups["a"]["same/slash"], base)
    assert groups["b"]["n"].item() == 7


def test_disk_full_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path / "s", {"a": {"x": torch.zeros(2)}}, facts={"step": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        save_state(tmp_path / "s", {"a": {"x": torch.ones(2)}}, facts={"step": 2})
    assert load_state(tmp_path / "s")[1] == {"step": 1}


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickle", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_training_state_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "s").write_bytes(content)
    with pytest.raises(ModelFault, match="not a training state"):
        load_state(tmp_path / "s")


def test_a_held_state_is_waited_for(tmp_path: Path) -> None:
    path, order = tmp_path / "phases" / "state.safetensors", list[str]()
    waits = threading.Event()

    def other() -> None:
        with held(path, lambda: (order.append("waits"), waits.set())[0]):
            order.append("goes on")

    with held(path, lambda: order.append("never")):
        second = threading.Thread(target=other)
        second.start()
        assert waits.wait(10)
        order.append("done")
    second.join(10)
    assert order == ["waits", "done", "goes on"]
