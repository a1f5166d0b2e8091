"""``safeguard list``: the names in the registries."""

from __future__ import annotations

import click

from safeguard.registry import ALL
from safeguard.resources import shipped

SUITES = "suites"
KINDS = {registry.group.removeprefix("safeguard."): registry for registry in ALL}


@click.command("list")
@click.argument("kind", required=False, type=click.Choice([*KINDS, SUITES]))
@click.option("-v", "--verbose", is_flag=True, help="Say of each method what it is, in a line.")
def list_methods(kind: str | None, verbose: bool) -> None:
    """List the methods a policy or a suite can name.

    Without KIND all of them, and the suites that are shipped. Methods of other installed packages are listed too; none
    is imported.
    """
    if kind == SUITES:
        click.echo(_suites(verbose))
        return
    chosen = {kind: KINDS[kind]} if kind else KINDS
    if verbose:
        from safeguard.cli.common import table

        rows = [(title, name, known.describe(name)) for title, known in chosen.items() for name in known.names()]
        click.echo(table(("kind", "name", "what it is"), rows))
        return
    if kind:
        click.echo("\n".join(KINDS[kind].names()))
        return
    width = max(map(len, KINDS))
    for title, registry in KINDS.items():
        click.echo(f"{title:{width}}  {', '.join(registry.names())}")
    click.echo(f"{SUITES:{width}}  {', '.join(shipped('probes'))}")


def _suites(verbose: bool) -> str:
    """Names of the shipped suites; with what each has in it, if that is asked for."""
    from safeguard.cli.common import table
    from safeguard.policy.suite import load_suite

    names = shipped("probes")
    if not verbose:
        return "\n".join(names)
    found = {name: load_suite(name) for name in names}
    rows = [(name, str(len(suite.probes)), suite.description) for name, suite in found.items()]
    return table(("suite", "probes", "what is tried"), rows)
