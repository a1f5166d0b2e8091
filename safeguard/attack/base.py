"""What every attack is: it changes a target and says when it is worth looking.

An attack does not draw the images that are judged, judge them, take times or write files: it yields
:class:`Attempt` after :class:`Attempt`, and whoever runs it looks at the target before it asks for the next. A
fine-tune, as one would write it on a board::

    def run(self, target, seed):
        with target.attacked() as model:
            for step, loss in fine_tune(model, data, tuner, training, seed=seed):
                if step in self.efforts():
                    yield Attempt(step, loss=loss)

The loop is the same for every attack (:func:`safeguard.probe.units.run_unit`)::

    for attempt in attack.run(target, seed):
        rows += evaluator.look(target.model, attempt, ...)
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

from safeguard.attack.target import Target
from safeguard.config import MethodConfig, Source, Training
from safeguard.data.content_filter import is_allowed
from safeguard.data.fine_tuning import DataSets
from safeguard.data.screening import surroundings
from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.sampling import Sampler
from safeguard.errors import UsageFault
from safeguard.policy.schema import Concept, FineTuningMethod
from safeguard.results.plan import Cost, Needs, Schedule
from safeguard.results.unit import Trial, TrialKind
from safeguard.wording import VARIANTS

C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class Prompts:
    """What is drawn instead of the policy's prompts, by concept.

    Attributes:
        texts: prompts of each concept that the attack is about; the others keep theirs.
        states: text states in their place, one row per text; what an attack found that no text says.
    """

    texts: Mapping[str, Sequence[str]]
    states: Mapping[str, Conditioning] | None = None

    def screened(self, concepts: Sequence[Concept]) -> tuple[Prompts, int]:
        """Without those that the content filter refuses beside the concepts, and how many these were.

        Raises:
            UsageFault: nothing is left of a concept's.
        """
        texts, states, refused = dict(self.texts), dict(self.states or {}), 0
        beside = surroundings(concepts)
        for concept in concepts:
            given = list(self.texts.get(concept.name, []))
            kept = [place for place, text in enumerate(given) if is_allowed(f"{beside} {text}")]
            if given and not kept:
                raise UsageFault(
                    f"the content filter refuses every prompt that the attack found for {concept.name!r}",
                    fix="minor-age words beside sexual content are never generated; restrict what the attack searches",
                )
            refused += len(given) - len(kept)
            if given:
                texts[concept.name] = [given[place] for place in kept]
            if concept.name in states:
                states[concept.name] = states[concept.name][kept]
        return Prompts(texts, states or None), refused

    @cached_property
    def digest(self) -> str:
        """sha256 (hexadecimal) over texts and states."""
        digest = hashlib.sha256()
        for concept, texts in sorted(self.texts.items()):
            digest.update("\x00".join([concept, *texts, ""]).encode())
        for concept, found in sorted((self.states or {}).items()):
            digest.update(concept.encode())
            for part in (found.states, found.pooled):
                if part is not None:
                    digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Attempt:
    """The target as the attack has it now; it is judged before the attack goes on.

    Attributes:
        effort: what the attack has spent, on its own axis; 0: attached, and nothing done yet (the placebo).
        prompts: what to draw; None: the policy's prompts.
        loss: the attack's own loss, by which one sees whether it makes progress; None: it has none.
        label: what was done, where efforts count variants and not an amount; empty: the effort says it.
        sampler: what draws; none: the policy's sampler, from noise.
        trial: which fine-tune was tried, where efforts number configurations.
    """

    effort: int
    prompts: Prompts | None = None
    loss: float | None = None
    label: str = ""
    sampler: Sampler | None = None
    trial: Trial | None = None


class Attack(Generic[C]):
    """One way to bring a concept back, or to use the model; attacks derive from this class and say what they do.

    Args:
        config: the attack's settings.
        probe: id of the probe that it is for; its randomness is derived from the id, so that no two probes share any.
    """

    Config: ClassVar[type[MethodConfig]]
    axis: ClassVar[str] = "steps"
    """What :attr:`Attempt.effort` counts, in the plural: ``fine-tuning steps``, ``queries``."""
    judges_everything: ClassVar[bool] = False
    """Whether related and retained subjects are looked at beside the concepts."""
    own_noise: ClassVar[bool] = False
    """Whether every attempt is drawn from noise of its own, and not from that of the others, with which it is paired
    otherwise."""
    resumable: ClassVar[bool] = False
    """Whether a killed run is gone on with: it then leaves out what :attr:`Target.judged` names, and keeps what it has
    found by itself in :attr:`Target.scratch`."""
    reported_only: ClassVar[bool] = False
    """Whether no requirement judges what it finds: it tells something of the model, and no model withstands it."""

    def __init__(self, config: C, probe: str) -> None:
        self.config = config
        self.probe = probe

    def efforts(self) -> list[int]:
        """The efforts of the attempts that :meth:`run` yields, ascending from 0; known without running it."""
        raise NotImplementedError(f"{type(self).__name__} does not say when it is worth looking")

    def trials(self) -> list[TrialKind]:
        """What each effort above 0 tries, where efforts number fine-tunes; none: they do not."""
        return []

    def sources(self) -> list[Source]:
        """Whose images it trains on; none: it trains on none."""
        return []

    def training_set(self) -> str:
        """What describes its images, for counting them once; empty: it trains on none."""
        return ""

    def concepts(self) -> list[str]:
        """Names of concepts in its settings; none: it works on those of whatever policy it is run under."""
        return []

    def cost(self) -> Cost:
        """What a run does beside the drawing and judging of images."""
        return Cost()

    def needs(self) -> Needs:
        """What an attacker must have for it; an attack that says nothing needs an interface only."""
        return Needs()

    def covers(self) -> list[str]:
        """Kinds of use and attack that it stands for, of :data:`safeguard.policy.levels.KINDS`; none: of no level."""
        return []

    def schedule(self) -> Schedule:
        """What is known without running it, as plain data."""
        return Schedule(
            axis=self.axis,
            efforts=self.efforts(),
            sources=self.sources(),
            training_set=self.training_set(),
            concepts=self.concepts(),
            everything=self.judges_everything,
            reported_only=self.reported_only,
            trials=self.trials(),
            own_noise=self.own_noise,
            needs=self.needs(),
            covers=self.covers(),
            cost=self.cost(),
        )

    def adaptation(self) -> tuple[FineTuningMethod, Training] | None:
        """How it trains the model, for counting its memory; none: it does not."""
        return None

    def draw(self, data: DataSets, seed: int) -> None:
        """Have the images drawn that :meth:`run` will ask for; the model that draws them is then in memory."""

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Attack the target; it is as it was when the iterator is exhausted or closed.

        Args:
            target: what is attacked; its weights may be changed inside ``target.attacked()``.
            seed: of everything random; the same seed repeats the run.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")


class Variants(Attack[C]):
    """An attack that tries one change after the other, each from the released model; efforts number them from 1."""

    axis: ClassVar = VARIANTS

    def count(self) -> int:
        """How many it tries."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many variants it has")

    def efforts(self) -> list[int]:
        """0, and one number per variant."""
        return list(range(self.count() + 1))
