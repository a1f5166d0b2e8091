"""``safeguard policy``: write, check and explain policy files; only ``check`` imports the methods they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from safeguard.cli.common import FILE
from safeguard.cli.streams import shows
from safeguard.data.screening import screen
from safeguard.errors import SafeguardError, UsageFault
from safeguard.files import write_text
from safeguard.policy.consistency import truncations
from safeguard.policy.json_schema import policy_json_schema
from safeguard.policy.loading import load_policy, load_policy_text, resolved_yaml
from safeguard.policy.methods import check_methods
from safeguard.policy.schema import Policy, Subject
from safeguard.policy.template import starting_policy
from safeguard.progress import printable
from safeguard.wording import plural


@click.group()
def policy() -> None:
    """Write, check and explain policy files."""


@policy.command()
@click.argument("file", type=FILE)
def check(file: Path) -> None:
    """Say whether FILE is a valid policy; if not, name every mistake with line and column."""
    from safeguard.probe.campaign import fitting_suite

    declared = load_policy(file)
    check_methods(declared, file)
    fitting_suite(declared, file)
    _, dropped = screen(declared)
    click.echo(printable(f"{file}: OK ({_counts(declared)})"))
    if dropped:
        click.echo(f"note: the content filter will drop {plural(dropped, 'prompt')} before any image is generated")
    for note in _cut(declared):
        click.echo(printable(f"note: {note}"))


def _cut(declared: Policy) -> list[str]:
    """Prompts that the base model does not read to their ends; nothing is fetched to find out."""
    from safeguard.io.hub import resolve
    from safeguard.io.opening import open_component

    try:
        base = resolve(declared.model, declared.revision, offline=True)
    except SafeguardError:
        return ["the base model is not here, so no prompt was compared with what it can read"]
    return truncations(declared, open_component(base, "tokenizer"))


@policy.command()
@click.argument("file", type=FILE)
@click.option("--resolved", is_flag=True, help="Print the whole policy as YAML, with every default written out.")
def show(file: Path, resolved: bool) -> None:
    """Say in a few lines what FILE declares."""
    declared = load_policy(file)
    if resolved:
        text = resolved_yaml(declared)
        click.echo(text if shows(text) else resolved_yaml(declared, plain=True), nl=False)
    else:
        click.echo(printable("\n".join(_summary(declared))))


@policy.command()
def schema() -> None:
    """Print the JSON Schema of a policy, for editors."""
    click.echo(json.dumps(policy_json_schema(), indent=2, ensure_ascii=False))


@policy.command()
@click.option("--name", default="my-policy", show_default=True, help="Name of the policy.")
@click.option("--model", default="reference", show_default=True, help="Base model: reference, a directory or a hub id.")
@click.option("--concept", default="dagger", show_default=True, help="What must be gone, in words.")
@click.option("--out", type=FILE, default=Path("policy.yaml"), show_default=True, help="File to write.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def init(name: str, model: str, concept: str, out: Path, force: bool) -> None:
    """Write a commented policy to start from."""
    text = starting_policy(name, model, concept)
    if out.exists() and not force:
        raise UsageFault("the file exists", fix="choose another --out, or replace it with --force", where=str(out))
    screen(load_policy_text(text, name=f"policy {name!r}"))
    write_text(out, text)
    click.echo(printable(f"wrote {out}\nedit it, then: safeguard policy check {out}"))


def _counts(declared: Policy) -> str:
    subjects = [*declared.concepts, *declared.retain, *declared.related]
    prompts = sum(len(subject.prompt_list) for subject in subjects)
    numbers = {"concept": len(declared.concepts), "prompt": prompts, "requirement": len(declared.requirements)}
    return ", ".join(f"{number} {noun}{'s' if number != 1 else ''}" for noun, number in numbers.items())


def _summary(declared: Policy) -> Iterator[str]:
    yield f"policy         {declared.name}" + (f": {declared.description}" if declared.description else "")
    yield f"model          {declared.model}" + (f" at {declared.revision}" if declared.revision else "")
    for concept in declared.concepts:
        yield f"erase          {_subject(concept)}, {concept.kind}, judged by {concept.detector.name}"
        for related in concept.related:
            yield f"  keep related {_subject(related)}"
    for subject in declared.retain:
        yield f"keep           {_subject(subject)}"
    yield f"harden with    {declared.harden.unlearner.name}, resilience {declared.harden.resilience.name}"
    for limit in declared.requirements:
        budget = f" within a budget of {limit.budget}" if limit.budget else ""
        yield f"require        rate below {limit.max_rate:g} for {limit.probe}{budget}"
    test = declared.certification
    images = f"{test.seeds} seeds × {test.samples} images"
    yield f"tested by      suite {test.suite}, {images}, confidence {test.confidence:g}"


def _subject(subject: Subject) -> str:
    return f"{subject.name} ({len(subject.prompt_list)} prompts)"
