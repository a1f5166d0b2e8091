"""``safeguard list``: the names in the registries."""

from __future__ import annotations

import click

from safeguard.registry import ALL

KINDS = {registry.group.removeprefix("safeguard."): registry for registry in ALL}


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(list(KINDS)))
def list_methods(kind: str | None) -> None:
    """List the methods a policy or a suite can name.

    Without KIND all of them. Methods of other installed packages are listed too; none is imported.
    """
    if kind:
        click.echo("\n".join(KINDS[kind].names()))
        return
    width = max(map(len, KINDS))
    for title, registry in KINDS.items():
        click.echo(f"{title:{width}}  {', '.join(registry.names())}")
