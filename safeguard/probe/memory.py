"""What the work of a certification needs on its device, counted from the model's configuration without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

from safeguard.diffusion.footprint import Configurations, Need, footprint
from safeguard.io.preflight import inspect
from safeguard.policy.suite import Suite
from safeguard.probe.units import make_attack
from safeguard.registry import finetuners
from safeguard.results.plan import Memory


def configurations(directory: Path) -> Configurations:
    """Those of a model directory, by component.

    Raises:
        ModelFault: the directory is refused.
    """
    inspect(directory)
    found = {path.parent.name: path for path in sorted(directory.glob("*/*config.json"))}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items()}


def memory(directory: Path, suite: Suite, device_memory: int) -> list[Memory]:
    """Drawing, and every different way in which an attack of the suite trains the model; weights are held in float32.

    Args:
        device_memory: bytes of the device.
    """
    known = configurations(directory)
    needs = {"drawing": footprint(known, {}).drawing}
    for spec in suite.probes:
        if (trained := make_attack(spec).adaptation()) is not None:
            method, training = trained
            settings = "".join(f", {name} {value}" for name, value in method.settings.items())
            work = f"fine-tuning: {method.name}{settings}, batches of {training.batch_size}"
            if work not in needs:
                tuner = finetuners.make(method)
                images = training.batch_size if tuner.beside is None else 2 * training.batch_size
                needs[work] = footprint(known, {method.name: tuner}, batch_size=images).fine_tunes[method.name]
    return [_stated(work, need, device_memory) for work, need in needs.items()]


def _stated(work: str, need: Need, device_memory: int) -> Memory:
    return Memory(
        work=work,
        default=need.default,
        smallest=min(need.default, need.smallest),
        images=need.images,
        within=need.largest_within(device_memory),
    )
