"""What is fixed before the first image: what was ordered, what is known from before, and the plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safeguard.certify.stopping import stop_rules
from safeguard.policy.schema import Policy
from safeguard.policy.suite import suite_digest
from safeguard.probe.campaign import Campaign
from safeguard.results.attempts import FIRST, Entry, History, subject
from safeguard.results.record import Verdict
from safeguard.results.run_plan import Limit, PlannedUnit, RunPlan, read_plan


@dataclass(frozen=True)
class Order:
    """What was ordered.

    Attributes:
        model_dir: a real path.
        run_dir: where everything is written.
        policy: a file, a policy, or none for the one in the directory.
        policy_pin: the digest that it must have; none: any.
        workers: units at the same time; none: as many as there is room for.
        nonce: to repeat; none: the interrupted run's, or a new one.
        fresh: whether nothing that was finished before is used.
    """

    model_dir: Path
    run_dir: Path
    policy: str | Path | Policy | None
    policy_pin: str | None
    device: str
    offline: bool
    workers: int | None
    nonce: str | None
    fresh: bool

    def campaign(self) -> Campaign:
        """What is to be run, and when enough images of a checkpoint are drawn."""
        campaign = Campaign.open(
            self.model_dir,
            policy=self.policy,
            device=self.device,
            offline=self.offline,
            nonce=self.nonce,
            policy_pin=self.policy_pin,
        )
        stops = stop_rules(campaign.policy, campaign.suite, campaign.schedules, campaign.judges.calibrations)
        return replace(campaign, stops=stops)


@dataclass(frozen=True)
class Past:
    """What the run directory and the cache knew before the run began."""

    history: History
    entries: list[Entry]
    problems: list[str]
    plan: RunPlan | None


def known(campaign: Campaign, order: Order) -> Past:
    """The attempts that are there, and the plan, unless nothing from before is to be used."""
    run_dir = order.run_dir
    prompts = {concept.name: concept.prompt_list for concept in campaign.policy.concepts}
    history = History(run_dir, subject(campaign.digests["base"], prompts))
    entries, problems = history.read()
    return Past(history, entries, problems, None if order.fresh else read_plan(run_dir))


def make_plan(campaign: Campaign, order: Order, past: Past, written: str) -> RunPlan:
    """The plan, its units aside; it keeps the nonce of an interrupted run that asked the same."""
    policy = campaign.policy
    plan = RunPlan(
        written=written,
        models=campaign.digests,
        policy_digest=campaign.appointed.digest,
        suite_digest=suite_digest(campaign.suite),
        limits=[Limit.of(requirement) for requirement in policy.requirements],
        detectors=campaign.judges.digests["detectors"],
        thresholds=campaign.judges.thresholds,
        metrics=campaign.judges.digests["metrics"],
        confidence=policy.certification.confidence,
        policy_seed=policy.seed,
        seeds=policy.certification.seeds,
        samples=policy.certification.samples,
        code=campaign.code,
        nonce=campaign.nonce,
        repetition=order.nonce is not None,
        units=[],
    )
    old = past.plan
    if order.nonce or old is None or not plan.same_question(old):
        return plan
    begun = any(entry.nonce == old.nonce for entry in past.history.of_this_run(past.entries))
    return plan.model_copy(update={"nonce": old.nonce, "repetition": old.repetition or not begun})


def planned_units(campaign: Campaign) -> list[PlannedUnit]:
    """Of the campaign, in its order."""
    return [
        PlannedUnit(address=spec.address, role=spec.role, probe=spec.probe.id, seed=spec.seed)
        for spec in campaign.units()
    ]


def finished(past: Past, plan: RunPlan) -> bool:
    """Whether this run directory has a verdict on the same examination."""
    known = plan.models["hardened"], plan.policy_digest, plan.nonce, "finished"
    return any((e.model, e.policy, e.nonce, e.event) == known for e in past.history.of_this_run(past.entries))


def entry(history: History, plan: RunPlan, started: str, verdict: Verdict | None) -> Entry:
    """A line for the logs of attempts.

    Args:
        verdict: none: it begins.
    """
    return Entry(
        previous=FIRST,
        event="finished" if verdict else "begun",
        subject=history.subject,
        place=history.place,
        model=plan.models["hardened"],
        policy=plan.policy_digest,
        nonce=plan.nonce,
        started=started,
        verdict=verdict,
    )
