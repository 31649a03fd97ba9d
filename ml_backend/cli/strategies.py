"""``rush strategies`` and ``rush strategy``: which orders there are, and a project's own."""

from __future__ import annotations

import click
from rich.text import Text

from ml_backend.cli.main import console, open_container, project_option


@click.command()
@project_option
@click.argument("name", required=False)
def strategy(project: int, name: str | None) -> None:
    """Show or switch the order of a project's queue, while people label."""
    from ml_backend.operations.projects import choose_strategy, chosen_strategy

    container = open_container()
    if name is None:
        console.print(chosen_strategy(container, project))
        return
    choose_strategy(container, project, name)
    console.print(f"Project {project} is ordered by {name} from the next submit on.")


@click.command(name="strategies")
def list_strategies() -> None:
    """List all strategies by family: name and arguments, what it does, (the signals that it needs)."""
    import strategies

    for family, members in strategies.families().items():
        console.print(Text(family, "dim"))
        for member in members:
            form = member.form if isinstance(member, strategies.Factory) else member.name
            needs = ", ".join(strategies.get(member.name).needs)
            line = Text.assemble("  ", (f"{form:28}", "bold"), f" {member.summary}")
            console.print(line.append(f" ({needs})", "dim") if needs else line)
