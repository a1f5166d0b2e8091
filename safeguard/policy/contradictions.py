"""Where a stored unit contradicts itself, or what was asked: found from its numbers, without a model.

Who reads ``unit.json``, in a run directory or in the cache, asks :meth:`Examination.contradictions` before he counts.
A unit that was edited is refused and not quietly run again; one that answers another question has another address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from safeguard.cache import address
from safeguard.policy.examination import WITNESSES, Drawing, UnitSpec, drawn, judge, question, seed_of_look
from safeguard.policy.schema import Policy
from safeguard.results.plan import Schedule, Stop, StopRule, looks
from safeguard.results.record import Role
from safeguard.results.unit import ImageRow, UnitResult

Wanted = tuple[Drawing, str | None]
"""What is drawn of a subject, and whose detector judges it; none: nobody's."""


@dataclass(frozen=True)
class Examination:
    """What all units of a certification have in common.

    Attributes:
        nonce: of the examination.
        models: digests by role.
        schedules: what each probe yields, by its id.
        digests: of detectors and metrics, as ``{"detectors": ..., "metrics": ...}``.
        thresholds: of the detectors.
        code: digest of the code and the libraries.
        stops: by probe, when enough images of the certified model are drawn.
    """

    policy: Policy
    nonce: str
    models: Mapping[Role, str]
    schedules: Mapping[str, Schedule]
    digests: Mapping[str, Mapping[str, str]]
    thresholds: Mapping[str, float]
    code: str
    stops: Mapping[str, list[StopRule]] = field(default_factory=dict)

    def contradictions(self, unit: UnitResult) -> list[str]:
        """Each in words; empty: there are none. Rows are looked at when the unit is what it says."""
        spec = spec_of(unit)
        if spec is None:
            return ["its facts are not those of a unit"]
        return [*_told_twice(unit, spec), *self._other(unit, spec)] or [
            *self._efforts(unit),
            *self._images(unit),
            *self._rows(unit, spec),
        ]

    def _other(self, unit: UnitResult, spec: UnitSpec) -> Iterator[str]:
        """What it answers that was not asked."""
        pairs = {
            "nonce": (spec.nonce, self.nonce),
            "model": (spec.model, self.models.get(spec.role)),
            "base": (spec.base, self.models.get("base")),
            "policy": (spec.policy, question(self.policy, self.digests)),
            "code": (spec.code, self.code),
            "detectors": (unit.detectors, self.digests["detectors"]),
            "metrics": (unit.metrics, self.digests["metrics"]),
            "thresholds": (unit.thresholds, self.thresholds),
            "stops": (spec.stops, self.stops.get(spec.probe.id, []) if spec.role == "hardened" else []),
        }
        for name, (stated, asked) in pairs.items():
            if stated != asked:
                yield f"{name}: it has {stated!r}, and {asked!r} was asked for"
        if spec.probe.id not in self.schedules:
            yield f"the suite has no probe {spec.probe.id!r}"

    def _efforts(self, unit: UnitResult) -> Iterator[str]:
        schedule, found = self.schedules[unit.probe], unit.evaluated()
        planned = schedule.efforts
        if unit.axis != schedule.axis:
            yield f"its efforts count {unit.axis}, the probe's {schedule.axis}"
        if unit.efforts != planned:
            yield f"its efforts are {unit.efforts}, the probe's {planned}"
        if sorted(set(found)) != found or not set(found) <= set(planned):
            yield f"its checkpoints are at {found}, the probe's at {planned}"
        kinds = dict(zip(planned[1:], schedule.trials, strict=False))
        for point in unit.checkpoints:
            kind, wanted = point.trial.kind if point.trial else None, kinds.get(point.effort)
            if kind != wanted:
                yield f"effort {point.effort}: its trial is {kind}, the probe's {wanted}"

    def _images(self, unit: UnitResult) -> Iterator[str]:
        """What it trained on: of every source, or, where some were drawn among several, of none but these."""
        schedule, found = self.schedules[unit.probe], {part.source for part in unit.training_images}
        wanted = set(schedule.sources)
        all_there = found == wanted or (bool(schedule.trials) and bool(found) and found < wanted)
        if not all_there or bool(unit.data_digests) != bool(wanted):
            said = f"{', '.join(sorted(found)) or 'nothing'} in {len(unit.data_digests)} sets"
            yield f"its training images show {said}, the probe's {', '.join(sorted(wanted)) or 'nothing'}"

    def _rows(self, unit: UnitResult, spec: UnitSpec) -> Iterator[str]:
        """Every row that is not one of those asked for, and those that are missing."""
        found: dict[tuple[str, int], dict[int, ImageRow]] = {}
        for place, row in enumerate(unit.rows):
            found.setdefault((row.subject, row.effort), {})[place] = row
        own = {point.effort for point in unit.checkpoints if point.prompts is not None}
        for effort in unit.evaluated():
            for subject, wanted in self._wanted(spec, effort).items():
                rows = found.pop((subject, effort), {})
                wanted = _until_decided(wanted, looks(spec.stops, subject, effort), list(rows.values()))
                told = self._group(rows, wanted, own_prompts=effort in own)
                yield from (f"{subject}, effort {effort}: {what}" for what in told)
        for (subject, effort), rows in found.items():
            yield f"row {min(rows)}: nobody asked for {subject!r} at effort {effort}"

    def _group(self, rows: Mapping[int, ImageRow], wanted: Wanted, *, own_prompts: bool) -> Iterator[str]:
        """Of one subject at one effort; an attack's own prompts follow from nothing that is known here."""
        drawing, judged_by = wanted
        if len(rows) != len(drawing.seeds):
            yield f"it has {len(rows)} rows, and {len(drawing.seeds)} were asked for"
        for seed, times in Counter(row.seed for row in rows.values()).items():
            if times > 1:
                yield f"the image of seed {seed} is there {times} times"
        for (place, row), prompt, seed in zip(rows.items(), drawing.prompts, drawing.seeds, strict=False):
            if row.seed != seed:
                yield f"row {place}: its seed is {row.seed}, policy and nonce give {seed}"
            if row.prompt != prompt and not own_prompts:
                yield f"row {place}: its prompt is {row.prompt!r}, policy and nonce give {prompt!r}"
            yield from self._flag(place, row, judged_by)

    def _flag(self, place: int, row: ImageRow, judged_by: str | None) -> Iterator[str]:
        if judged_by is None:
            if row.flagged or row.score:
                yield f"row {place}: no detector judges it, and it has score {row.score}, flagged: {row.flagged}"
        elif (threshold := self.thresholds.get(judged_by)) is None:
            yield f"row {place}: {judged_by!r} judges it, of which no threshold is known"
        elif row.flagged != (row.score >= threshold):
            yield f"row {place}: flagged is {row.flagged} at score {row.score} and threshold {threshold}"

    def _wanted(self, spec: UnitSpec, effort: int) -> dict[str, Wanted]:
        """What is drawn at a checkpoint, by subject."""
        seed = seed_of_look(spec.seed, effort, own_noise=self.schedules[spec.probe.id].own_noise)
        found: dict[str, Wanted] = {
            concept.name: (drawn(self.policy, self.nonce, concept, seed, spec.probe.samples), concept.name)
            for concept in self.policy.concepts
        }
        if self.schedules[spec.probe.id].everything:
            return found | dict(self._benign(seed))
        witness = self.policy.witness if effort else None
        if witness is not None:
            drawing = drawn(self.policy, self.nonce, witness, seed, most=WITNESSES)
            found[witness.name] = drawing, judge(self.policy, witness)
        return found

    def _benign(self, seed: int) -> Iterator[tuple[str, Wanted]]:
        """Related and retained subjects, and what the concepts' detectors say of the retained."""
        policy = self.policy
        for subject in [*policy.related, *policy.retain]:
            judged_by = judge(policy, subject)
            if judged_by or policy.utility.metrics:
                yield subject.name, (drawn(policy, self.nonce, subject, seed), judged_by)
        for concept in policy.concepts:
            for subject in policy.retain:
                yield f"{concept.name}@{subject.name}", (drawn(policy, self.nonce, subject, seed), concept.name)


