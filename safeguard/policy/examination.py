"""What is asked of every unit: its address, and the prompts and seeds of its rows.

The evaluator draws what :func:`drawn` says, and whoever reads a stored unit compares its rows with the same function
(:mod:`safeguard.policy.contradictions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from safeguard.cache import address
from safeguard.policy.places import portable_folders
from safeguard.policy.schema import Policy, Subject
from safeguard.policy.suite import ROLES, ProbeSpec, Suite, needs, ruled_out
from safeguard.results.plan import Schedule, StopRule
from safeguard.results.record import Record, Role
from safeguard.seeds import derive, examination, spread

BENIGN = "@benign"
"""What the detector of related and retained subjects is filed under, where a policy names one."""
WITNESSES = 24
"""Images of the witness at every checkpoint of an attack, at most those of the policy."""


class UnitSpec(Record):
    """A unit as plain data, which can travel to another process or machine."""

    role: Role
    probe: ProbeSpec
    seed: int
    nonce: str
    """Of the examination (:func:`safeguard.seeds.examination`)."""
    model: str
    """Digest of the model that is attacked."""
    base: str
    """Digest of the base model, which draws the training images."""
    exposed_parts: list[str]
    """Parts of the model that fine-tunes train."""
    policy: str
    """Digest of what the policy says about drawing and judging (:func:`question`)."""
    code: str
    """Digest of the code and the libraries (:func:`safeguard.provenance.code_digest`)."""
    stops: list[StopRule] = []
    """When enough images of a checkpoint are drawn; none: when all are."""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All of it but what a probe is called, which controls it has, and where a folder of images lies."""
        facts: dict[str, Any] = portable_folders(self.model_dump(mode="json"))
        for field in ("title", "control"):
            del facts["probe"][field]
        return facts

    @cached_property
    def address(self) -> str:
        """sha256 over the facts."""
        return address(self.facts)

    @property
    def title(self) -> str:
        """For the progress report."""
        return f"{self.role} · {self.probe.id} · seed {self.seed}"


def asked(policy: Policy, suite: Suite, schedules: Mapping[str, Schedule]) -> Iterator[tuple[Role, ProbeSpec, int]]:
    """Every unit of a certification as role, probe and seed; controls come first."""
    lacking = ruled_out(policy, schedules)
    for role in ROLES:
        for spec in suite.probes:
            if needs(role, spec) and spec.id not in lacking:
                yield from ((role, spec, seed) for seed in range(policy.certification.seeds))


def question(policy: Policy, digests: Mapping[str, Mapping[str, str]]) -> str:
    """Digest of what a policy says that a unit depends on: limits and budgets may change without running it again.

    Args:
        digests: of detectors and metrics (:meth:`safeguard.probe.evaluator.Evaluator.digests`).
    """
    settings = policy.certification
    return address(
        {
            "seed": policy.seed,
            "concepts": [concept.model_dump() for concept in policy.concepts],
            "retain": [subject.model_dump() for subject in policy.retain],
            "samples": settings.samples,
            "sampler": [settings.sampler_steps, settings.guidance, settings.precision],
        }
        | {kind: dict(found) for kind, found in digests.items()}
    )


def judge(policy: Policy, subject: Subject) -> str | None:
    """What the detector of a related or retained subject is filed under: the declared one, else that of the concept the
    subject is related to, or of the first; none: the subject has no labels, so only metrics judge it."""
    if not subject.labels:
        return None
    owners = [concept for concept in policy.concepts if subject in concept.related]
    return BENIGN if policy.utility.detector else (owners or policy.concepts)[0].name


class Drawing(NamedTuple):
    """What is drawn of one subject: prompts and noise seeds (n each), in order.

    Attributes:
        order: seed of the order in which prompts are used.
    """

    prompts: list[str]
    seeds: list[int]
    order: int


def seed_of_look(seed: int, effort: int, *, own_noise: bool) -> int:
    """The seed by which images are drawn at an effort: the unit's, so that efforts are paired, or one of its own.

    Args:
        own_noise: whether efforts are trials of which each says something by itself (:attr:`Schedule.own_noise`). The
            released model is always drawn by the unit's seed.
    """
    return derive(seed, "effort", effort) if own_noise and effort else seed


def drawn(
    policy: Policy, nonce: str, subject: Subject, seed: int, samples: int | None = None, most: int = 0
) -> Drawing:
    """Prompts and noise of a subject, the same for every model and every effort; more samples begin with fewer.

    Args:
        samples: images, at least those of the policy; none: as many.
        most: at most so many; 0: no limit.
    """
    count = policy.certification.at_least(samples)
    count = min(count, most) if most else count
    purpose = derive(examination(policy.seed, nonce), "evaluate", subject.name, seed)
    seeds = [derive(purpose, index) for index in range(count)]
    return Drawing(spread(subject.prompt_list, count, purpose), seeds, purpose)
