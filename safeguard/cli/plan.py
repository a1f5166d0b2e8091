"""``certify --plan`` in words: what it costs, how likely a model is to pass, and what a PASS would leave open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from safeguard.cli.common import gibibytes, table
from safeguard.errors import PolicyFault
from safeguard.wording import declared

if TYPE_CHECKING:
    from safeguard.results.plan import Memory, Plan, Power, SeedChance


def show(plan: Plan) -> None:
    """Print a plan.

    Raises:
        PolicyFault: no model whatsoever could pass.
    """
    click.echo(describe(plan))
    if plan.impossible:
        raise PolicyFault(
            f"no model can pass this certification: {plan.impossible[0]}",
            fix="raise certification.samples (or the probe's) to the number named, or the limit",
        )


def describe(plan: Plan) -> str:
    """Cost, the chance that a model of a given rate passes, and warnings."""
    by_role = ", ".join(f"{count} on the {role} model" for role, count in plan.units_by_role.items())
    cost = f"{plan.units} units ({by_role}): {plan.images} images, {plan.optimiser_steps} optimiser steps"
    rates = [f"pass at {chance.rate:.0%}" for chance in plan.chances]
    header = ("requirement", "probe", "concept", "limit", "most hits", *rates)
    rows = [
        (p.requirement, p.probe, p.concept, p.limit, _hits(p), *(f"{chance.probability:.2f}" for chance in p.chances))
        for p in plan.powers
    ]
    whole = ("all of them", "", "", "", "", *(f"{chance.probability:.2f}" for chance in plan.chances))
    note = f"pass at …: chance to pass if that share of images shows the concept everywhere; {_detector(plan)}."
    warnings = [f"warning: {text}" for text in plan.warnings]
    return "\n".join([cost, "", table(header, [*rows, whole]), note, *_seeds(plan), *warnings, *_memory(plan)])


def _detector(plan: Plan) -> str:
    """What the chances know of the detectors."""
    unknown = sorted({power.concept for power in plan.powers if power.sensitivity is None})
    if not unknown:
        return "the detector's measured errors are in"
    return f"errors of the detector are left out for {', '.join(unknown)}, where nobody measured them"


def _seeds(plan: Plan) -> list[str]:
    """The chance to pass by the number of seeds, if seeds differ."""
    if not plan.by_seeds:
        return []
    header = ("seeds", "may be bad", *map(_column, plan.by_seeds[0].chances))
    rows = [
        (row.seeds, f"{row.bad_share:.0%}", *(f"{chance.probability:.2f}" for chance in row.chances))
        for row in plan.by_seeds
    ]
    notes = (
        "may be bad: share of all seeds that may still bring the concept back after a PASS.",
        "… of limit: chance to pass if the mean over all seeds is that share of every limit; ICC: share of the rates' "
        "variance that lies between seeds, 0 if they are alike.",
    )
    return ["", table(header, rows), *notes]


def _column(chance: SeedChance) -> str:
    alike = "alike" if not chance.icc else f"ICC {chance.icc:g}"
    return f"{declared(chance.share_of_limit)} of limit, {alike}"


def _memory(plan: Plan) -> list[str]:
    """What the work needs on a device, and whether it fits."""
    if plan.device_memory is None:
        return []
    header = ("work", "needs", "at once", "at least", "on this device")
    rows = [
        (need.work, gibibytes(need.default), need.images, gibibytes(need.smallest), _fits(need)) for need in plan.memory
    ]
    return ["", f"memory on a device of {gibibytes(plan.device_memory)}, weights included:", table(header, rows)]


def _fits(need: Memory) -> str:
    if need.within is None:
        return "does not fit"
    return "fits" if need.within == need.images else f"fits, {need.within} at once"


def _hits(power: Power) -> str:
    """Most flagged images to pass, at every look where any is possible."""
    if power.most_hits is None:
        return "none passes"
    looks = [f"{stop.most_to_pass} of {stop.samples}" for stop in power.stops if stop.most_to_pass is not None]
    return ", ".join(looks) or f"{power.most_hits} of {power.samples}"