def _until_decided(wanted: Wanted, planned: list[list[Stop]], rows: list[ImageRow]) -> Wanted:
    """What is drawn until the first look that decides, by the rows that are there."""
    for decisions in planned:
        samples = decisions[0].samples
        flagged = sum(row.flagged for row in rows[:samples])
        if all(decision.decides(flagged) for decision in decisions):
            drawing, judged_by = wanted
            return Drawing(drawing.prompts[:samples], drawing.seeds[:samples], drawing.order), judged_by
    return wanted


def spec_of(unit: UnitResult) -> UnitSpec | None:
    """What a unit says it is of, from its facts; none: they are no such thing."""
    probe = unit.facts.get("probe")
    if not isinstance(probe, dict):
        return None
    try:
        return UnitSpec.model_validate({**unit.facts, "probe": {**probe, "title": "as stored"}})
    except ValidationError:
        return None


def _told_twice(unit: UnitResult, spec: UnitSpec) -> Iterator[str]:
    """Where what a unit says differs from the facts that its address is the hash of."""
    pairs = {
        "address": (unit.address, address(unit.facts)),
        "role": (unit.role, spec.role),
        "probe": (unit.probe, spec.probe.id),
        "attack": (unit.attack, spec.probe.attack.name),
        "seed": (unit.seed, spec.seed),
        "nonce": (unit.nonce, spec.nonce),
        "model": (unit.model_digest, spec.model),
    }
    yield from (f"{name}: {said!r}, by its facts {known!r}" for name, (said, known) in pairs.items() if said != known)
