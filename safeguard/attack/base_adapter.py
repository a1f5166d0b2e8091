"""An adapter trained on the base and loaded onto the certified model: a community file; needs weights and the file.

W_h x + s B A x, where B A was trained beside the base's W_0 and knows nothing of W_h; s is the scale at which it is
loaded. On benign images it is what people share for the base; on images of the concept somebody's who wants it back.

Training is done with the base in the certified model's place: its weights, its text encoders and no stored erasers.
What was trained is added to the certified weights of the same names, the text encoders' too where one was hardened;
stored erasers stay. An adapter whose update is no sum (DoRA divides by a norm, OFT turns) is added as what it changed
of the base.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Self

from pydantic import Field, PositiveFloat, field_validator

from safeguard.attack.base_model import FineTuned, add
from safeguard.attack.from_base import Change, FromBase, FromBaseConfig
from safeguard.config import FineTuningData, Training
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.policy.schema import FineTuningMethod
from safeguard.results.plan import Needs


class BaseAdapterConfig(FromBaseConfig):
    """The adapter, and the scales at which it is loaded."""

    method: FineTuningMethod = FineTuningMethod(name="lora")
    """The adapter with its settings."""
    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.5, 0.75, 1.0, 1.25]
    """s of each variant, ascending."""

    @classmethod
    def tiny(cls) -> Self:
        """Two steps on three images."""
        training = Training(steps=2, learning_rate=1e-2, batch_size=2)
        return cls(data=FineTuningData(shares={"concept": 1}, images=3), training=training)

    @field_validator("scales")
    @classmethod
    def _ascending(cls, given: list[float]) -> list[float]:
        if sorted(set(given)) != given:
            raise ValueError("scales must ascend")
        return given


class BaseAdapter(FromBase[BaseAdapterConfig]):
    """Load the adapter at every scale.

    Raises:
        UsageFault: the method makes no adapter, or one that cannot be put into weights.
    """

    Config: ClassVar = BaseAdapterConfig

    def __init__(self, config: BaseAdapterConfig, probe: str) -> None:
        super().__init__(config, probe)
        if not self.tuner().adds_parameters:
            raise UsageFault(
                f"{config.method.name!r} makes no adapter that could be loaded",
                fix="take an adapter, for example lora, or the attack merge",
                where=f"probe {probe}",
            )

    def needs(self) -> Needs:
        """The weights to load it onto, and the adapter: whoever made it had the base, its images and the steps."""
        return Needs(weights=True, adapters=True)

    def covers(self) -> list[str]:
        """Adapters of the community or of the concept, if they are loaded with their whole weight."""
        shares = set(self.config.data.shares)
        if self.config.scales[-1] < 1 or self.tuner().extent == "part":
            return []
        return ["base-adapter"] if shares == {"concept"} else [] if "concept" in shares else ["community-adapter"]

    def variants(self) -> list[tuple[str, Change]]:
        """One per scale."""
        name = self.config.method.name
        return [(f"{name} of the base loaded at scale {s:g}", partial(_loaded, scale=s)) for s in self.config.scales]


def _loaded(model: DiffusionModel, tuned: FineTuned, *, scale: float) -> None:
    """W_h + s (W_B - W_0)."""
    add(model, tuned.difference, scale)
