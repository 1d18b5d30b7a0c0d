"""`tierline policies`: the registry, told from the policies' own docstrings."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from tierline.cli import render

COLUMNS = ("POLICY", "PREEMPTIVE", "IDEA", "SOURCE")
_SECTION = re.compile(r"\b(Idea|Source|Inputs|Memory|Cost): ")


def register(app: typer.Typer) -> None:
    app.command("policies", rich_help_panel="Simulation")(policies)


def sections(docstring: str) -> dict[str, str]:
    """The five lines of a policy's docstring by name.

    >>> sections("Idea: first come,\\n  first served. Source: queues. Cost: one sort.")
    {'idea': 'first come, first served.', 'source': 'queues.', 'cost': 'one sort.'}
    """
    parts = _SECTION.split(" ".join(docstring.split()))
    return {name.lower(): text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def policies(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """List the job policies: what each one does and where it comes from.

    Example: `tierline policies`, then `tierline up --policy las` or `tierline simulate jobs exploratory --policy fifo,las`
    """
    from tierline.policies.jobs import POLICIES, SEES_THE_FUTURE, policy_class

    known = []
    for name in POLICIES:
        policy = policy_class(name)
        told = sections(policy.__doc__ or "")
        known.append(
            {
                "name": name,
                "idea": told.get("idea", ""),
                "source": told.get("source", ""),
                "inputs": told.get("inputs", ""),
                "memory": told.get("memory", ""),
                "cost": told.get("cost", ""),
                "preemptive": policy.preemptive,
                "work_conserving": policy.work_conserving,
                "sees_the_future": name in SEES_THE_FUTURE,
            }
        )
    if as_json:
        render.print_json({"policies": known})
        return
    rows = [[str(p["name"]), "yes" if p["preemptive"] else "no", str(p["idea"]), str(p["source"])] for p in known]
    if render.on_terminal():
        render.console().print(wrapped(rows))
    else:
        print(render.plain_table(COLUMNS, rows))


def wrapped(rows: list[list[str]]) -> object:
    """Both texts wrap here, so that neither is cut off on a narrow terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    for column, ratio in zip(COLUMNS, (None, None, 3, 2), strict=True):
        table.add_column(column, ratio=ratio, no_wrap=ratio is None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
