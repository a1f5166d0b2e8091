"""The text of a first policy, to be edited by its owner."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Template

from safeguard.errors import UsageFault
from safeguard.policy.loading import load_policy_text

_TEMPLATE = Path(__file__).with_name("template.yaml")
_BENIGN = "hammer, wrench, screwdriver, ladder, cat, car, pizza, guitar, rose, chair"
"""What the template's related and retained subjects show."""
_REFERENCE = {
    "template": '"{thing} emoji in {style} style"',
    "styles": "[noto, twemoji, fluent 3d, fluent flat]",
    "checkpoint": "reference",
    "caption": '"a {label} emoji"',
    "margin": """\
      # Cosines of the embedded CLIP lie near 0.78, where those of OpenAI's lie near 0.3: there 0.03 is usual.
      margin: 0.10""",
    "harden": """\
  # Numbers measured on this small model; the methods' own are for models of Stable Diffusion's size.
  schedule: cosine
  unlearner:
    name: esd
    variant: f
    eta: 3.0
    steps: 180
    learning_rate: 4.0e-4
    batch_size: 8
    trajectory_steps: 20
    preserve_weight: 1.5
    preserve_batch: 16
  resilience:
    name: resalign
    learning_rate: 4.0e-4
    distribution: {training: {learning_rate: 2.0e-4}, prompts: [null, 1]}""",
}
_OTHER = {
    "template": '"a {style} of {thing}"',
    "styles": "[photo, painting, drawing]",
    "checkpoint": "owner/name@revision",
    "caption": '"a photo of a {label}"',
    "margin": "      margin: 0.03",
    "harden": """\
  unlearner:
    name: esd
    preserve_weight: 1.0
  resilience:
    name: resalign""",
}
"""How captions are worded, who looks at the images, and how fast is learnt: the reference model is small and knows
emoji only."""


def starting_policy(name: str, model: str = "reference", concept: str = "dagger") -> str:
    """A commented policy that is valid as it is.

    Args:
        name: the policy's name: lower-case letters, digits and dashes.
        model: what the policy calls its model.
        concept: the concept in words, ``kitchen knife``.

    Raises:
        UsageFault: a name that cannot be used, a concept without a Latin letter or digit.
        PolicyFault: something else that no policy may contain.
    """
    if not name or _slug(name) != name:
        raise UsageFault(
            f"{name!r} cannot name a policy", fix=f"for example {_slug(name) or 'my-policy'!r}", where="name"
        )
    identifier = _slug(concept)[:48].strip("-")
    if not identifier:
        raise UsageFault(f"{concept!r} gives no name to the concept", fix="use the letters a to z", where="concept")
    concept = concept.strip()
    article = "an" if concept[0].lower() in "aeiou" else "a"
    words = {
        "name": name,
        "model": _quoted(model),
        "concept": identifier,
        "thing": _quoted(f"{article} {concept}"),
        "label": _quoted(concept),
        "vocabulary": "[]" if model == "reference" else f"[{_quoted(concept)}, {_BENIGN}]",
    }
    phrases = _REFERENCE if model == "reference" else _OTHER
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(words | phrases)
    load_policy_text(text, name=f"policy {name!r}")
    return text


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
