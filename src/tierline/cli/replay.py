"""`tierline replay`: the recorded events once more through the scheduler, the actions compared with those on record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_DIFFERENT = 1


def register(app: typer.Typer) -> None:
    app.command("replay", rich_help_panel="Simulation")(replay)


def replay(
    state: Annotated[
        Path | None,
        typer.Argument(metavar="[STATE_DIR|FILE]", help="State folder of a daemon, or a record of `serve --record`."),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start/--from-snapshot", help="From the first event, or from the newest snapshot.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Feed a recorded run through the same scheduler and policy again; exit code 1 when it decides otherwise.

    Works beside a running daemon. Example: `tierline replay ~/.local/state/tierline`, or `tierline replay run.jsonl` after
    `tierline serve --policy adaptive --record run.jsonl`
    """
    if state is not None and state.is_file():
        _replay_serving(state, as_json)
        return
    import msgspec
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tierline.config import StatePaths, build_recorded, hand_over, state_dir
    from tierline.core.errors import NotFound
    from tierline.runtime.replay import fold
    from tierline.runtime.store import EventTable

    root = state.absolute() if state is not None else state_dir()
    table = EventTable(StatePaths(root).events)
    try:
        columns = (TextColumn("Replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("replay", total=None)
            result = fold(
                table,
                build_recorded,
                hand_over,
                from_start=from_start,
                on_event=lambda done, total: bar.update(task, completed=done, total=total),
            )
    finally:
        table.close()
    if result is None:
        raise NotFound(f"No daemon has ever run with the state folder '{root}'.")
    first = result.first
    if as_json:
        record = {
            "state": str(root),
            "from_seq": result.start_seq,
            "events": result.events,
            "actions": result.actions,
            "differences": result.differences,
            "first_difference": None if first is None else _as_record(first.row.seq, first.row.kind, first.sentence()),
        }
        typer.echo(msgspec.json.encode(record).decode())
    elif first is None:
        typer.echo(f"{result.events} events replayed, {result.actions} actions compared: no difference.")
    else:
        typer.echo(
            f"{result.events} events replayed, {result.differences} with other actions. First: {first.sentence()}"
        )
    if first is not None:
        raise typer.Exit(EXIT_DIFFERENT)


def _replay_serving(path: Path, as_json: bool) -> None:
    import msgspec

    from tierline.deployment import build_recorded
    from tierline.runtime.serving_record import replay_record

    result = replay_record(path, build_recorded)
    if as_json:
        typer.echo(msgspec.json.encode({"record": str(path), **msgspec.to_builtins(result)}).decode())
    elif not result.differences:
        typer.echo(f"{result.events} events replayed, {result.actions} actions compared: no difference.")
    else:
        typer.echo(f"{result.events} events replayed, {result.differences} with other actions. First: {result.first}")
    if result.differences:
        raise typer.Exit(EXIT_DIFFERENT)


def _as_record(seq: int, kind: str, sentence: str) -> dict[str, object]:
    return {"seq": seq, "kind": kind, "sentence": sentence}
