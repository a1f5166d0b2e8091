"""What the base model has and the certified one lacks, put back: the parts that anybody can replace.

A concept that was erased in the text encoder is back when the base's text encoder is; a plain pipeline drops erasers
that are stored beside the weights. The denoiser is never put back, since that alone would be the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from safeguard.attack.base import Attempt, Variants
from safeguard.attack.base_model import OTHERS, base_of, counterparts, replaced
from safeguard.attack.target import Base, Target
from safeguard.config import MethodConfig
from safeguard.diffusion.erasers import erasers
from safeguard.diffusion.model import DiffusionModel
from safeguard.results.plan import Needs

Part = Literal["text-encoders", "token-embeddings", "others", "erasers", "all"]
PARTS: tuple[Part, ...] = ("text-encoders", "token-embeddings", "others", "erasers", "all")
_ENCODERS = ("text_encoder", "text_encoder_2")


class ComponentsConfig(MethodConfig):
    """What is put back, one after the other."""

    parts: Annotated[list[Part], Field(min_length=1)] = list(PARTS)
    """One variant each: the text encoders; of these the embeddings of tokens alone; tokenizers, autoencoder and noise
    schedule; the denoiser without the erasers stored beside its weights; all of this together."""


class Components(Variants[ComponentsConfig]):
    """Put components back from the base model; what does not differ stays, and the variant says so."""

    Config: ClassVar = ComponentsConfig

    def count(self) -> int:
        """One per variant."""
        return len(self.config.parts)

    def needs(self) -> Needs:
        """Both models."""
        return Needs(weights=True, base_model=True)

    def covers(self) -> list[str]:
        """Components put back, if all are."""
        return ["components"] if set(PARTS) <= set(self.config.parts) else []

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Each variant begins with the released model.

        Raises:
            UsageFault: the base model is not at hand.
            ModelFault: a component of the base has another shape, so it cannot be put back.
        """
        base = base_of(target)
        yield Attempt(0)
        for number, part in enumerate(self.config.parts, start=1):
            with target.attacked() as model, ExitStack() as stack:
                done = [each for put in _ACTIONS[part] for each in put(model, base, stack)]
                yield Attempt(number, label=", ".join(done) or "nothing differs that could be put back")


@torch.no_grad()
def _text_encoders(model: DiffusionModel, base: Base, stack: ExitStack) -> list[str]:
    return [_copied(model, base, name, embeddings=False) for name in _ENCODERS if name in base.differing]


@torch.no_grad()
def _token_embeddings(model: DiffusionModel, base: Base, stack: ExitStack) -> list[str]:
    return [_copied(model, base, name, embeddings=True) for name in _ENCODERS if name in base.differing]


def _copied(model: DiffusionModel, base: Base, name: str, *, embeddings: bool) -> str:
    """In place: the weights come back when the attack is over."""
    both: list[Any] = [model.parts[name], base.component(name)]
    part, other = ((each.get_input_embeddings() if embeddings else each) for each in both)
    values = counterparts(name, part, other)
    for key, parameter in part.named_parameters():
        parameter.copy_(values[key])
    return f"{'token embeddings of ' if embeddings else ''}{name} put back from the base"


def _others(model: DiffusionModel, base: Base, stack: ExitStack) -> list[str]:
    names = [name for name in OTHERS if name in base.differing]
    for name in names:
        stack.enter_context(replaced(model, name, base.component(name)))
    return [f"{name} put back from the base" for name in names]


@torch.no_grad()
def _erasers(model: DiffusionModel, base: Base, stack: ExitStack) -> list[str]:
    """As plain diffusers opens the model: E(h) = up(act(down(h))) is zero where ``up`` is."""
    found = erasers(model.unet).values()
    for eraser in found:
        eraser.up.weight.zero_()
        eraser.up.bias.zero_()
    return ["stored erasers dropped"] if found else []


_ACTIONS: dict[Part, tuple[Callable[[DiffusionModel, Base, ExitStack], list[str]], ...]] = {
    "text-encoders": (_text_encoders,),
    "token-embeddings": (_token_embeddings,),
    "others": (_others,),
    "erasers": (_erasers,),
    "all": (_text_encoders, _others, _erasers),
}
"""Part -> what is done, in words afterwards; what is not undone with the weights goes onto the stack."""
