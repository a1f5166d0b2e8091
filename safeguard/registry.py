"""One lazy registry for every extension point: a name maps to ``"module:attribute"``; listing names imports nothing.

Other packages add methods through entry points, for example::

    [project.entry-points."safeguard.unlearners"]
    my-method = "my_package.my_method:MyUnlearner"
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from pydantic import ValidationError

from safeguard.errors import PolicyFault, UsageFault

if TYPE_CHECKING:
    from safeguard.attack.base import Attack
    from safeguard.detect.base import Detector
    from safeguard.finetune.base import FineTuner
    from safeguard.metrics.base import Metric
    from safeguard.report.base import Reporter
    from safeguard.resilience.base import Objective
    from safeguard.unlearn.base import Unlearner

T_co = TypeVar("T_co", covariant=True)


class Named(Protocol):
    """A method as it is written down: ``{name: lora, rank: 4}``."""

    @property
    def name(self) -> str:
        """In the registry."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""


class Registry(Generic[T_co]):
    """Names of one kind of method, and the one way to make one.

    Args:
        kind: what is registered, in the singular, for messages (``"unlearner"``).
        group: the entry-point group other packages use.
        builtin: our own methods, ``name -> "module:attribute"``.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)

    def foreign(self) -> list[EntryPoint]:
        """Methods of other packages, by name."""
        return sorted(entry_points(group=self.group), key=lambda point: point.name)

    @cached_property
    def _targets(self) -> dict[str, str]:
        found = {point.name: point.value for point in self.foreign()}
        clash = sorted(found.keys() & self._builtin.keys())
        if clash:
            raise UsageFault(
                f"an installed package registers the {self.kind} {clash[0]!r}, which safeguard already has",
                fix=f"rename its entry point in the group {self.group}",
            )
        return self._builtin | found

    def names(self) -> list[str]:
        """All names, ours first; imports none of the methods."""
        return list(self._targets)

    def get(self, name: str) -> Any:
        """Import and return the method of that name.

        Raises:
            UsageFault: the name is unknown; the message suggests near ones.
        """
        if name not in self._targets:
            raise UsageFault(f"unknown {self.kind} {name!r}", fix=suggest(name, self.names()))
        module, _, attribute = self._targets[name].partition(":")
        return getattr(import_module(module), attribute)

    def describe(self, name: str) -> str:
        """First line of the docstring of the method's module, read without importing it; empty: it has none."""
        module = self._targets[name].partition(":")[0]
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            return ""
        docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
        return docstring.partition("\n")[0]

    def config(self, method: Named) -> Any:
        """The method's settings, checked, with its defaults.

        Raises:
            UsageFault: the name is unknown.
            PolicyFault: a setting that the method does not have, or a value that it cannot take.
        """
        try:
            return self.get(method.name).Config(**method.settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            what = f"{self.kind} {method.name!r}: {field}: {first['msg']}"
            raise PolicyFault(what, fix="`safeguard policy check` names every mistake with its line") from error

    def make(self, method: Named, *parts: Any) -> T_co:
        """The method, ready to use: its settings checked, then whatever its kind is handed besides.

        Raises:
            UsageFault: the name is unknown.
            PolicyFault: as :meth:`config`.
        """
        return cast("T_co", self.get(method.name)(self.config(method), *parts))


def suggest(word: str, known: list[str]) -> str:
    """``did you mean …?`` when something known is near, the whole list otherwise."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


unlearners: Registry[Unlearner] = Registry(
    "unlearner",
    "safeguard.unlearners",
    {
        "esd": "safeguard.unlearn.esd:ESD",
        "uce": "safeguard.unlearn.uce:UCE",
        "rece": "safeguard.unlearn.rece:RECE",
        "mace": "safeguard.unlearn.mace:MACE",
        "ga": "safeguard.unlearn.ga:GradientAscent",
        "sdd": "safeguard.unlearn.sdd:SDD",
        "ca": "safeguard.unlearn.ca:ConceptAblation",
        "safegen": "safeguard.unlearn.safegen:SafeGen",
        "lcfdsd": "safeguard.unlearn.lcfdsd:LCFDSD",
        "receler": "safeguard.unlearn.receler:Receler",
        "advunlearn": "safeguard.unlearn.advunlearn:AdvUnlearn",
        "race": "safeguard.unlearn.race:RACE",
    },
)
resilience: Registry[Objective] = Registry(
    "resilience objective",
    "safeguard.resilience",
    {
        "none": "safeguard.resilience.none:NoObjective",
        "meta-unlearning": "safeguard.resilience.meta_unlearning:MetaUnlearning",
        "resalign": "safeguard.resilience.resalign:ResAlign",
        "imma": "safeguard.resilience.imma:IMMA",
    },
)
finetuners: Registry[FineTuner] = Registry(
    "fine-tuning method",
    "safeguard.finetuners",
    {
        "full": "safeguard.finetune.full:FullFineTuning",
        "lora": "safeguard.finetune.lora:LoRA",
        "dora": "safeguard.finetune.dora:DoRA",
        "loha": "safeguard.finetune.loha:LoHa",
        "lokr": "safeguard.finetune.lokr:LoKr",
        "oft": "safeguard.finetune.oft:OFT",
        "qlora": "safeguard.finetune.qlora:QLoRA",
        "dreambooth": "safeguard.finetune.dreambooth:DreamBooth",
        "custom-diffusion": "safeguard.finetune.custom_diffusion:CustomDiffusion",
        "svdiff": "safeguard.finetune.svdiff:SVDiff",
        "textual-inversion": "safeguard.finetune.textual_inversion:TextualInversion",
    },
)
attacks: Registry[Attack[Any]] = Registry(
    "attack",
    "safeguard.attacks",
    {
        "released": "safeguard.attack.released:Released",
        "components": "safeguard.attack.components:Components",
        "quantised": "safeguard.attack.quantised:Quantised",
        "prompts": "safeguard.attack.own_prompts:OwnPrompts",
        "sampler": "safeguard.attack.sampler:SamplerSweep",
        "image-context": "safeguard.attack.image_context:ImageContext",
        "completion": "safeguard.attack.completion:Completion",
        "finetune": "safeguard.attack.finetune:FineTune",
        "base-adapter": "safeguard.attack.base_adapter:BaseAdapter",
        "interpolation": "safeguard.attack.interpolation:Interpolation",
        "merge": "safeguard.attack.merge:Merge",
        "revival": "safeguard.attack.revival:Revival",
        "unlearndiffatk": "safeguard.attack.unlearndiffatk:UnlearnDiffAtk",
        "concept-inversion": "safeguard.attack.concept_inversion:ConceptInversion",
        "coordinate-descent": "safeguard.attack.coordinate_descent:CoordinateDescent",
        "ring-a-bell": "safeguard.attack.ring_a_bell:RingABell",
        "grid": "safeguard.attack.grid:Grid",
        "escape": "safeguard.attack.escape:Escape",
        "progressive": "safeguard.attack.progressive:Progressive",
        "mma": "safeguard.attack.mma:MMA",
        "search": "safeguard.attack.search:Search",
        "p4d": "safeguard.attack.p4d:P4D",
        "sneakyprompt": "safeguard.attack.sneakyprompt:SneakyPrompt",
        "undo": "safeguard.attack.undo:Undo",
        "self-regeneration": "safeguard.attack.self_regeneration:SelfRegeneration",
        "defence-aware": "safeguard.attack.defence_aware:DefenceAware",
    },
)
detectors: Registry[Detector] = Registry(
    "detector",
    "safeguard.detectors",
    {"clip": "safeguard.detect.clip:ClipDetector", "nudenet": "safeguard.detect.nudenet:NudeNetDetector"},
)
reporters: Registry[Reporter] = Registry(
    "reporter",
    "safeguard.reporters",
    {"html": "safeguard.report.html:REPORTER", "markdown": "safeguard.report.markdown:REPORTER"},
)

metrics: Registry[Metric] = Registry(
    "metric",
    "safeguard.metrics",
    {"clip-score": "safeguard.metrics.clip_score:ClipScore"},
)

ALL: tuple[Registry[Any], ...] = (unlearners, resilience, finetuners, attacks, detectors, metrics, reporters)
